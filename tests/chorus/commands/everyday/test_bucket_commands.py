"""Every step from images to tables with all its places in a bucket, by the command line: as on a disk."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from skimage.measure import label

from chorus.pipeline.io import storage
from tests.support.buckets import KINDS, Bucket, without_waiting
from tests.support.making import pixels, write_light_ensemble
from tests.support.running import Chorus


@pytest.fixture(params=["gs", pytest.param("s3", marks=pytest.mark.long)])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with KINDS[request.param](monkeypatch) as bucket:
        without_waiting(monkeypatch)
        yield bucket


def table(out: str, name: str) -> pd.DataFrame:
    found = pd.read_parquet(io.BytesIO(storage.read_bytes(storage.join(out, name))))
    return found.drop(columns=["seconds", "source"], errors="ignore")


def steps(chorus: Chorus, place: str) -> None:
    """Files to OME-Zarr, predict, objects, evaluate and export, all in and into `place`."""

    def done(*arguments: str) -> None:
        result = chorus(*arguments)
        assert result.code == 0, result.err

    serial = ("--executor", "serial")
    done("convert", f"{place}/files", "--out", f"{place}/zarr", "--region", "64", "--chunk", "32", *serial)
    predict = ("predict", f"{place}/zarr", "-e", f"{place}/ensemble/ensemble.yaml", "-o", f"{place}/out")
    done(*predict, "--region", "64", "--chunk", "32", "--augment", "none", *serial)
    done("objects", f"{place}/out", "--method", "components", *serial)
    done("evaluate", f"{place}/out", "--truth", f"{place}/truth", *serial)
    done("export", "tables", f"{place}/out", "--out", f"{place}/tables")
    done("export", "rois", f"{place}/out", "--out", f"{place}/rois", *serial)
    done("rank", f"{place}/out")


def test_every_command_works_in_a_bucket_as_on_a_disk(chorus: Chorus, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "truth").mkdir()
    for number in range(2):
        image = pixels((96, 80), seed=number)
        tifffile.imwrite(tmp_path / f"files/{number}.tif", image)
        tifffile.imwrite(tmp_path / f"truth/{number}.tif", label(image > 600).astype(np.uint16))
    write_light_ensemble(tmp_path / "ensemble", members=2, width=4)
    for folder in ("files", "truth", "ensemble"):
        bucket.put(tmp_path / folder, folder)
    steps(chorus, str(tmp_path))
    steps(chorus, bucket.url)
    for name in ("scores.parquet", "objects.parquet", "evaluation.parquet"):
        here, there = table(f"{tmp_path}/out", name), table(f"{bucket.url}/out", name)
        pd.testing.assert_frame_equal(here, there)
        assert len(here)
    for folder in ("zarr", "out/images", "rois"):
        stored = bucket.objects(folder)
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        ours = {path.relative_to(tmp_path / folder).as_posix(): path.read_bytes() for path in files}
        for told in ("run.json", "run.lock", "export.json"):  # times and places
            ours.pop(told, None)
            stored.pop(told, None)
        assert sorted(ours) == sorted(stored), folder
        for path in ours.keys() - {path for path in ours if path.startswith("ledger") or path.endswith(".zip")}:
            assert ours[path] == stored[path], path
