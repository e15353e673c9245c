"""Listings in pages: every file once, however many pages and parts, and no more of it in memory than a page."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.pipeline.io import listings, storage
from chorus.pipeline.io.listings import Listed, Span, pages, visit
from tests.support.buckets import KINDS

NAMES = [f"img-{i:02d}.ome.zarr/region-{j:08d}.json" for i in range(13) for j in range(3)]
ODD = ["a[1]/b c.json", "ü/é.json", "img-05.ome.zarr.json", "\N{GRINNING FACE}/x", "top.json"]


@pytest.fixture(scope="module", params=[*KINDS, "local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a folder with files of NAMES and ODD, and other files whose names begin as its own."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param in KINDS:
            with KINDS[request.param](patch) as bucket:
                yield filled(f"{bucket.url}/out/ledger")
        elif request.param == "memory":
            yield filled("memory://listings/ledger")
        else:
            yield filled(str(tmp_path_factory.mktemp("listings") / "ledger"))


def filled(url: str) -> str:
    for name in [*NAMES, *ODD]:
        storage.write_bytes(f"{url}/{name}", name.encode())
    storage.write_bytes(f"{url}-other/a.json", b"")
    return url


def found(url: str, span: Span = listings.ALL) -> list[str]:
    fs, path = storage.filesystem(url)
    return [file.name for page in pages(fs, path, span) for file in page]


@pytest.mark.parametrize("size", [1000, 7, 1])
def test_every_file_is_listed_once(folder: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_PAGE", size)
    fs, path = storage.filesystem(folder)
    of_pages = list(pages(fs, path))
    assert sorted(file.name for page in of_pages for file in page) == sorted([*NAMES, *ODD])
    assert all(file.size == len(file.name.encode()) for page in of_pages for file in page)
    if not folder.startswith("memory"):
        assert max(map(len, of_pages)) <= size
    assert found(f"{folder}/none") == []
    assert found(f"{folder}/top.json") == []


@pytest.mark.parametrize("size", [1000, 4])
def test_parts_side_by_side_are_the_whole(folder: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_PAGE", size)
    monkeypatch.setattr(listings, "_MANY", 2)
    fs, path = storage.filesystem(folder)
    counts, lock = Counter[str](), threading.Lock()

    def take(page: list[Listed]) -> None:
        with lock:
            counts.update(file.name for file in page)

    visit(fs, path, take, [f"img-{i:02d}.ome.zarr" for i in range(13)])
    assert counts == Counter([*NAMES, *ODD])


@given(st.lists(st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1), max_size=40))
def test_parts_leave_nothing_out_and_list_nothing_twice(folders: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listings, "_MANY", 3)
        spans = listings._spans(folders)
    assert spans[0].start == spans[-1].end == ""
    for name in folders:
        file = f"{name}/image.json"
        assert sum((not s.start or file > s.start) and (not s.end or file < s.end) for s in spans) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_many_pages_is_removed_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with KINDS[kind](monkeypatch) as bucket:
        url = filled(f"{bucket.url}/out/ledger")
        monkeypatch.setattr(listings, "_PAGE", 5)
        storage.remove_folder(url)
        assert found(bucket.url) == ["out/ledger-other/a.json"]
        storage.remove_folder(f"{bucket.url}/out/ledger-other/a.json")  # a file
        assert found(bucket.url) == []


def test_google_is_asked_for_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a page of a thousand names it is 100 kB in place of 700."""
    with KINDS["gs"](monkeypatch) as bucket:
        url = filled(f"{bucket.url}/out/ledger")
        bucket.proxy.requests.clear()
        found(url)
        assert [line for line in bucket.proxy.requests if "fields=items" in str(line)]
        assert len(bucket.proxy.requests) == 1


def test_files_that_go_while_they_are_listed_hide_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = filled(str(tmp_path / "ledger"))
    fs, path = storage.filesystem(url)
    monkeypatch.setattr(listings, "_PAGE", 1)
    listing = pages(fs, path)
    (first,) = next(listing)
    left = {*NAMES, *ODD} - {first.name}
    for name in [*left][::2]:
        storage.remove_file(f"{url}/{name}")
    later = {file.name for page in listing for file in page}
    assert left - {*[*left][::2]} <= later <= left
