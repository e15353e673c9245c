"""Requests that fail for now are made again; what is put is there whole or not at all; then one clear sentence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import zarr

from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import object_stores as buckets
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from tests.support.buckets import KINDS, SECRET, Bucket, without_waiting
from tests.support.faults import Fault, first, no_fault, share

DATA = np.random.default_rng(0).bytes(200_000)


@pytest.fixture(scope="module", params=sorted(KINDS))
def running(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as monkeypatch, KINDS[request.param](monkeypatch) as bucket:
        without_waiting(monkeypatch)
        yield bucket


@pytest.fixture
def bucket(running: Bucket) -> Iterator[Bucket]:
    yield running
    running.proxy.choose = no_fault
    running.proxy.requests.clear()


@pytest.mark.parametrize("fault", ["busy", "throttled", "truncated"])
def test_a_file_is_read_whole_whatever_happens_on_the_way(bucket: Bucket, fault: Fault) -> None:
    url = storage.join(bucket.url, "read", fault)
    storage.write_bytes(url, DATA)
    bucket.proxy.choose = first(3, fault, "GET", fault)
    assert storage.read_bytes(url) == DATA
    assert bucket.proxy.faults() == {fault: 3}
    assert bucket.proxy.counts(fault)["GET"] == 4


def test_an_answer_that_does_not_come_is_asked_for_again(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_SILENCE_SECONDS", 0.2)
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "impatient")  # another environment, another filesystem
    monkeypatch.setattr(bucket.proxy, "delay", 1.0)
    url = storage.join(bucket.url, "late")
    storage.write_bytes(url, DATA)
    bucket.proxy.choose = first(2, "slow", "GET", "late")
    assert storage.read_bytes(url) == DATA
    assert bucket.proxy.counts("late")["GET"] == 3


@pytest.mark.parametrize("fault", ["busy", "throttled", "cut"])
def test_a_file_is_written_whole_whatever_happens_on_the_way(bucket: Bucket, fault: Fault) -> None:
    url = storage.join(bucket.url, "write", fault)
    bucket.proxy.choose = first(3, fault, "PUT")
    storage.write_bytes(url, DATA)
    assert storage.read_bytes(url) == DATA


def test_the_answer_to_an_existing_name_costs_one_request(bucket: Bucket) -> None:
    url = storage.join(bucket.url, "there/file")
    storage.write_bytes(url, b"")
    bucket.proxy.requests.clear()
    bucket.proxy.choose = first(2, "busy", "HEAD")
    assert storage.exists(url)
    bucket.proxy.choose = no_fault
    assert bucket.proxy.counts() == {"HEAD": 3}
    assert not storage.exists(url + "-not")
    assert not storage.exists(storage.join(bucket.url, "there"))
    assert bucket.proxy.counts() == {"HEAD": 5}


def test_what_was_written_is_listed_at_once(bucket: Bucket) -> None:
    folder = storage.join(bucket.url, "list")
    fs, path = storage.filesystem(folder)
    assert storage.entries(folder) == []
    for number in range(3):
        storage.write_bytes(storage.join(folder, str(number)), b"x")
        assert storage.entries(folder) == [str(n) for n in range(number + 1)]
        assert len(fs.find(path)) == number + 1
    fs.rm_file(f"{path}/0")
    assert storage.entries(folder) == ["1", "2"]


def test_a_listing_that_fails_is_made_again(bucket: Bucket) -> None:
    folder = storage.join(bucket.url, "listed")
    storage.write_bytes(storage.join(folder, "a"), b"x")
    bucket.proxy.choose = first(3, "truncated" if bucket.url.startswith("gs") else "busy", "LIST")
    assert storage.entries(folder) == ["a"]
    assert sum(bucket.proxy.faults().values()) == 3


def test_an_upload_that_is_cut_for_good_leaves_the_old_object(bucket: Bucket) -> None:
    url = storage.join(bucket.url, "cut/file")
    storage.write_bytes(url, b"old")
    bucket.proxy.choose = first(10_000, "cut", "PUT")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of the libraries
        storage.write_bytes(url, DATA)
    assert "the server cannot be reached" in (failure_sentence(caught.value, url) or "")
    with pytest.raises(Exception):  # noqa: B017, PT011
        storage.write_bytes(url + "-new", DATA)
    bucket.proxy.choose = no_fault
    assert storage.read_bytes(url) == b"old"
    assert not storage.exists(url + "-new")


def test_an_upload_in_parts_is_seen_when_all_are_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "PART", 5 << 20)
    data = DATA * 60  # 12 MB: three parts
    url = storage.join(bucket.url, "parts/file")
    bucket.proxy.choose = first(2, "cut", "PUT")
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data
    assert bucket.proxy.counts()["PUT"] >= 6
    storage.write_bytes(url, b"old")
    seen = iter([None, None, *["cut"] * 10_000])
    bucket.proxy.choose = lambda kind, key: next(seen) if kind == "PUT" else None  # type: ignore[return-value]
    with pytest.raises(Exception):  # noqa: B017, PT011
        storage.write_bytes(url, data)
    bucket.proxy.choose = no_fault
    assert storage.read_bytes(url) == b"old"


def test_an_array_is_read_right_through_a_bad_connection(bucket: Bucket) -> None:
    url = storage.join(bucket.url, "array")
    values = np.random.default_rng(1).integers(0, 1000, (256, 256), np.uint16)
    zarr.create_array(storage.store(url, read_only=False), data=values, chunks=(32, 32), shards=(128, 128))
    bucket.proxy.choose = share(0.2, ("busy", "throttled", "slow", "truncated"), seed=3)
    bucket.proxy.delay = 0.02
    array = zarr.open_array(storage.store(url, read_only=True), mode="r")
    assert (array[40:200, 30:250] == values[40:200, 30:250]).all()
    assert len(bucket.proxy.faults()) > 1


@pytest.mark.parametrize("fault", ["busy", "throttled", "truncated"])
def test_after_the_last_attempt_one_sentence_says_what_the_server_said(bucket: Bucket, fault: Fault) -> None:
    url = storage.join(bucket.url, "down", fault)
    storage.write_bytes(url, DATA)
    bucket.proxy.requests.clear()
    bucket.proxy.choose = first(10_000, fault, "GET")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of the libraries
        storage.read_bytes(url)
    sentence = failure_sentence(caught.value, url) or ""
    said = {
        "busy": "the server is busy or failing (the server answered 503)",
        "throttled": "the server is busy or failing (the server answered 429)",
        "truncated": "the connection breaks off in the middle (Response payload is not completed",
    }
    assert sentence.startswith(f"{url}: {said[fault]}"), sentence
    assert sentence.endswith("run the same command again to resume")
    assert "\n" not in sentence
    assert SECRET not in sentence
    assert bucket.proxy.counts()["GET"] == RETRIES.request_attempts


@pytest.mark.parametrize("url", ["s3://KEY:{0}@lab/a", "https://me:{0}@host/a", "https://host/a?X-Amz-Signature={0}"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RefusedError, match="holds credentials; leave them out and give them in the env") as caught:
        storage.normalise(url.format(SECRET))
    assert SECRET not in str(caught.value)
    with pytest.raises(RefusedError, match="is not supported") as caught:
        storage.normalise(url.format(SECRET).replace("s3:", "ftp:").replace("https:", "ftp:"))
    assert SECRET not in str(caught.value)
