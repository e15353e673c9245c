"""What storage answers becomes one sentence: the URL, what is wrong, the mend; damaged data are not storage's."""

from __future__ import annotations

import bz2
import errno
import gzip
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numcodecs
import numpy as np
import pytest
import requests
import zarr
from aiohttp import ClientPayloadError, ClientResponseError, ServerDisconnectedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ProfileNotFound
from gcsfs.retry import HttpError, validate_response
from google.auth.exceptions import RefreshError, TransportError
from moto.server import ThreadedMotoServer

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import failure_sentence
from tests.support.buckets import without_waiting

RESUME = "run the same command again to resume"
RIGHTS = "check the rights of the folder or the credentials in the environment"


def raised(cause: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of many libraries
        cause()
    return caught.value


def by_web(status: int) -> Exception:
    request: Any = SimpleNamespace(real_url="http://a/b")
    return ClientResponseError(request, (), status=status, message="told so")


def by_gcs(status: int, message: str = "told so") -> Exception:
    """What gcsfs makes of an answer of Google's storage."""
    content = f'{{"error": {{"code": {status}, "message": "{message}"}}}}'.encode()
    return raised(lambda: validate_response(status, content, "b/bucket"))


def by_s3(code: str, status: int = 400) -> Exception:
    answer: Any = {
        "Error": {"Code": code, "Message": "told so"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("/out", OSError(errno.ENOSPC, "No space left on device"), "no space left; free some"),
        ("/out", OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left; free some"),
        ("/out", OSError(errno.EROFS, "Read-only file system"), "the file system is read-only; choose another place"),
        ("/out", OSError(errno.EACCES, "Permission denied"), f"permission denied; {RIGHTS}"),
        ("/out", OSError(errno.EIO, "Input/output error"), f"storage failed.*Input/output error.*{RESUME}"),
        ("/in", FileNotFoundError(errno.ENOENT, "No such file"), "not found; check the path or URL"),
        ("http://a/b", by_web(401), r"not signed in \(the server answered 401\); give a URL that needs no login"),
        ("http://a/b", by_web(403), rf"permission denied \(the server answered 403\); {RIGHTS}"),
        ("http://a/b", by_web(404), "not found; check the path or URL"),
        ("http://a/b", by_web(429), rf"busy or failing \(the server answered 429\); {RESUME}"),
        ("http://a/b", by_web(503), rf"busy or failing \(the server answered 503\); {RESUME}"),
        ("http://a/b", by_web(400), rf"storage failed \(the server answered 400\); check the URL, then {RESUME}"),
        ("http://a/b", ServerDisconnectedError(), "the server cannot be reached.*; check the address and the network"),
        ("http://a/b", TimeoutError(), r"the server cannot be reached \(TimeoutError\); check the address"),
        ("s3://a/b", ClientPayloadError("half"), rf"the connection breaks off in the middle \(half\).*{RESUME}"),
        ("gs://a/b", by_gcs(401), "not signed in.*401.*gcloud auth application-default login"),
        ("gs://a/b", by_gcs(403), f"permission denied; {RIGHTS}"),
        ("gs://a/b", by_gcs(404), "not found; check the path or URL"),
        ("gs://a/b", by_gcs(400, "invalid argument"), f"storage failed.*invalid argument.*{RESUME}"),
        ("gs://a/b", by_gcs(502), "the server cannot be reached"),
        ("gs://a/b", by_gcs(503), rf"busy or failing \(the server answered 503\); {RESUME}"),
        ("gs://a/b", HttpError({"code": "500"}), rf"busy or failing \(the server answered 500\); {RESUME}"),
        ("gs://a/b", HttpError(), f"storage failed.*{RESUME}"),
        (
            "gs://a/b",
            RefreshError("expired"),
            r"not signed in \(expired\); sign in with `gcloud",
        ),
        ("gs://a/b", TransportError("no route"), r"cannot be reached \(no route\)"),
        ("gs://a/b", requests.ConnectionError("no route"), r"cannot be reached \(no route\)"),
        ("s3://a/b", by_s3("AccessDenied"), f"permission denied; {RIGHTS}"),
        ("s3://a/b", by_s3("ExpiredToken"), f"permission denied; {RIGHTS}"),
        ("s3://a/b", by_s3("NoSuchKey", 404), "not found; check the path or URL"),
        ("s3://a/b", by_s3("NoSuchBucket", 404), "no such bucket; check its name and the project or account"),
        ("s3://a/b", by_s3("SlowDown", 503), rf"busy or failing \(the server answered 503\); {RESUME}"),
        ("s3://a/b", by_s3("Unheard", 418), f"storage failed.*told so.*{RESUME}"),
        ("s3://a/b", NoCredentialsError(), "not signed in.*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://a/b", ProfileNotFound(profile="lab"), r"not signed in \(.*lab.*\); sign in with `aws sso login`"),
        ("s3://a/b", EndpointConnectionError(endpoint_url="http://here:9"), r"cannot be reached.*here:9.*; check the"),
    ],
)
def test_an_answer_of_storage_is_one_sentence_with_url_and_mend(url: str, error: Exception, words: str) -> None:
    sentence = failure_sentence(error, url)
    assert sentence is not None
    assert sentence.startswith(f"{url}: ")
    assert "\n" not in sentence
    assert re.search(words, sentence), sentence


@pytest.mark.parametrize(
    "decode",
    [gzip.decompress, bz2.decompress, numcodecs.GZip().decode, numcodecs.BZ2().decode, numcodecs.Zstd().decode],
)
def test_damaged_data_are_not_called_a_failure_of_storage(decode: Callable[[bytes], Any]) -> None:
    assert failure_sentence(raised(lambda: decode(b"no such stream")), "/in") is None


def test_a_mistake_in_the_program_is_not_explained() -> None:
    for error in (KeyError("axes"), TypeError("no"), ValueError("no"), RuntimeError("no")):
        assert failure_sentence(error, "/in") is None


@pytest.mark.parametrize("codec", [numcodecs.GZip(), numcodecs.BZ2()], ids=["gzip", "bz2"])
def test_a_damaged_chunk_is_to_be_copied_anew_not_resumed(tmp_path: Path, codec: Any) -> None:
    array = zarr.create_array(
        str(tmp_path / "a"), shape=(4, 4), chunks=(4, 4), dtype="u1", zarr_format=2, compressors=codec
    )
    array[...] = 1
    (tmp_path / "a/0.0").write_bytes(b"no such stream")
    with pytest.raises(ImageError, match=r"cannot be decoded .*; copy the image again from its origin$"):
        read_window(open_level(str(tmp_path), "a"), "yx", 0, 0, [0], Window.of(0, 4, 0, 4))


def test_explaining_imports_no_library_of_a_bucket() -> None:
    program = (
        "import sys; from chorus.pipeline.io.storage_failures import failure_sentence;"
        "failure_sentence(OSError(5, 'no'), 's3://a');"
        "print({'s3fs', 'botocore', 'gcsfs', 'google.auth', 'aiohttp'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


class Answers(SimpleHTTPRequestHandler):
    """Answers every request with `status`, or with the file where that is 200."""

    status = 200

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.status == 200:
            super().do_GET()
        else:
            self.send_error(self.status)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[[int], None]]]:
    """The URL of a server of `tmp_path`, and what to call to let it answer with another status."""
    without_waiting(monkeypatch)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", partial(monkeypatch.setattr, Answers, "status")
    server.shutdown()
    server.server_close()


def refused(url: str) -> str:
    with pytest.raises(RefusedError) as caught:
        list(find_images([url]))
    return str(caught.value)


def test_a_source_behind_a_web_server_is_refused_with_what_the_server_answered(web: tuple[str, Any]) -> None:
    url, answer = web[0] + "/a.zarr", web[1]
    for status, words in {
        401: "not signed in (the server answered 401); give a URL that needs no login",
        403: f"permission denied (the server answered 403); {RIGHTS}",
        503: f"the server is busy or failing (the server answered 503); {RESUME}",
    }.items():
        answer(status)
        assert refused(url) == f"{url}: {words}"


def test_pixels_that_a_server_stops_giving_are_explained(tmp_path: Path, web: tuple[str, Any]) -> None:
    zarr.create_array(str(tmp_path / "0"), shape=(4, 4), chunks=(4, 4), dtype="u1")[...] = np.ones((4, 4))
    url, answer = web
    array = open_level(url, "0")
    assert read_window(array, "yx", 0, 0, [0], Window.of(0, 4, 0, 4)).all()
    answer(503)
    with pytest.raises(ImageError, match=rf"^{url}/0: the server is busy or failing .*{RESUME}$"):
        read_window(array, "yx", 0, 0, [0], Window.of(0, 4, 0, 4))
    with pytest.raises(ImageError, match=rf"^{url}/0: the server is busy or failing .*{RESUME}$"):
        open_level(url, "0")


def test_a_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    without_waiting(monkeypatch)
    assert "the server cannot be reached" in refused("http://127.0.0.1:9/a.zarr")


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A server of buckets and an environment without credentials."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for key in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(key, str(tmp_path / "none"))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    yield "s3://bucket"
    server.stop()


def test_a_bucket_without_credentials_says_how_to_sign_in(no_account: str) -> None:
    message = refused(f"{no_account}/a.zarr")
    assert message.startswith("s3://bucket/a.zarr: not signed in (Unable to locate credentials); sign in with `aws")
