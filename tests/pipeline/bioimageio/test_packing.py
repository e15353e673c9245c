"""Packages that are written are valid BioImage.IO packages, judged by bioimageio.core itself."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from safetensors.torch import save_file

from chorus.pipeline.bioimageio.conformance import PackageTest, check_package
from chorus.pipeline.bioimageio.export import pack_members, pack_whole
from chorus.pipeline.core.provenance import About
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest
from chorus.pipeline.members.kinds.bioimageio.member import BioimageioMember
from chorus.pipeline.members.kinds.bioimageio.package import open_package, weight_files
from chorus.pipeline.preprocessing.normalisation import NormalisedInput
from chorus.pipeline.preprocessing.preparation import Preparation, surveyed
from tests.support.engines import outputs_of
from tests.support.making import pixels, scripted, write_ensemble, write_light_ensemble

pytest.importorskip("bioimageio.core")

ABOUT: dict[str, Any] = {
    "description": "Nuclei.",
    "licence": "MIT",
    "authors": [{"name": "A. Tester", "affiliation": "Nowhere"}],
    "cite": [{"text": "A paper", "doi": "10.1234/abcd"}],
    "data": [{"name": "Made up", "url": "https://example.com/data", "licence": "CC0-1.0", "images": 3}],
    "scores": {"made up": {"dice": 0.5}},
}
SMALL = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
CPU = torch.device("cpu")


def small_network(seed: int, outputs: int) -> torch.nn.Module:
    """Few enough layers that its export to ONNX takes seconds."""
    torch.manual_seed(seed)
    module = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=outputs, **SMALL)
    with torch.no_grad():
        module.segmentation_head[0].weight.mul_(10)
    return module.eval()


def small_ensemble(folder: Path) -> Ensemble:
    """Two networks, three classes, percentiles, a pixel size."""
    folder.mkdir()
    entries = []
    for seed in range(2):
        path = folder / f"member-{seed}.safetensors"
        save_file({k: v.contiguous() for k, v in small_network(seed, 3).state_dict().items()}, path)
        entry = {"kind": "smp", "architecture": "Unet", "encoder": "resnet18", "options": SMALL, "weights": path.name}
        entries.append(entry | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    content = yaml.safe_load(write_ensemble(folder / "other", members=1, classes=3).read_text())
    content |= {"name": "nuclei, small", "members": entries, "about": ABOUT, "format": "chorus-ensemble/2"}
    content["input"] |= {"normalisation": {"kind": "percentile", "low": 1, "high": 99.8}, "pixel_size_um": 0.5}
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return read_ensemble(str(folder))


@dataclass
class Packages:
    ensemble: Ensemble
    member: Path
    whole: Path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A packed member and a packed ensemble."""
    ensemble = small_ensemble(tmp_path_factory.mktemp("pack") / "ensemble")
    out = tmp_path_factory.mktemp("packages")
    (member,) = pack_members(ensemble, ensemble.spec.about, out, [1])
    return Packages(ensemble, member, pack_whole(ensemble, ensemble.spec.about, out))


def prepared(preparation: Preparation, raw: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(preparation.apply(raw, surveyed(preparation.measures, [raw])))[None]


@pytest.mark.parametrize("which", ["member", "whole"])
def test_bioimageio_core_passes_every_weight_format_of_what_was_packed(packages: Packages, which: str) -> None:
    from bioimageio.core import test_model as tested

    summary = tested(getattr(packages, which))
    formats = {detail.loc[1] for detail in summary.details if detail.loc[:1] == ("weights",)}
    assert summary.status == "passed"
    assert formats == ({"pytorch_state_dict", "onnx"} if which == "member" else {"onnx"})


def test_the_command_bioimageio_test_passes(packages: Packages) -> None:
    command = [str(Path(sys.executable).with_name("bioimageio")), "test", str(packages.member), "--weight-format"]
    done = subprocess.run([*command, "pytorch_state_dict"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_packed_ensemble_answers_the_mean_of_its_members_probabilities(packages: Packages) -> None:
    with zipfile.ZipFile(packages.whole) as archive, archive.open("test-image.npy") as image:
        raw = np.load(image)[0].astype(np.float64)
        with archive.open("test-prediction.npy") as answer:
            given = np.load(answer)[0]
    low, high = np.percentile(raw, [1, 99.8])
    tile = torch.from_numpy((raw - low) / (high - low)).float()[None]
    with torch.inference_mode():
        expected = torch.stack([small_network(seed, 3)(tile).softmax(dim=1)[0] for seed in range(2)]).mean(dim=0)
    assert np.abs(given - expected.numpy()).max() < 1e-5
    assert np.ptp(given[1]) > 0.01


def test_a_packed_member_that_is_added_back_predicts_the_same(packages: Packages) -> None:
    ensemble, package = packages.ensemble, open_package(str(packages.member))
    raw = pixels((1, 64, 64), seed=3)
    original = ensemble.load_member(1, CPU)
    asked = LoadRequest(str(packages.member), 1, outputs_of(3), tile=64)
    for format in ("pytorch_state_dict", "onnx"):
        digest = weight_files(package, format).sha256(package)
        entry = BioimageioMember(kind="bioimageio", weights=asked.url, format=format, sha256=digest)
        back = entry.load(asked, CPU)
        assert back.activation == "none"
        with torch.inference_mode():
            expected = original(prepared(ensemble.inputs([1]).preparations[0], raw)).softmax(dim=1)
            given = back(prepared(entry.preparation(asked), raw))
        assert (given - expected).abs().max() < 1e-5


def test_a_package_says_where_it_comes_from(packages: Packages) -> None:
    description = open_package(str(packages.member)).description
    names = set(zipfile.ZipFile(packages.member).namelist())
    assert description.name == "nuclei  small member 1"
    assert (description.license, description.authors[0].name, description.cite[0].doi) == (
        "MIT", "A. Tester", "10.1234/abcd",
    )  # fmt: skip
    assert str(description.training_data.source) == "https://example.com/data"
    assert {axis.scale for axis in description.inputs[0].axes if axis.type == "space"} == {0.5}
    assert {"cover.png", "README.md", "sample-image.tif", "sample-prediction.tif"} <= names


def light(folder: Path, **changes: Any) -> Ensemble:
    path = write_light_ensemble(folder, members=1)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"about": ABOUT} | changes))
    return read_ensemble(str(path))


def packed_and_tested(ensemble: Ensemble, out: Path) -> PackageTest:
    (path,) = pack_members(ensemble, ensemble.spec.about, out, [0])
    return check_package(str(path))


@pytest.mark.parametrize(
    "entry",
    [
        {"normalisation": {"kind": "mean_std", "mean": [500.0], "std": [300.0]}},
        {"normalisation": {"kind": "mean_std", "mean": [0.11], "std": [0.16]}, "scale": "dtype"},
        pytest.param({"normalisation": {"kind": "mean_std", "mean": [0.11], "std": [0.16]}}, marks=pytest.mark.long),
        pytest.param({"normalisation": {"kind": "mean_std", "per": "image"}}, marks=pytest.mark.long),
        {"normalisation": {"kind": "percentile", "low": 0, "high": 99}},
        pytest.param({"normalisation": {"kind": "none"}, "scale": "dtype"}, marks=pytest.mark.long),
    ],
)
def test_bioimageio_core_normalises_as_the_ensemble_does(tmp_path: Path, entry: dict[str, Any]) -> None:
    ensemble = light(tmp_path / "ensemble", format="chorus-ensemble/2", input={"channels": ["dna"], **entry})
    tested = packed_and_tested(ensemble, tmp_path / "out")
    (one,) = tested.formats
    assert (one.format, one.core.status, one.chorus.status) == ("torchscript", "passed", "passed")
    assert one.core.absolute is not None
    assert one.chorus.absolute is not None
    assert max(one.core.absolute, one.chorus.absolute) < 1e-5


class WithFlows(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return 3 * self.layer(tiles)


def test_flows_are_named_channels_without_postprocessing(tmp_path: Path) -> None:
    path = tmp_path / "ensemble" / "flows.pt"
    path.parent.mkdir()
    member = scripted(WithFlows(), path)
    ensemble = light(
        path.parent, format="chorus-ensemble/2", members=[member], activation="sigmoid", flows=True, name="flowing"
    )
    tested = packed_and_tested(ensemble, tmp_path / "out")
    output = open_package(tested.url).description.outputs[0]
    channel = next(axis for axis in output.axes if axis.type == "channel")
    assert tested.passed
    assert list(channel.channel_names) == ["logit:nucleus", "flow:y", "flow:x"]
    assert [str(step.id) for step in output.postprocessing] == ["ensure_dtype"]


def test_a_member_that_is_a_package_is_copied_byte_for_byte_and_an_onnx_file_is_packed(
    tmp_path: Path, packages: Packages
) -> None:
    package = open_package(str(packages.member))
    copied = {
        "kind": "bioimageio",
        "weights": str(packages.member),
        "sha256": weight_files(package, "pytorch_state_dict").sha256(package),
    }
    graph = zipfile.ZipFile(packages.member).read("weights.onnx")
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "m.onnx").write_bytes(graph)
    onnx = {"kind": "onnx", "weights": "m.onnx", "sha256": hashlib.sha256(graph).hexdigest()}
    classes = [{"name": name} for name in ("background", "a", "b")]
    ensemble = light(tmp_path / "ensemble", format="chorus-ensemble/2", members=[copied, onnx], classes=classes)
    first, second = pack_members(ensemble, ensemble.spec.about, tmp_path / "out", [0, 1])
    assert first.read_bytes() == packages.member.read_bytes()
    (one,) = check_package(str(second)).formats
    assert (one.format, one.status) == ("onnx", "passed"), (one.core.reason, one.chorus.reason)


def test_what_about_lacks_is_refused_by_name(tmp_path: Path) -> None:
    ensemble = read_ensemble(str(write_light_ensemble(tmp_path / "ensemble", members=1)))
    with pytest.raises(RefusedError, match=r"about lacks description, licence, authors, cite .* give --description"):
        pack_members(ensemble, About(licence=None), tmp_path / "out", [0])
    with pytest.raises(RefusedError, match=r"BioImage\.IO does not take its license"):
        pack_members(ensemble, About.model_validate(ABOUT | {"licence": "mine"}), tmp_path / "out", [0])
    assert not list((tmp_path / "out").glob("*"))


def test_members_that_no_package_can_hold_are_refused(tmp_path: Path) -> None:
    ensemble = light(tmp_path / "ensemble")
    with pytest.raises(RefusedError, match=r"member 0 is of kind torchscript, .* one by one"):
        pack_whole(ensemble, ensemble.spec.about, tmp_path / "out")
    entry = ensemble.spec.members[0].model_dump()
    chosen = light(tmp_path / "chosen", format="chorus-ensemble/2", members=[entry | {"channels": [1, 0]}])
    with pytest.raises(RefusedError, match="chooses an output, its channels or a layout"):
        pack_members(chosen, chosen.spec.about, tmp_path / "out", [0])
    cellpose = light(
        tmp_path / "cellpose",
        format="chorus-ensemble/2",
        members=[{"kind": "cellpose", "weights": "cpsam", "sha256": "0" * 64}],
    )
    with pytest.raises(RefusedError, match=r"is of kind cellpose, which cannot be a BioImage.IO package"):
        pack_members(cellpose, cellpose.spec.about, tmp_path / "out", [0])


def test_a_package_is_not_written_over(tmp_path: Path) -> None:
    ensemble = light(tmp_path / "ensemble")
    (path,) = pack_members(ensemble, ensemble.spec.about, tmp_path / "out", [0])
    with pytest.raises(RefusedError, match=f"{path.name}: is there already"):
        pack_members(ensemble, ensemble.spec.about, tmp_path / "out", [0])


def test_the_normalisation_that_is_packed_is_the_ensembles(packages: Packages) -> None:
    """Beside bioimageio.core's: `NormalisedInput` on an image with a much larger range."""
    entry = BioimageioMember(kind="bioimageio", weights=str(packages.member), format="onnx")
    raw = (pixels((1, 64, 64), seed=5).astype(np.uint32) * 60).astype(np.uint16)
    asked = LoadRequest(str(packages.member), 1, outputs_of(3), tile=64)
    own = NormalisedInput(packages.ensemble.spec.input.normalisation, 1)
    assert torch.allclose(prepared(entry.preparation(asked), raw), prepared(own, raw), atol=1e-6)
