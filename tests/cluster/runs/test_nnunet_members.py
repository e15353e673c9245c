"""Runs with folders that nnU-Net trained: the same bytes however an image is cut, and nnU-Net's padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chorus.pipeline.ensembles.creation import Wanted
from chorus.pipeline.ensembles.editing import add
from tests.support.making import pixels, write_image
from tests.support.nnunet_folders import plans_of, write_folder
from tests.support.runs import assert_same_results, run

CUTS: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {
    2: ({"region": 128}, {"region": 64, "chunk": 32, "batch": 3}),
    3: ({"region": 128, "region_depth": 16}, {"region": 64, "chunk": 32, "region_depth": 4, "chunk_depth": 2}),
}


@pytest.mark.parametrize(
    ("axes", "scheme", "masked"),
    [(2, "ZScoreNormalization", True), (2, "RescaleTo01Normalization", False), (3, "ZScoreNormalization", False)],
)
def test_results_do_not_depend_on_how_an_image_with_black_margins_is_cut(
    axes: int, scheme: str, masked: bool, tmp_path: Path
) -> None:
    plans = plans_of(axes, [scheme], masked=masked)
    folder = write_folder(tmp_path / "trained", axes=axes, mirroring=(axes - 1,), plans=plans)
    ensemble = add(str(tmp_path / "ensemble"), [str(folder)], Wanted()).ensemble
    data = pixels((5, 80, 70))
    data[0] = data[:, :9] = data[:, :, 60:] = 0
    image = write_image(tmp_path / "v.ome.zarr", data, "zyx", pixel_size=0.5, depth=2.0)
    for out, cut in zip(("whole", "cut"), CUTS[axes], strict=True):
        run(image, Path(ensemble.folder), tmp_path / out, **cut)
    assert_same_results(tmp_path / "whole", tmp_path / "cut")
    assert ensemble.spec.input.padding == "zero"
    assert np.count_nonzero(data[0]) == 0
