"""BioImage.IO packages as members: their own processing on Chorus's tiles, against bioimageio.core."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("bioimageio.core")

from bioimageio.core import Sample, Tensor, load_model_description
from bioimageio.core.proc_setup import get_pre_and_postprocessing
from bioimageio.spec import save_bioimageio_package

from pipeline.ensemble import check_answer, read_ensemble
from pipeline.members import bioimageio_package
from pipeline.members.bioimageio_description import describe
from pipeline.members.bioimageio_package import open_package
from pipeline.members.bioimageio_processing import PackagePreparation, preparation
from pipeline.members.bioimageio_shapes import nearest_tile
from pipeline.members.contract import Member
from pipeline.preparation import ALL_CHANNELS, Measure, Survey
from tests.packages import (
    CPU,
    Net,
    asked,
    axes,
    bare,
    core_prediction,
    entry,
    pixels_of,
    reference,
    refusal,
    write_package,
)

FORMATS = ("pytorch_state_dict", "torchscript", "onnx")


@pytest.fixture(autouse=True, scope="module")
def _few_objects_to_collect() -> Iterator[None]:
    """Core collects garbage after each prediction, which takes a second where all libraries are looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


def prepared(preparation: PackagePreparation, raw: np.ndarray) -> np.ndarray:
    survey = Survey.begin(preparation.measures, len(raw), raw.dtype)
    while not survey.complete:
        survey.update(raw)
        survey = survey.conclude()
    return preparation.apply(raw, survey.found)


def answer(member: Member, preparation: PackagePreparation, raw: np.ndarray) -> np.ndarray:
    """What the member says of (channels, y, x) raw pixels that are one tile."""
    with torch.inference_mode():
        return member(torch.from_numpy(prepared(preparation, raw))[None])[0].numpy()


# ---------------------------------------------------------------- real packages


@pytest.mark.parametrize(
    ("name", "format", "output", "within"),
    [
        ("unet2d_nuclei_broad", "torchscript", None, 1e-5),
        ("unet2d_nuclei_broad", "onnx", None, 1e-5),
        ("unet2d_multi_tensor", None, "output0", 1e-5),
        ("unet2d_multi_tensor", "torchscript", "output1", 1e-5),
    ],
)
def test_a_real_package_gives_its_own_test_output(
    name: str, format: str | None, output: str | None, within: float, shared_data: Path
) -> None:
    folder = shared_data / "models" / name
    raw = np.concatenate([np.load(path)[0] for path in sorted(folder.glob("test_input*.npy"))])
    expected = np.load(folder / ("test_output.npy" if output is None else f"test_output_{output[-1]}.npy"))[0]
    member, question = entry(folder, format=format, output=output), asked(folder, channels=len(raw), tile=raw.shape[-1])
    got = answer(member.load(question, CPU), member.preparation(question), raw)
    np.testing.assert_allclose(got, expected, atol=within, rtol=0)


@pytest.mark.parametrize(
    ("name", "file"), [("unet2d_fixed_shape", "unet.py"), ("unet2d_diff_output_shape", "resize_unet.py")]
)
def test_a_real_package_without_its_code_is_refused(name: str, file: str, shared_data: Path) -> None:
    refusal(shared_data / "models" / name, f"{file} is missing from the package", make=bare, trust_code=True, tile=256)


def test_a_real_package_of_an_older_format_is_described_by_its_axes(shared_data: Path) -> None:
    package = open_package(str(shared_data / "models" / "unet2d_fixed_shape"))
    assert package.halo == 8
    assert nearest_tile(package.description.inputs, 500) == 256
    assert preparation("", package.description.inputs).measures == {Measure("mean", 0), Measure("std", 0)}


# ---------------------------------------------------------------- against bioimageio.core


@pytest.mark.parametrize("format", FORMATS)
def test_a_tile_is_what_core_predicts_of_it(format: str, tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    kwargs = {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8], "encoder_weights": None}
    torch.manual_seed(0)
    # A U-Net takes long to export, so the other formats are of a single convolution.
    module = smp.Unet(in_channels=1, classes=2, **kwargs) if format == "pytorch_state_dict" else Net()
    folder = write_package(
        tmp_path / "p",
        module=module,
        formats=(format,),
        architecture={
            "import_from": "segmentation_models_pytorch",
            "callable": "Unet",
            "kwargs": kwargs | {"in_channels": 1, "classes": 2},
        },
        inputs=[
            {
                "id": "raw",
                "axes": axes({"min": 32, "step": 32}),
                "data": {"type": "float32"},
                "preprocessing": [
                    {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "y", "x"]}},
                    {"id": "clip", "kwargs": {"min": -2.0, "max": 2.5}},
                ],
            }
        ],
        outputs=[
            {
                "id": "mask",
                "axes": reference("raw", 2),
                "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}}],
            }
        ],
    )
    raw = pixels_of({"axes": axes(0)}, 64, seed=5)
    expected = core_prediction(folder, format, {"raw": raw}, "mask")
    member = entry(folder, format=format)
    got = answer(member.load(asked(folder), CPU), member.preparation(asked(folder)), raw[0])
    np.testing.assert_allclose(got, expected[0], atol=1e-5, rtol=0)
    assert np.abs(expected - 0.5).max() > 0.01  # it says something


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


# ---------------------------------------------------------------- tensors of other shapes


class Turned(torch.nn.Module):
    """Takes and gives (batch, y, x, time, channel)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(2)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.net(tiles.squeeze(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unsqueeze(3)


def test_axes_may_have_another_order(tmp_path: Path) -> None:
    inputs = [{"id": "raw", "axes": axes({"min": 16, "step": 16}, 2, "byxtc")}]
    outputs = [{"id": "mask", "axes": reference("raw", 2, "byxtc")}]
    folder = write_package(tmp_path / "p", module=Turned(), inputs=inputs, outputs=outputs)
    raw = pixels_of(inputs[0], 64)
    member, question = entry(folder), asked(folder, channels=2)
    got = answer(member.load(question, CPU), member.preparation(question), raw[0, :, :, 0].transpose(2, 0, 1))
    expected = core_prediction(folder, "torchscript", {"raw": raw}, "mask")[0, :, :, 0].transpose(2, 0, 1)
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=1e-5)


class Plane(torch.nn.Module):
    """One tile a time: takes and gives (y, x)."""

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        return tile * 2 + 1


def test_a_package_without_batch_gets_tile_after_tile(tmp_path: Path) -> None:
    inputs = [{"id": "raw", "axes": axes(64, 1, "yx")}]
    outputs = [{"id": "mask", "axes": reference("raw", 1, "yx")}]
    folder = write_package(tmp_path / "p", module=Plane(), inputs=inputs, outputs=outputs)
    tiles = torch.rand((3, 1, 64, 64))
    assert torch.equal(entry(folder).load(asked(folder), CPU)(tiles), tiles * 2 + 1)


def test_an_output_of_half_the_size_is_brought_to_the_tile(tmp_path: Path) -> None:
    module = Net(scale=0.5)
    folder = write_package(
        tmp_path / "p", module=module, outputs=[{"id": "mask", "axes": reference("raw", 2, scale=2.0)}]
    )
    tiles = torch.rand((2, 1, 64, 64))
    with torch.inference_mode():
        got, small = entry(folder).load(asked(folder), CPU)(tiles), module(tiles)
    assert got.shape == (2, 2, 64, 64)
    # Each pair of pixels has the mean of its small pixel's neighbourhood: away from rims, weights 9, 3, 3, 1 of 16.
    y, x = small[:, :, 4:6, 4:6], got[:, :, 9, 9]
    torch.testing.assert_close(x, (9 * y[..., 0, 0] + 3 * y[..., 0, 1] + 3 * y[..., 1, 0] + y[..., 1, 1]) / 16)


def test_output_and_channels_are_chosen(tmp_path: Path) -> None:
    outputs = [{"id": name, "axes": reference("raw", 2)} for name in ("first", "second")]
    folder = write_package(tmp_path / "p", module=Net(outputs=2), outputs=outputs)
    tiles = torch.rand((1, 1, 64, 64))
    default, chosen, part = (
        entry(folder, **fields).load(asked(folder), CPU)(tiles)
        for fields in ({}, {"output": "second"}, {"output": "second", "channels": (1,)})
    )
    assert torch.equal(chosen, 2 * default)
    assert torch.equal(part, chosen[:, 1:])
    refusal(folder, "has no output 'third'", "first, second", output="third")
    refusal(folder, "channels 0 to 1", selection=(2,))


def test_flows_are_taken_before_the_dynamics_of_cellpose(tmp_path: Path) -> None:
    steps = [
        {"id": "cellpose_flow_dynamics", "kwargs": {"cellprob_threshold": 0.0, "flow_threshold": 0.4, "do_3D": False}}
    ]
    outputs = [{"id": "labels", "axes": reference("raw", 1), "postprocessing": steps}]
    folder = write_package(tmp_path / "p", module=Net(classes=3), outputs=outputs)
    described = describe(str(folder))
    assert (described.flows, described.activation, described.classes) == (True, "sigmoid", ["background", "cell"])
    tiles = torch.rand((1, 1, 64, 64))
    got = described.entry.load(asked(folder, outputs=1, flows=True), CPU)(tiles)
    torch.manual_seed(0)
    plain = entry(folder, channels=(0, 1, 2)).load(asked(folder, outputs=1, flows=True), CPU)(tiles)
    assert torch.equal(got, plain[:, [2, 0, 1]])
    refusal(folder, "labels: cellpose_flow_dynamics joins pixels")


# ---------------------------------------------------------------- where packages lie


def test_a_folder_a_zip_and_a_bucket_are_the_same_package(tmp_path: Path) -> None:
    import fsspec

    folder = write_package(tmp_path / "p")
    archive = save_bioimageio_package(folder / "rdf.yaml", output_path=tmp_path / "p.zip")
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/packages/p/{file.name}": file.read_bytes() for file in folder.iterdir()})
    memory.pipe("/packages/p.zip", Path(archive).read_bytes())
    tiles = torch.rand((1, 1, 64, 64))
    urls = [folder, folder / "rdf.yaml", archive, "memory://packages/p", "memory://packages/p.zip"]
    answers = [entry(str(url)).load(asked(url), CPU)(tiles) for url in urls]
    assert all(torch.equal(answers[0], other) for other in answers)


def test_an_id_is_looked_up_in_the_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bioimageio.spec.utils as library

    folder, asked_for = write_package(tmp_path / "p"), []
    original = library.open_bioimageio_yaml

    def lookup(source: Any) -> Any:
        asked_for.append(source)
        return original(folder)

    monkeypatch.setattr(library, "open_bioimageio_yaml", lookup)
    assert open_package(str(tmp_path / "affable-shark"), "affable-shark").description.name == "small net"
    assert asked_for == ["affable-shark"]


def test_the_hash_is_of_the_rdf_and_the_weights_alone(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p")
    member = entry(folder)
    (folder / "test_raw.npy").write_bytes(b"")
    assert entry(folder).sha256 == member.sha256
    refusal(folder, f"add `sha256: {member.sha256}`", sha256=None)
    rdf = folder / "rdf.yaml"
    rdf.write_text(rdf.read_text().replace("for tests", "for more"))
    refusal(folder, "ensemble.yaml says", str(member.sha256), sha256=member.sha256)


def test_weights_that_the_rdf_does_not_mean_are_refused(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p")
    file = folder / "weights-torchscript"
    file.write_bytes(file.read_bytes() + b"x")
    refusal(folder, "weights-torchscript cannot be read (SHA256 mismatch", make=bare)


# ---------------------------------------------------------------- as a part of an ensemble


def test_a_package_says_what_an_ensemble_needs_to_know(tmp_path: Path) -> None:
    size = {"min": 32, "step": 16}
    space = {"unit": "nanometer", "scale": 325.0}
    inputs = [{"id": "raw", "axes": [axis | space if "size" in axis else axis for axis in axes(size)]}]
    names = {"type": "channel", "channel_names": ["nucleus"]}
    out = reference("raw", 1, unit="nanometer", scale=325.0, halo=8)
    outputs = [{"id": "mask", "axes": [out[0], names, *out[2:]], "postprocessing": [{"id": "sigmoid"}]}]
    folder = write_package(
        tmp_path / "p",
        module=Net(classes=1),
        inputs=inputs,
        outputs=outputs,
        training_data={"id": "powerful-chipmunk"},
    )
    found = describe(str(folder))
    assert (found.name, found.channels, found.classes) == ("small net", ["c0"], ["background", "nucleus"])
    assert (found.activation, found.tile, found.pixel_size_um, found.normalisation) == ("none", 64, 0.325, None)
    assert (found.about.licence, found.about.authors[0].name) == ("MIT", "Ada")
    assert (found.about.cite[0].doi, found.about.data[0].name) == (
        "10.1007/978-3-319-24574-4_28",
        "powerful-chipmunk",
    )
    assert "halo of 8 pixels" in found.about.limits
    found.entry.load(asked(folder, outputs=1), CPU)


def test_a_package_serves_in_an_ensemble_of_two_classes(tmp_path: Path) -> None:
    outputs = [{"id": "mask", "axes": reference("raw", 1), "postprocessing": [{"id": "sigmoid"}]}]
    write_package(tmp_path / "package", module=Net(classes=1), outputs=outputs)
    member = describe(str(tmp_path / "package")).entry
    content = {
        "format": "chorus-ensemble/2",
        "name": "mixed",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": ["dna"], "normalisation": {"kind": "none"}},
        "tile": 64,
        "members": [member.model_dump(mode="json", exclude_none=True) | {"weights": "package"}],
    }
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(content))
    ensemble = read_ensemble(str(tmp_path))
    check_answer(ensemble, 0, ensemble.load_member(0, CPU), 64, CPU)


def test_without_bioimageio_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_package(tmp_path / "p")
    monkeypatch.setitem(sys.modules, "bioimageio.spec", None)
    refusal(folder, bioimageio_package.EXTRA, make=bare)
