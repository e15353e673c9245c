"""Whole runs on other backends: near PyTorch's results, the same bytes for any cut, and what a rerun takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from chorus.cluster.state.results import finished_run
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.errors import RefusedError
from tests.support.making import pixels, write_image
from tests.support.runs import PER_CUT, arrays, start

BACKENDS = ["openvino", *(pytest.param(name, marks=pytest.mark.long) for name in ("inductor", "onnxruntime"))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("source") / "image.zarr", pixels((150, 170)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_near_those_of_pytorch_and_do_not_depend_on_the_regions(
    backend: Backend, source: Path, ensemble_url: str, tmp_path: Path
) -> None:
    settings = {"dtype": "float32", "backend": backend}
    for name, options in {"plain": {"dtype": "float32"}, "whole": {"region": 256} | settings, "cut": settings}.items():
        assert start(source, Path(ensemble_url), tmp_path / name, **options).state == "complete"
    assert arrays(tmp_path / "whole") == arrays(tmp_path / "cut")
    whole, cut = (read_scores(str(tmp_path / name)).drop(columns=PER_CUT) for name in ("whole", "cut"))
    assert whole.equals(cut)
    plain, other = (zarr.open_array(tmp_path / name / "images" / "image.ome.zarr" / "s0") for name in ("plain", "cut"))
    np.testing.assert_allclose(other[:], plain[:], rtol=0, atol=1e-5)
    assert finished_run(str(tmp_path / "cut")).settings.content["backend"] == backend


def test_a_rerun_takes_the_backend_of_its_output_whatever_was_measured_since(
    source: Path, ensemble_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ensemble = tmp_path / "out", Path(ensemble_url)
    assert start(source, ensemble, out).state == "complete"
    monkeypatch.setattr("chorus.cluster.planning.resolved_settings.choose", lambda *_: ("openvino", 2))
    assert start(source, ensemble, out).state == "complete"
    assert finished_run(str(out)).settings.content["backend"] == "eager"
    with pytest.raises(RefusedError, match="backend was eager, now openvino"):
        start(source, ensemble, out, backend="openvino")
    assert start(source, ensemble, tmp_path / "new").state == "complete"
    new = finished_run(str(tmp_path / "new")).settings.content
    assert (new["backend"], new["batch"]) == ("openvino", 2)
