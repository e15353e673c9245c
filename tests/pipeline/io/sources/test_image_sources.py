"""Where images are looked for: names, globs and lists, folders, memory, web servers and buckets."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from fsspec.implementations.local import LocalFileSystem
from moto.server import ThreadedMotoServer

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import FailedImage, SourceImage
from chorus.pipeline.io.sources.discovery import expand, find_images
from chorus.pipeline.io.sources.reading import open_level, read_window
from tests.support.ngff import names, refused, write_image, write_plate


def test_a_named_source_that_is_no_ome_zarr_is_refused_with_the_mend(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "two"), shape=(4, 4), dtype="u1", zarr_format=2)
    zarr.create_array(str(tmp_path / "three"), shape=(4, 4), dtype="u1")
    (tmp_path / "image.png").write_bytes(b"II*")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "two": "a plain Zarr array",
        "three": "a plain Zarr array",
        "image.png": "a file",
        "empty": "an empty folder",
        ".": "a folder without any",
    }.items():
        message = refused((tmp_path / name).resolve())
        assert f"holds no OME-Zarr image, it is {words}; give" in message
        assert message.endswith("convert other files first with `chorus convert`")
    assert refused(tmp_path / "none").endswith("none: not found; check the path or URL")


def test_a_folder_without_permission_is_refused_named_and_fails_alone_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.zarr")
    (tmp_path / "closed").mkdir()
    listing = LocalFileSystem.ls

    def closed(fs: LocalFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listing(fs, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", closed)
    assert "permission denied" in refused(tmp_path / "closed")
    found = list(find_images([str(tmp_path)]))
    assert [type(image) for image in found] == [SourceImage, FailedImage]


def test_sources_are_expanded_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b.zarr", "a.zarr", "c[1].zarr"):
        (tmp_path / name).mkdir()
    listing = tmp_path / "list.txt"
    listing.write_text(f"# wells\n{tmp_path}/z.zarr\n\n{tmp_path}/a.zarr\ns3://bucket/x.zarr/\n")
    found = expand([f"{tmp_path}/c[1].zarr", f"{tmp_path}/[ab].zarr", str(listing), f"file://{tmp_path}/b.zarr"])
    local = [str(tmp_path / name) for name in ("c[1].zarr", "a.zarr", "b.zarr")]
    assert found == [*local, f"{tmp_path}/z.zarr", "s3://bucket/x.zarr"]
    assert expand(found) == found


def test_a_glob_without_a_match_and_a_list_that_is_not_there_are_refused(tmp_path: Path) -> None:
    assert "matches nothing" in refused(tmp_path / "*.zarr")
    assert "not found" in refused(tmp_path / "list.txt")


def test_images_are_found_in_memory() -> None:
    root = f"memory://images-{os.getpid()}"
    write_image(f"{root}/deep/a.zarr", "0.4")
    write_image(f"{root}/b.zarr")
    assert names(root) == ["b.ome.zarr", "a.ome.zarr"]
    assert names(f"{root}/*.zarr") == ["b.ome.zarr"]
    assert "not found" in refused(f"{root}/none")


class RangeHandler(SimpleHTTPRequestHandler):
    """Python's file server with what every real one has: range requests, which sharded arrays need."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        file, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if "forbidden" in self.path:
            return self.send_error(403)
        if not (wanted and file.is_file()):
            return super().do_GET()
        data = file.read_bytes()
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()  # type: ignore[union-attr]
        start, stop = (int(first), int(last or len(data)) + 1) if first else (len(data) - int(last), len(data))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data[start:stop])))
        self.end_headers()
        self.wfile.write(data[start:stop])
        return None


@pytest.fixture
def http(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_images_and_plates_are_read_over_http(tmp_path: Path, http: str, ngff: str) -> None:
    write_image(tmp_path / "a.zarr", ngff)
    write_plate(tmp_path / "p.zarr", ngff)
    assert names(f"{http}/a.zarr/", f"{http}/p.zarr")[:2] == ["a.ome.zarr", "p.ome.zarr/A/1/0"]
    array = open_level(f"{http}/a.zarr", "0")
    window = Window.of(2, 7, 3, 15)
    expected = np.arange(512).reshape(2, 16, 16)[:, 2:7, 3:15]
    np.testing.assert_array_equal(read_window(array, "cyx", 0, 0, [0, 1], window, strict=True), expected)
    np.testing.assert_array_equal(read_window(array, "cyx", 0, 0, [1, 0], window), expected[::-1])


def test_http_sources_that_are_no_image_are_refused(tmp_path: Path, http: str) -> None:
    write_image(tmp_path / "folder/a.zarr")
    for name in ("folder", "none"):
        assert "folders cannot be listed over HTTP" in refused(f"{http}/{name}")
    assert "403" in refused(f"{http}/forbidden.zarr")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    fs, _ = storage.filesystem("s3://bucket")
    type(fs).clear_instance_cache()  # an instance keeps the endpoint that it was made with
    yield "s3://bucket"
    type(fs).clear_instance_cache()
    server.stop()


def test_images_are_found_in_a_bucket_and_a_missing_bucket_is_said(s3: str) -> None:
    fs, bucket = storage.filesystem(s3)
    fs.mkdir(bucket)
    write_image(f"{s3}/day/a.zarr")
    write_image(f"{s3}/day/two/b.zarr", "0.4")
    assert names(s3) == ["a.ome.zarr", "b.ome.zarr"]
    assert names(f"{s3}/*/a*") == ["a.ome.zarr"]
    array = open_level(f"{s3}/day/a.zarr", "0")
    assert read_window(array, "cyx", 0, 0, [1], Window.of(0, 1, 0, 3), strict=True).tolist() == [[[256, 257, 258]]]
    assert "no such bucket" in refused("s3://other-bucket/a.zarr")
    assert "not found" in refused(f"{s3}/none")
