"""Who asks, who pays and which server is asked are said in the environment, by the libraries' own variables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from gcsfs.retry import HttpError

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from tests.support.buckets import KINDS, SECRET, Bucket


@pytest.fixture(scope="module", params=sorted(KINDS))
def running(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as monkeypatch, KINDS[request.param](monkeypatch) as bucket:
        storage.write_bytes(storage.join(bucket.url, "file"), b"content")
        yield bucket


@pytest.fixture
def asked(running: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    running.proxy.requests.clear()
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    return running


@pytest.mark.parametrize("running", ["s3"], indirect=True)
@pytest.mark.parametrize("word", ["true", "false"])
def test_public_buckets_of_amazon_are_read_without_credentials(
    asked: Bucket, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    fs, path = storage.filesystem(storage.join(asked.url, "file"))
    fs.chmod(path, "public-read")
    asked.proxy.requests.clear()
    monkeypatch.setenv("FSSPEC_S3_ANON", word)
    if word == "true":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert storage.read_bytes(storage.join(asked.url, "file")) == b"content"
    (request,) = asked.proxy.requests
    assert ("Authorization" in request.text) == (word == "false")
    assert SECRET not in request.text  # it signs, and is never sent


@pytest.mark.parametrize("running", ["gs"], indirect=True)
def test_public_buckets_of_google_are_read_without_credentials(asked: Bucket) -> None:
    assert storage.read_bytes(storage.join(asked.url, "file")) == b"content"
    (request,) = asked.proxy.requests
    assert "Authorization" not in request.text


def test_the_reader_pays_where_the_environment_says_so(asked: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    google = asked.url.startswith("gs")
    monkeypatch.setenv("FSSPEC_GS_REQUESTER_PAYS" if google else "FSSPEC_S3_REQUESTER_PAYS", "lab-7" if google else "1")
    url = storage.join(asked.url, "file")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"content"
    assert storage.entries(asked.url) == ["file"]
    storage.write_bytes(storage.join(asked.url, "paid/file"), b"x")
    assert len(asked.proxy.requests) == 4
    for request in asked.proxy.requests:
        assert ("userProject=lab-7" if google else "x-amz-request-payer: requester") in request.text


def test_a_bucket_whose_reader_pays_says_how() -> None:
    error = HttpError({"code": 400, "message": "Bucket is a requester pays bucket but no user project provided."})
    said = failure_sentence(error, "gs://lab/file")
    assert (
        said == "gs://lab/file: whoever reads this bucket pays; set FSSPEC_GS_REQUESTER_PAYS to the project that does"
    )


def test_a_process_that_read_and_wrote_a_bucket_ends_without_a_word(asked: Bucket) -> None:
    program = (
        "import sys, zarr; from chorus.pipeline.io import storage; url = sys.argv[1]; "
        "array = zarr.create_array(storage.store(url, read_only=False), shape=4, dtype='u1'); array[:] = 1; "
        "print(array[:].sum(), *storage.entries(url))"
    )
    call = [sys.executable, "-c", program, storage.join(asked.url, "array")]
    ended = subprocess.run(call, capture_output=True, text=True, check=True)
    assert ended.stdout == "4 c zarr.json\n"
    assert ended.stderr == ""
