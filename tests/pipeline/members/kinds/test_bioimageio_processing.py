"""Pre- and postprocessing of BioImage.IO packages on Chorus's tiles, against bioimageio.core."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("bioimageio.core")

from bioimageio.core import Sample, Tensor, load_model_description
from bioimageio.core.proc_setup import get_pre_and_postprocessing

from chorus.pipeline.preprocessing.preparation import ALL_CHANNELS, Measure
from tests.support.packages import (
    CPU,
    Net,
    answer,
    asked,
    axes,
    bare,
    core_prediction,
    entry,
    pixels_of,
    prepared,
    reference,
    refusal,
    write_package,
)

PER_IMAGE, PER_CHANNEL = {"axes": ["channel", "y", "x"]}, {"axes": ["y", "x"]}


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize(
    "steps",
    [
        [{"id": "zero_mean_unit_variance", "kwargs": PER_IMAGE}],
        [{"id": "zero_mean_unit_variance", "kwargs": PER_CHANNEL | {"eps": 0.01}}],
        [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["batch", "channel", "y", "x"]}}],
        [{"id": "scale_range", "kwargs": PER_CHANNEL | {"min_percentile": 1.5, "max_percentile": 99}}],
        [{"id": "scale_range", "kwargs": PER_IMAGE | {"min_percentile": 1.5, "max_percentile": 99}}],
        [{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [0.5, 2.0], "offset": [1.0, -3.0]}}],
        [{"id": "scale_linear", "kwargs": {"gain": 0.003}}, {"id": "sigmoid"}],
        [{"id": "scale_linear", "kwargs": {"gain": 0.003}}, {"id": "softmax"}],
        [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"axis": "channel", "mean": [9, 2.5], "std": [3, 0.5]}}],
        [{"id": "binarize", "kwargs": {"threshold": 400}}],
        # Statistics are of the raw pixels, whatever comes before the step that needs them.
        [{"id": "clip", "kwargs": {"min": 200, "max": 700}}, {"id": "zero_mean_unit_variance", "kwargs": PER_CHANNEL}],
    ],
    ids=lambda steps: "+".join(step["id"] for step in steps),
)
def test_preprocessing_is_what_core_does(steps: list[dict[str, Any]], dtype: str, tmp_path: Path) -> None:
    tensor = {"id": "raw", "axes": axes({"min": 16, "step": 16}, 2), "data": {"type": dtype}}
    ends = [{"id": "ensure_dtype", "kwargs": {"dtype": d}} for d in (dtype, "float32")]
    inputs = [tensor | {"preprocessing": [ends[0], *steps, ends[1]]}]
    folder = write_package(tmp_path / "p", module=Net(2), inputs=inputs)
    raw = pixels_of(tensor, 64, seed=3)
    description = load_model_description(folder, perform_io_checks=False, format_version="latest")
    sample = Sample(members={"raw": Tensor.from_numpy(raw, dims=["batch", "channel", "y", "x"])}, stat={}, id=None)
    before, _ = get_pre_and_postprocessing(description, dataset_for_initial_statistics=[sample])
    before(sample)
    got = prepared(bare(folder).preparation(asked(folder, channels=2)), raw[0])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, sample.members["raw"].data.values[0], atol=1e-5, rtol=1e-5)


def test_clipping_at_percentiles_is_within_a_gap_of_core(tmp_path: Path) -> None:
    kwargs = PER_CHANNEL | {"min_percentile": 5.0, "max_percentile": 95.0}
    tensor = {"id": "raw", "axes": axes({"min": 16, "step": 16}), "data": {"type": "float32"}}
    folder = write_package(tmp_path / "p", inputs=[tensor | {"preprocessing": [{"id": "clip", "kwargs": kwargs}]}])
    raw = pixels_of(tensor, 64)
    got = prepared(bare(folder).preparation(asked(folder)), raw[0])
    low, high = (np.quantile(raw, q, method="inverted_cdf") for q in (0.05, 0.95))
    ordered = np.sort(raw.ravel())
    gap = max(np.diff(ordered)[[k - 1, k, k + 1]].max() for k in (204, 3890))
    assert np.abs(got - np.clip(raw[0], low, high)).max() <= gap


def test_a_preparation_acts_on_pixels_alone_and_can_be_sent_and_compared(tmp_path: Path) -> None:
    steps = [{"id": "scale_range", "kwargs": PER_IMAGE | {"max_percentile": 99.0}}]
    tensor = {"id": "raw", "axes": axes({"min": 16, "step": 16}), "preprocessing": steps, "data": {"type": "uint16"}}
    folder = write_package(tmp_path / "p", inputs=[tensor])
    (folder / "weights-torchscript").unlink()
    first, second = (bare(folder, output=name).preparation(asked(folder)) for name in (None, "mask"))
    assert first == second == pickle.loads(pickle.dumps(first))
    assert hash(first) == hash(second)
    raw = np.random.default_rng(0).integers(0, 60000, (1, 700, 90), dtype=np.uint16)
    known = {Measure("percentile", 0, 0.0): 12.5, Measure("percentile", 0, 99.0): 50123.0}
    assert first.measures == known.keys()
    whole = first.apply(raw, known)
    assert np.array_equal(whole[:, 111:633, 7:], first.apply(raw[:, 111:633, 7:], known))


def test_channels_are_dealt_to_inputs_and_measured_there(tmp_path: Path) -> None:
    size = {"min": 16, "step": 16}
    step = {"id": "zero_mean_unit_variance", "kwargs": PER_IMAGE}
    inputs = [
        {"id": name, "axes": axes(size, count), "data": {"type": "float32"}, "preprocessing": [step]}
        for name, count in (("one", 1), ("two", 2))
    ]
    folder = write_package(tmp_path / "p", module=Net(3), inputs=inputs)
    raw = np.random.default_rng(0).gamma(2, [[[100]], [[10]], [[300]]], (3, 64, 64)).astype(np.float32)
    member, question = entry(folder), asked(folder, channels=3)
    got = answer(member.load(question, CPU), member.preparation(question), raw)
    expected = core_prediction(folder, "torchscript", {"one": raw[None, :1], "two": raw[None, 1:]}, "mask")
    np.testing.assert_allclose(got, expected[0], atol=1e-5)
    refusal(folder, "takes 3 channels (one, two)", "the ensemble has 2", channels=2)


def test_statistics_over_all_channels_are_measured_together(tmp_path: Path) -> None:
    step = {"id": "scale_range", "kwargs": {"axes": ["channel", "y", "x"]}}
    tensor = {"id": "raw", "axes": axes({"min": 16, "step": 16}, 2), "preprocessing": [step]}
    folder = write_package(tmp_path / "p", module=Net(2), inputs=[tensor])
    measures = bare(folder).preparation(asked(folder, channels=2)).measures
    assert measures == {Measure("percentile", ALL_CHANNELS, q) for q in (0.0, 100.0)}


POSTPROCESSING = [
    [{"id": "sigmoid"}, {"id": "binarize", "kwargs": {"threshold": 0.4}}],
    [{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [0.5, 2.0], "offset": [1.0, -3.0]}}],
    [{"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}],
    [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 3.0, "std": 2.0}}],
    [{"id": "softmax"}],
]


@pytest.mark.parametrize("steps", POSTPROCESSING, ids=lambda steps: "+".join(step["id"] for step in steps))
def test_postprocessing_is_what_core_does(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    linear = [{"id": "scale_linear", "kwargs": {"gain": 0.002, "offset": -0.5}}]
    inputs = [{"id": "raw", "axes": axes({"min": 16, "step": 16}), "preprocessing": linear}]
    outputs = [{"id": "mask", "axes": reference("raw", 2), "postprocessing": steps}]
    folder = write_package(tmp_path / "p", inputs=inputs, outputs=outputs)
    raw = pixels_of(inputs[0], 64, seed=7)
    member = entry(folder)
    got = answer(member.load(asked(folder), CPU), member.preparation(asked(folder)), raw[0])
    np.testing.assert_allclose(got, core_prediction(folder, "torchscript", {"raw": raw}, "mask")[0], atol=1e-5)
