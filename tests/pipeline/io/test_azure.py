"""Azure's storage by ``az://``, on Microsoft's emulator where it is installed (``npm install -g azurite``)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import listings, object_stores, storage
from chorus.pipeline.io.conditional import objects_of
from chorus.pipeline.io.files.conversion import ConvertSettings, convert_file
from chorus.pipeline.io.listings import pages
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import failure_sentence
from tests.support.making import pixels

# The emulator's own account, which its manual names.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty container of the emulator."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        program,
        "--blobPort",
        str(port),
        "--location",
        str(tmp_path / "azurite"),
        "--silent",
        "--disableTelemetry",
    ]
    server = subprocess.Popen([*command, "--skipApiVersionCheck"], stdout=subprocess.DEVNULL)
    place = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    account = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={_KEY};{place}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", account)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        fs, _ = storage.filesystem("az://lab")
        fs.mkdir("lab")
        yield "az://lab"
    finally:
        server.kill()
        server.wait()


def test_an_image_is_written_to_azure_and_read_in_windows(lab: str, tmp_path: Path) -> None:
    data = pixels((3, 300, 500))
    np.save(tmp_path / "a.npy", data)
    convert_file(str(tmp_path / "a.npy"), f"{lab}/out/a.ome.zarr", ConvertSettings(region=128, chunk=64))
    (image,) = find_images([f"{lab}/out"])
    array = open_level(image.url, "s0", "0.5")  # type: ignore[union-attr]
    values = read_window(array, "zyx", 0, 1, (0,), Window.of(30, 290, 100, 470), strict=True, source=True)
    assert np.array_equal(values[0], data[1, 30:290, 100:470])


def test_small_files_are_written_listed_read_and_removed(lab: str) -> None:
    storage.write_bytes(f"{lab}/run/a.json", b"one")
    storage.write_bytes(f"{lab}/run/a.json", b"two")
    storage.write_bytes(f"{lab}/run/b/c.json", b"")
    assert storage.read_bytes(f"{lab}/run/a.json") == b"two"
    assert storage.entries(f"{lab}/run") == ["a.json", "b"]
    assert storage.exists(f"{lab}/run/a.json")
    assert not storage.exists(f"{lab}/run/b")
    assert not storage.exists(f"{lab}/run/none.json")
    storage.remove_folder(f"{lab}/run")
    assert storage.entries(f"{lab}/run") == []


def test_a_blob_is_written_and_removed_only_in_the_version_that_was_read(lab: str) -> None:
    fs, path = storage.filesystem(f"{lab}/run.lock")
    objects = objects_of(fs, "az")
    assert objects.conditional
    assert objects.version(path) is None
    first = objects.put(path, b"one", None)
    assert first is not None
    assert objects.put(path, b"two", None) is None
    found = objects.read(path)
    assert (found.data, found.version) == (b"one", first)
    assert found.age is not None
    assert 0 <= found.age < 60
    second = objects.put(path, b"three", first)
    assert second == objects.version(path)
    assert [file for page in pages(fs, "lab") for file in page] == [("run.lock", 5, second)]
    assert objects.put(path, b"four", first) is None
    assert not objects.remove(path, first)
    assert objects.read(path).data == b"three"
    assert objects.remove(path, second or "")
    assert objects.put(path, b"five", second) is None
    assert objects.version(path) is None


def test_what_azure_answers_is_one_sentence(lab: str) -> None:
    for url, words in {f"{lab}/none.json": "not found", "az://nowhere/a.json": "not found"}.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of many libraries
            storage.read_bytes(url)
        assert words in (failure_sentence(caught.value, url) or "")


def test_without_an_account_the_sentence_says_how_to_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of Azure's libraries
        storage.read_bytes("az://lab/a.json")
    assert "not signed in" in (message := failure_sentence(caught.value, "az://lab/a.json") or "")
    assert "AZURE_STORAGE_CONNECTION_STRING" in message


def test_without_adlfs_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    object_stores._azure.cache_clear()
    monkeypatch.setitem(sys.modules, "adlfs", None)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    with pytest.raises(RefusedError, match=r"install it with `pip install 'chorus-bioimage\[azure\]'`"):
        storage.read_bytes("az://lab/a.json")


def test_a_container_is_listed_and_emptied_in_pages(lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_PAGE", 3)
    names = [f"img-{i}.ome.zarr/region-{j:08d}.json" for i in range(4) for j in range(2)]
    for name in [*names, "../other.json"]:
        storage.write_bytes(f"{lab}/run/ledger/{name}".replace("ledger/../", ""), name.encode())
    fs, path = storage.filesystem(f"{lab}/run/ledger")
    of_pages = list(pages(fs, path))
    assert [len(page) for page in of_pages] == [3, 3, 2]
    assert [file.name for page in of_pages for file in page] == names
    storage.remove_folder(f"{lab}/run/ledger")
    assert [file.name for page in pages(fs, "lab") for file in page] == ["run/other.json"]
    storage.remove_folder(f"{lab}/run/other.json")
    assert not any(pages(fs, "lab"))
