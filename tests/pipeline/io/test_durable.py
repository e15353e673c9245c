"""What is written before a record is on the disk before the record is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from chorus.pipeline.io import durable, storage
from tests.support.disks import Disk, watched


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    durable.sync_noted()
    return watched(monkeypatch)


def test_a_record_is_renamed_after_all_that_was_written_before_is_synced(tmp_path: Path, disk: Disk) -> None:
    shards = [tmp_path / "images" / "a" / f"s{level}" / "0" for level in range(3)]
    for shard in shards:
        storage.write_bytes(str(shard), b"pixels")
    assert not disk.synced
    record = tmp_path / "ledger" / "a.json"
    storage.write_record(str(record), b"{}")
    assert disk.synced_before(record) >= {*shards, *(shard.parent for shard in shards), tmp_path / "images" / "a"}
    assert disk.content_synced(record)
    assert record.parent in disk.synced_after(record)
    assert tmp_path in disk.synced


def test_what_was_synced_once_is_not_synced_again(tmp_path: Path, disk: Disk) -> None:
    storage.write_bytes(str(tmp_path / "first"), b"1")
    storage.write_record(str(tmp_path / "a.json"), b"{}")
    disk.synced.clear()
    storage.write_record(str(tmp_path / "b.json"), b"{}")
    assert tmp_path / "first" not in disk.synced
    storage.write_bytes(str(tmp_path / "first"), b"2")
    storage.write_record(str(tmp_path / "c.json"), b"{}")
    assert tmp_path / "first" in disk.synced


def test_a_table_is_synced_before_it_takes_the_place_of_the_former(tmp_path: Path, disk: Disk) -> None:
    part, table = tmp_path / ".part", tmp_path / "scores.parquet"
    part.write_bytes(b"rows")
    storage.put_file(part, str(table))
    assert disk.content_synced(table)


def test_files_that_are_removed_before_the_record_are_left_out(tmp_path: Path, disk: Disk) -> None:
    storage.write_bytes(str(tmp_path / "folder" / "passing"), b"1")
    storage.remove_folder(str(tmp_path / "folder"))
    storage.write_record(str(tmp_path / "a.json"), b"{}")
    assert (tmp_path / "a.json").read_bytes() == b"{}"


def test_attempts_and_passing_folders_are_not_waited_for(tmp_path: Path, disk: Disk) -> None:
    storage.write_bytes(str(tmp_path / "attempt"), b"", lasting=False)
    with durable.passing(str(tmp_path / "scratch")):
        storage.write_bytes(str(tmp_path / "scratch" / "rows"), b"")
        storage.write_record(str(tmp_path / "scratch" / "counts.json"), b"")
        storage.write_record(str(tmp_path / "a.json"), b"{}")
    assert not disk.synced & {tmp_path / "attempt", tmp_path / "scratch" / "rows", tmp_path / "scratch" / "counts.json"}


def test_a_disk_that_fails_to_sync_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(str(tmp_path / "shard"), b"pixels")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            storage.write_record(str(tmp_path / "a.json"), b"{}")
    assert not (tmp_path / "a.json").exists()
    assert not list(tmp_path.glob(".*.part"))
    storage.write_record(str(tmp_path / "a.json"), b"{}")


def test_of_two_threads_each_waits_for_its_own_files(tmp_path: Path, disk: Disk) -> None:
    def work(name: str) -> None:
        for index in range(20):
            storage.write_bytes(str(tmp_path / name / f"{index}"), b"pixels")
            storage.write_record(str(tmp_path / f"{name}-{index}.json"), b"{}")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("a", "b"):
        for index in range(20):
            assert tmp_path / name / f"{index}" in disk.synced_before(tmp_path / f"{name}-{index}.json")


def test_more_files_than_are_remembered_are_synced_at_once(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_MOST", 10)
    for index in range(12):
        storage.write_bytes(str(tmp_path / f"{index}"), b"")
    assert tmp_path / "0" in disk.synced
