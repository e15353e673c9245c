"""What was decided leaves the page: the annotation package and the exports of objects take those images alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from chorus.cluster.exports.annotation import export_annotation
from chorus.cluster.exports.outline_files import ExportRequest
from chorus.cluster.exports.outlines import IMAGES, export_objects
from chorus.cluster.exports.package import AnnotationRequest
from chorus.cluster.runtime.reporting import Silent
from chorus.commands.everyday.export import _only
from chorus.pipeline.errors import RefusedError
from chorus.serving.review.run import ReviewedRun
from tests.support.object_runs import drawn
from tests.support.reviews import write_object_run

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with objects, of which two are to be corrected, one is accepted and one is open."""
    planes = {name: drawn(seed, 60, 70, 6) for seed, name in enumerate(NAMES)}
    out = write_object_run(tmp_path_factory.mktemp("made"), planes)
    log = ReviewedRun(str(out)).log
    for name, decision in (("a", "correct-later"), ("c", "correct-later"), ("d", "accept")):
        log.decide("ann", f"{name}.ome.zarr", decision)  # type: ignore[arg-type]
    return out


def test_the_annotation_package_holds_all_that_is_to_be_corrected(results: Path, tmp_path: Path) -> None:
    only = _only(str(results), "correct-later")
    request = AnnotationRequest(out=str(results), to=str(tmp_path / "to"), only=only)
    assert export_annotation(request, Silent()).state == "complete"
    assert list(pd.read_csv(tmp_path / "to" / "package.csv")["name"]) == ["c.ome.zarr", "a.ome.zarr"]  # the worst first
    assert sorted(path.name for path in (tmp_path / "to" / "labels").iterdir()) == ["a.tif", "c.tif"]


def test_objects_of_accepted_images_alone_are_exported(results: Path, tmp_path: Path) -> None:
    request = ExportRequest(out=str(results), to=str(tmp_path / "to"), kind="rois", executor="serial")
    assert export_objects(request, Silent(), _only(str(results), "accept")).state == "complete"
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["d.zip", "export.json", IMAGES]


def test_a_decision_that_nobody_took_is_said(results: Path) -> None:
    assert _only(str(results), None) is None
    with pytest.raises(RefusedError, match="no image is decided 'reject'; decide some with `chorus review"):
        _only(str(results), "reject")
