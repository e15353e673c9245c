"""What hostile requests get: a clear refusal, quickly, and nothing of the inside."""

from __future__ import annotations

import io
import pickle
import struct
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec.config
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from chorus.pipeline.errors import ChorusError
from chorus.pipeline.io import storage
from chorus.serving.contract.problems import RequestError, said
from chorus.serving.contract.settings import Limits
from chorus.serving.contract.sources import Stored, check_path, check_source, guard_web
from chorus.serving.web.decoding import decode
from tests.support.buckets import without_waiting
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.servers import NPY, npy, server

LIMITS = Limits(pixels=1 << 20, upload_bytes=1 << 20)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    ensemble = write_light_ensemble(tmp_path_factory.mktemp("light"), members=1, width=4)
    limits = {"pixels": 1 << 20, "upload_bytes": 1 << 20, "upload_seconds": 5}
    with server(ensemble=str(ensemble), limits=limits, allow=["https://example.org/public/"]) as (found, _):
        yield found


def png_of(width: int, height: int) -> bytes:
    """A header that says so, and rows of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def npy_header(shape: object, descr: str = "'<u2'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def tiff_with(strip: bytes, compression: int) -> bytes:
    """A page of 64 x 64 bytes whose only strip is this."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, iter([strip]), shape=(64, 64), dtype="uint8", compression=compression, rowsperstrip=64)
    return buffer.getvalue()


def tiff_saying(**tags: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((8, 8), np.uint8), **tags)
    return buffer.getvalue()


HOSTILE = {
    "a PNG of 10^9 pixels": (png_of(31623, 31623), 413),
    "a PNG that is no PNG": (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, 422),
    "an NPY of 10^18 pixels": (npy_header((10**9, 10**9)), 413),
    "an NPY with a shape of no plane": (npy_header((1, 1, 1, 1)), 422),
    "an NPY of negative length": (npy_header((-1, 4)), 422),
    "an NPY of nothing": (npy_header((0, 4)), 422),
    "an NPY that is cut short": (npy_header((4, 4)) + b"\0", 422),
    "an NPY of objects, which are pickled": (npy_header((1, 1), "'|O'") + pickle.dumps([1]), 422),
    "an NPY whose header calls a function": (npy_header("__import__('os').getcwd()"), 422),
    "an NPY of nested brackets": (npy_header("(" * 200 + ")" * 200), 422),
    "an NPY of records": (npy_header((1, 1), "[('a', '<u2')]") + b"\0\0", 422),
    "an NPY of NaN": (npy(np.full((8, 8), np.nan, np.float32)), 422),
    "an NPY of infinity": (npy(np.full((8, 8), np.inf, np.float64)), 422),
    "an NPY of complex numbers": (npy(np.zeros((8, 8), np.complex64)), 422),
    "a pickle": (pickle.dumps(np.zeros((4, 4))), 415),
    "a zip": (b"PK\x03\x04" + bytes(50), 415),
    "a TIFF whose strip holds 64 MB": (tiff_with(zlib.compress(bytes(1 << 26), 9), 8), 422),
    "a TIFF without an end": (tiff_saying()[:60], 422),
    "a TIFF that begins nowhere": (b"II*\0\xff\xff\xff\x7f", 422),
    "a TIFF of a set of files": (
        tiff_saying(
            description='<?xml version="1.0"?><OME><Image><Pixels>'
            '<TiffData><UUID FileName="a.tif">urn:1</UUID></TiffData>'
            '<TiffData><UUID FileName="/etc/passwd">urn:2</UUID></TiffData></Pixels></Image></OME>'
        ),
        422,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(client: TestClient, name: str) -> None:
    data, status = HOSTILE[name]
    answer = client.post("/v1/predict", content=data, headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail", "request_id"}
    for inner in ("Traceback", "/usr", "/home", "/root", "site-packages", "0x"):
        assert inner not in answer.text


def test_a_body_beyond_the_bound_is_refused_before_it_is_read(client: TestClient) -> None:
    headers = {"Content-Type": "image/png", "Content-Length": str(1 << 40)}
    assert client.post("/v1/predict", content=b"", headers=headers).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 16)

    answer = client.post("/v1/predict", content=endless(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 413


URLS = [
    "file:///etc/passwd",
    "/etc/passwd",
    "memory://x",
    "ftp://example.org/public/x",
    "https://example.org/private/x",
    "https://example.org/public/../private/x",
    "https://example.org/public/%2e%2e/private/x",
    "https://example.org/public/x?y=1",
    "https://example.org/public/x#y",
    "https://user@example.org/public/x",
    "https://example.org@127.0.0.1/public/x",
    "https://example.org\\@127.0.0.1/public/x",
    "https://example.org.evil.net/public/x",
    "https://example.org/publicity/x",
    "http://169.254.169.254/latest/meta-data/",
    "gs://bucket/x",
    "simplecache::https://example.org/public/x",
    "https://example.org/public/x y\n",
]


@pytest.mark.parametrize("url", URLS)
def test_urls_beyond_the_allowed_prefix_are_refused(client: TestClient, url: str) -> None:
    answer = client.post("/v1/predict", json={"source": {"url": url}})
    assert answer.status_code == 403, answer.text


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "[::1]", "[fd00::1]",
                "[::ffff:127.0.0.1]", "100.64.0.1", "224.0.0.1", "localhost", "2130706433", "0x7f.1"]
)  # fmt: skip
def test_an_allowed_host_that_leads_inside_is_not_asked(address: str) -> None:
    url = f"http://{address}/public/x"
    with pytest.raises(RequestError) as refused:
        check_source(url, [f"http://{address}/public/"])
    assert refused.value.status == 403


def test_a_public_address_below_its_prefix_is_taken() -> None:
    assert (
        check_source("https://1.1.1.1/public/a.zarr/", ["https://1.1.1.1/public/"]) == "https://1.1.1.1/public/a.zarr"
    )
    assert check_source("gs://bucket/a.zarr", ["gs://bucket/"]) == "gs://bucket/a.zarr"
    for path in ("../x", "a/../../x", "a//b", ".", "a/%2e%2e/b", "a\0b"):
        with pytest.raises(RequestError):
            check_path(path)


def test_names_that_lead_inside_are_not_read_also_where_the_web_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an ensemble came from the web, and the name of an allowed host is another address a moment later."""
    without_waiting(monkeypatch)
    (tmp_path / "file").write_bytes(b"inside")
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    url = f"http://localhost:{web.server_port}/file"
    for kind in ("http", "https"):  # as if nobody had guarded it before
        monkeypatch.setitem(fsspec.config.conf, kind, {})
    try:
        assert storage.read_bytes(url) == b"inside"
        guard_web.__wrapped__()
        with pytest.raises(OSError, match="Cannot connect to host localhost"):
            storage.read_bytes(url)
    finally:
        web.shutdown()
        web.server_close()


def test_an_image_whose_metadata_lead_elsewhere_or_run_code_is_refused(tmp_path: Path) -> None:
    inside = write_image(tmp_path / "a.zarr", pixels((32, 32)))
    document = (inside / "zarr.json").read_text()
    (inside / "zarr.json").write_text(document.replace('"path": "s0"', '"path": "../a.zarr/s0"'))
    with pytest.raises((RequestError, ChorusError), match=r"\.\./a\.zarr"):
        Stored(str(inside)).open()
    old = write_image(tmp_path / "b.zarr", pixels((32, 32)), ngff="0.4")
    array = (old / "s0" / ".zarray").read_text()
    (old / "s0" / ".zarray").write_text(
        array.replace('"filters": null', '"filters": [{"id": "pickle", "protocol": 5}]')
    )
    assert "pickle" in (old / "s0" / ".zarray").read_text()
    with pytest.raises((RequestError, ChorusError)):
        Stored(str(old)).open()
    assert Stored(str(write_image(tmp_path / "c.zarr", pixels((32, 32)), ngff="0.4"))).open().axes == "yx"
    zarr.open_group(str(tmp_path / "c.zarr"), mode="r")


def test_sentences_lose_paths_of_the_machine_and_keep_what_the_client_wrote() -> None:
    assert said("/srv/data/x.yaml: is damaged") == "(a path): is damaged"
    assert said("gs://inner/x/y: no; see https://b.c/d") == "(a path): no; see (a path)"
    assert (
        said("https://a.b/c.zarr: no image; /tmp/x/y", "https://a.b/c.zarr") == "https://a.b/c.zarr: no image; (a path)"
    )


def image_files() -> dict[str, bytes]:
    small = pixels((24, 20))
    files = {"npy": npy(small)}
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(small.astype(np.uint8)).save(buffer, kind)
        files[kind] = buffer.getvalue()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([small, small]), ome=True, compression="zlib", metadata={"axes": "CYX"})
    return files | {"ome": buffer.getvalue()}


FILES = image_files()


def outcome_of(data: bytes) -> str | int:
    """Whether a file is read within the bounds, or the status of its refusal."""
    try:
        found = decode(data, "x", LIMITS)
    except RequestError as refused:
        return refused.status
    return "read" if found.pixels.ndim == 5 and 0 < found.pixels.size <= LIMITS.pixels else "beyond the bounds"


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=8),
    st.integers(0, 700),
)
def test_damaged_files_are_images_or_refusals_and_nothing_else(
    kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(FILES[kind])
    for place, value in changes:
        data[place % len(data)] = value
    assert outcome_of(bytes(data[: len(data) - cut % len(data)])) in ("read", 413, 415, 422)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0+"]))
def test_any_bytes_are_refused_or_read(data: bytes, start: bytes) -> None:
    assert outcome_of(start + data) in ("read", 413, 415, 422)


def test_no_answer_is_cached_or_framed_and_other_sites_pages_are_not_answered(client: TestClient) -> None:
    answer = client.get("/v1/ensembles")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    crossed = client.post("/v1/predict", content=b"x", headers=NPY | {"Origin": "https://evil.example"})
    assert crossed.status_code == 403
    rebound = client.get("/v1/ensembles", headers={"Host": "evil.example"})
    assert rebound.status_code == 403
