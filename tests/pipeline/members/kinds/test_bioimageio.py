"""BioImage.IO packages as members: their own processing on Chorus's tiles, against bioimageio.core."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("bioimageio.core")

from bioimageio.spec import save_bioimageio_package

from chorus.pipeline.core.outputs import Outputs, classes_of, rays_of
from chorus.pipeline.ensembles.ensemble import check_answer, read_ensemble
from chorus.pipeline.members.kinds.bioimageio import package as bioimageio_package
from chorus.pipeline.members.kinds.bioimageio.description import describe
from chorus.pipeline.members.kinds.bioimageio.package import open_package
from chorus.pipeline.members.kinds.bioimageio.processing import preparation
from chorus.pipeline.members.kinds.bioimageio.shapes import nearest_tile
from chorus.pipeline.members.outputs import RaysOutput, StarThresholds
from chorus.pipeline.preprocessing.preparation import Measure
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
    assert [entry.role for entry in described.outputs] == ["classes", "flows"]
    assert (described.activation, described.classes) == ("sigmoid", ["background", "cell"])
    tiles = torch.rand((1, 1, 64, 64))
    got = described.entry.load(asked(folder, outputs=1, flows=True), CPU)(tiles)
    torch.manual_seed(0)
    plain = entry(folder, channels=(0, 1, 2)).load(asked(folder, outputs=1, flows=True), CPU)(tiles)
    assert torch.equal(got, plain[:, [2, 0, 1]])
    refusal(folder, "labels: cellpose_flow_dynamics joins pixels")


def test_rays_are_taken_before_stardist_makes_objects_of_them(tmp_path: Path) -> None:
    kwargs = {"prob_threshold": 0.45, "nms_threshold": 0.3, "n_rays": 8, "grid": [2, 2], "b": 2}
    steps = [{"id": "stardist_postprocessing", "kwargs": kwargs}]
    outputs = [{"id": "labels", "axes": reference("raw", 1), "postprocessing": steps}]
    module = Net(classes=9)
    folder = write_package(tmp_path / "p", module=module, outputs=outputs)
    described = describe(str(folder))
    classes, rays = described.outputs
    assert (classes.role, described.activation, described.classes) == ("classes", "none", ["background", "cell"])
    thresholds = StarThresholds(prob_threshold=0.45, nms_threshold=0.3)
    assert rays == RaysOutput(role="rays", channels=8, grid=(2, 2), objects=thresholds)
    both = Outputs((classes_of(["cell"], "none"), rays_of(8, (0.0, 64.0))))
    tiles = torch.rand((1, 1, 64, 64))
    got = described.entry.load(replace(asked(folder), outputs=both), CPU)(tiles)
    torch.testing.assert_close(got, module(tiles))
    refusal(folder, "labels: stardist_postprocessing joins pixels")


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
