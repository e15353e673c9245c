"""What ``chorus objects`` refuses before any work, and what it takes from the ensemble."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.request import ObjectsRequest
from chorus.pipeline.errors import RefusedError
from tests.support.object_runs import run, write_ensemble, write_results, write_source

PLANES = {"a": np.zeros((100, 80), np.int32)}


def test_what_objects_cannot_be_made_of_is_refused(tmp_path: Path) -> None:
    source, ensemble = write_source(tmp_path / "in", PLANES), write_ensemble(tmp_path / "e")
    with pytest.raises(RefusedError, match="no results of Chorus"):
        run(tmp_path / "nothing")
    out = write_results(tmp_path / "no-flows", source, ensemble, PLANES, save=["probability"], unfinished=tuple(PLANES))
    with pytest.raises(RefusedError, match=r"holds no flows; .*--objects flows .*--method watershed or components"):
        run(out, method="flows")
    with pytest.raises(RefusedError, match="--flow-error: objects by watershed have no flows"):
        run(out, flow_error=0.4)
    multilabel = write_ensemble(tmp_path / "multi", classes=3, activation="sigmoid")
    out = write_results(tmp_path / "no-p", source, multilabel, PLANES, save=["flows"], unfinished=tuple(PLANES))
    with pytest.raises(RefusedError, match="holds no probability"):
        run(out)
    out = write_results(tmp_path / "in-place", source, ensemble, PLANES, in_place=True, unfinished=tuple(PLANES))
    with pytest.raises(RefusedError, match="without --in-place"):
        run(out)
    other = write_ensemble(tmp_path / "other")
    out = write_results(tmp_path / "changed", source, other, PLANES, unfinished=tuple(PLANES))
    write_ensemble(tmp_path / "other", name="another")
    with pytest.raises(RefusedError, match=r"changed since .* was made with it"):
        run(out)


def test_the_diameter_is_the_ensembles_on_the_pixels_of_the_image(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", PLANES)
    norm = {"kind": "mean_std", "mean": [500.0], "std": [300.0]}
    entry = {"channels": ["dna"], "normalisation": norm}

    def diameter(name: str, requested: float | None = None, **content: Any) -> float:
        ensemble = write_ensemble(tmp_path / name, **content)
        run_diameter = 60.0 if "diameter_px" in content.get("input", {}) else None
        out = write_results(tmp_path / f"out-{name}", source, ensemble, PLANES, diameter=run_diameter)
        return Results(ObjectsRequest(out=str(out), diameter=requested)).job(0).settings.diameter

    trained = {"images": 3, "object_diameter_px": {"median": 22.0}}
    assert diameter("plain", input=entry) == 30.0
    assert diameter("trained", input=entry, about={"training": trained}) == 22.0
    assert diameter("scaled", input=entry | {"diameter_px": 15.0}) == 60.0
    assert diameter("asked", 44.0, input=entry) == 44.0


def test_a_threshold_of_the_cell_probability_decides_the_foreground_in_place_of_the_labels(tmp_path: Path) -> None:
    plane = np.zeros((100, 80), np.int32)
    plane[10:30, 10:40], plane[60:90, 20:50] = 1, 2
    planes = {"a": plane}
    source, ensemble = write_source(tmp_path / "in", planes), write_ensemble(tmp_path / "e")
    out = write_results(tmp_path / "out", source, ensemble, planes)  # probabilities are 0.75 and 0.25: logits +-1.1
    found = {
        threshold: next(iter(run(out, method="components", cellprob_threshold=threshold).summary.objects.values()))
        for threshold in (None, 1.0, 1.2, -1.2)
    }
    assert found == {None: 2, 1.0: 2, 1.2: 0, -1.2: 1}
    for asked in ({"cellprob_threshold": math.log(3)}, {"foreground_threshold": 0.75}):
        record = Results(ObjectsRequest(out=str(out), **asked)).record.settings
        assert record.model_dump()["foreground_threshold"] == pytest.approx(0.75)
    assert "foreground_threshold" not in Results(ObjectsRequest(out=str(out))).record.settings.model_dump()
    bare = write_results(tmp_path / "bare", source, ensemble, planes, save=["flows"], unfinished=tuple(planes))
    with pytest.raises(RefusedError, match="holds no probability"):
        run(bare, cellprob_threshold=0.0)
