"""The one door to storage: URLs, whole writes, and what is said when it fails."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence


@pytest.mark.parametrize(
    ("url", "expected"),
    [("/a/b/", "/a/b"), ("file:///a/b", "/a/b"), ("gs://b/x/", "gs://b/x"), ("memory://x", "memory://x")],
)
def test_urls_have_one_form(url: str, expected: str) -> None:
    assert storage.normalise(url) == expected


def test_a_relative_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("out") == str(tmp_path / "out")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(RefusedError, match="ftp://x: scheme 'ftp' is not supported; use a path or one of"):
        storage.normalise("ftp://x")


def test_join_and_basename() -> None:
    assert storage.join("s3://b/x/", "/y/", "", "z") == "s3://b/x/y/z"
    assert storage.basename("s3://b/x/") == "x"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_bytes_come_back(place: str, tmp_path: Path) -> None:
    url = f"{tmp_path}/a/b c[1]/file" if place == "local" else "memory://test-storage/a/file"
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    assert storage.exists(url)
    assert not storage.exists(url + "-not")


def test_a_failed_write_leaves_the_old_content_and_no_scraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(str(target), b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    url, size, stop = str(tmp_path / "file"), 1 << 20, threading.Event()
    storage.write_bytes(url, b"0" * size)

    def write() -> None:
        for value in range(40):
            storage.write_bytes(url, bytes([value]) * size)
        stop.set()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    while not stop.is_set():
        data = storage.read_bytes(url)
        assert len(data) == size
        assert data.count(data[:1]) == size
    for writer in writers:
        writer.join()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left; free some"),
        (OSError(errno.EROFS, "x"), "read-only; choose another place"),
        (PermissionError(errno.EACCES, "x"), "permission denied; check the rights"),
        (FileNotFoundError("x"), "not found; check the path"),
        (FileNotFoundError("The specified bucket does not exist"), "no such bucket; check its name"),
    ],
)
def test_what_storage_answers_is_said_in_one_sentence(error: OSError, said: str) -> None:
    sentence = failure_sentence(error, "s3://b/x")
    assert sentence is not None
    assert sentence.startswith("s3://b/x: ")
    assert said in sentence
    assert "\n" not in sentence


def test_an_error_that_is_not_of_storage_is_not_explained() -> None:
    assert failure_sentence(KeyError("x"), "s3://b/x") is None
