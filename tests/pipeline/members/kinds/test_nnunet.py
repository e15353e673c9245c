"""Folders that nnU-Net trained: read without running code, prepared and answered as nnU-Net does."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from benchmarks.interop.nnunet import on_patches, trained
from chorus.pipeline.ensembles.creation import Wanted
from chorus.pipeline.ensembles.editing import Edited, add, remove
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.members.kinds.nnunet.member import NnunetMember, describe
from chorus.pipeline.preprocessing.preparation import surveyed
from tests.support.nnunet_folders import LABELS, architecture, built, plans_of, write_folder
from tests.support.paths import SHARED

CPU = torch.device("cpu")
ORACLES = SHARED / "interop"
needs_oracles = pytest.mark.skipif(not ORACLES.is_dir(), reason="no shared/interop beside the checkout")


def added(folder: Path, tmp_path: Path, **wanted: Any) -> Edited:
    return add(str(tmp_path / "mine"), [str(folder)], Wanted(**wanted))


def refusal(folder: Path, tmp_path: Path, *names: str, **wanted: Any) -> None:
    with pytest.raises(RefusedError) as caught:
        added(folder, tmp_path, **wanted)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in names), message
    assert not (tmp_path / "mine").exists()


def prepared(folder: Path, image: NDArray[Any]) -> NDArray[np.float32]:
    """(channels, z, y, x) as a worker prepares it plane by plane."""
    (described, *_) = describe(str(folder))
    assert isinstance(described.entry, NnunetMember)
    ensemble = add(str(folder.parent / "own"), [str(folder)], Wanted()).ensemble
    (preparation,) = ensemble.all_inputs.preparations
    planes = [image[:, z] for z in range(image.shape[1])]
    statistics = surveyed(preparation.measures, planes)
    return np.stack([preparation.apply(plane, statistics) for plane in planes], axis=1)


def volume(channels: int = 1, seed: int = 0) -> NDArray[np.uint16]:
    """With zero margins of different widths, and single pixels that are 0 in all channels at the box's border."""
    image = np.zeros((channels, 5, 24, 20), np.uint16)
    image[:, 1:4, 3:20, 5:18] = np.random.default_rng(seed).integers(1, 200, (channels, 3, 17, 13))
    image[:, 1, 3, 5:9] = 0
    return image


def by_nnunet(image: NDArray[Any], scheme: str, *, masked: bool) -> NDArray[np.float32]:
    """`default_normalization_schemes.py` on the crop of `cropping.py`, put back where it was."""
    mask = binary_fill_holes((image != 0).any(axis=0))
    box = tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(mask))
    whole = image.astype(np.float32)
    for channel in range(len(image)):
        x = whole[channel][box].copy()
        inside = mask[box] if masked else np.ones(x.shape, bool)
        match scheme:
            case "ZScoreNormalization":
                mean, std = x[inside].mean(dtype=np.float64), x[inside].std(dtype=np.float64)
                x[inside] = (x[inside] - mean) / max(std, 1e-8)
            case "CTNormalization":
                x = (np.clip(x, 20, 180) - 90) / 40
            case "RescaleTo01Normalization":
                x = x - x.min()
                x = x / np.clip(x.max(), 1e-8, None)
            case "RGBTo01Normalization":
                x = x / 255
        whole[channel][box] = x
    return whole[(slice(None), *box)]


def test_each_fold_is_a_member_and_only_its_files_are_copied(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "nnUNetTrainer__nnUNetPlans__2d", folds=(0, 1, "all"))
    edited = added(folder, tmp_path)
    spec = edited.ensemble.spec
    assert [(member.kind, member.fold) for member in spec.members] == [("nnunet", 0), ("nnunet", 1), ("nnunet", "all")]
    assert [entry.name for entry in spec.classes] == ["background", "cell", "nucleus"]
    assert (spec.input.channels, spec.input.pixel_size_um, spec.input.normalisation.kind) == (["dna"], 0.5, "member")
    assert (spec.activation, spec.tile, spec.overlap) == ("softmax", 32, 0.5)
    assert spec.augmentations == ["identity", "vflip", "hflip", "hvflip"]
    assert "micrometres" in edited.notes[0]
    assert len(edited.notes) == 1
    copied = {path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*.*")}
    assert copied == {"ensemble.yaml"} | {
        f"{folder.name}/{file}"
        for file in ("plans.json", "dataset.json", *(f"fold_{f}/checkpoint_final.pth" for f in (0, 1, "all")))
    }


def test_folds_can_be_added_and_removed_one_by_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", folds=(0, 1, 2))
    for fold in ("fold_0", "fold_2", "fold_1/checkpoint_final.pth"):
        edited = add(str(tmp_path / "mine"), [str(folder / fold)], Wanted())
    assert [member.fold for member in edited.ensemble.spec.members] == [0, 2, 1]
    assert {member.weights for member in edited.ensemble.spec.members} == {"trained"}
    with pytest.raises(RefusedError, match="is a member"):
        add(str(tmp_path / "mine"), [str(folder / "fold_0")], Wanted())
    left = remove(str(tmp_path / "mine"), ["1"], delete=True).ensemble
    assert [left.load_member(index, CPU) is not None for index in range(2)] == [True, True]


def test_another_folder_of_the_same_name_lies_beside_the_first(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a" / "trained")
    second = write_folder(tmp_path / "b" / "trained", seed=7)
    edited = add(str(tmp_path / "mine"), [str(first), str(second)], Wanted())
    assert len({member.weights for member in edited.ensemble.spec.members}) == 2


@pytest.mark.parametrize("fold", [0, 1])
def test_a_member_answers_as_the_network_that_was_saved(fold: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", folds=(0, 1), channels=("dna", "actin"))
    ensemble = added(folder, tmp_path).ensemble
    network = built(3, channels=2, seed=fold)
    tiles = torch.randn((2, 2, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer, expected = ensemble.load_member(fold, CPU)(tiles), network(tiles)[0]
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


def test_features_are_those_of_the_coarsest_stage(tmp_path: Path) -> None:
    member: Any = added(write_folder(tmp_path / "trained"), tmp_path).ensemble.load_member(0, CPU)
    with torch.inference_mode():
        member(torch.randn(1, 1, 32, 32))
    assert (member.features, tuple(member.encoded().shape)) == (8, (1, 8, 8, 8))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "scheme",
    ["ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"],
)
def test_pixels_in_the_crop_are_prepared_as_nnunet_prepares_them(scheme: str, masked: bool, tmp_path: Path) -> None:
    plans = plans_of(2, [scheme] * 2, masked=masked)
    folder = write_folder(tmp_path / "trained", channels=("a", "b"), plans=plans)
    image = volume(2)
    found = prepared(folder, image)
    assert found.dtype == np.float32
    masked = masked and scheme == "ZScoreNormalization"
    np.testing.assert_allclose(found[:, 1:4, 3:20, 5:18], by_nnunet(image, scheme, masked=masked), atol=1e-5)
    if masked:
        assert not found[:, 0].any()


def test_a_constant_channel_becomes_zero(tmp_path: Path) -> None:
    assert not prepared(write_folder(tmp_path / "trained"), np.full((1, 2, 9, 9), 7, np.uint8)).any()


def test_colours_beyond_8_bits_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", plans=plans_of(2, ["RGBTo01Normalization"]))
    with pytest.raises(ImageError, match="0 to 255"):
        prepared(folder, np.full((1, 1, 9, 9), 256, np.uint16))


def test_regions_are_classes_that_overlap_and_an_ignored_label_is_none(tmp_path: Path) -> None:
    labels: dict[str, int | list[int]] = {"background": 0, "cell": [1, 2], "nucleus": [2], "ignore": 3}
    ensemble = added(write_folder(tmp_path / "trained", labels=labels, outputs=2), tmp_path).ensemble
    assert ensemble.spec.activation == "sigmoid"
    assert ensemble.multilabel
    assert [entry.name for entry in ensemble.spec.classes] == ["background", "cell", "nucleus"]
    ignored = write_folder(tmp_path / "other", labels=LABELS | {"ignore": 3})
    assert describe(str(ignored))[0].classes == ["background", "cell", "nucleus"]


@pytest.mark.parametrize(
    ("mirroring", "views"),
    [(None, ("identity",)), ((0,), ("identity", "vflip")), ((1,), ("identity", "hflip")),
     ((0, 1), ("identity", "vflip", "hflip", "hvflip"))],
)  # fmt: skip
def test_augmentations_are_the_axes_that_may_be_mirrored(
    mirroring: Any, views: tuple[str, ...], tmp_path: Path
) -> None:
    assert describe(str(write_folder(tmp_path / "trained", mirroring=mirroring)))[0].augmentations == views


@pytest.mark.parametrize(
    ("reader", "size"),
    [("SimpleITKIO", 500.0), ("NibabelIOWithReorient", 500.0), ("Tiff3DIO", 0.5), ("NaturalImage2DIO", None)],
)
def test_the_reader_tells_the_unit_of_spacings(reader: str, size: float | None, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", plans=plans_of() | {"image_reader_writer": reader})
    assert describe(str(folder))[0].pixel_size_um == size


def test_plans_before_version_2_3_are_read(tmp_path: Path) -> None:
    plans = plans_of()
    own = plans["configurations"]["2d"]
    arguments = own.pop("architecture")["arch_kwargs"]
    own |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1], "num_pool_per_axis": [2, 2],
        "conv_kernel_sizes": arguments["kernel_sizes"], "pool_op_kernel_sizes": arguments["strides"],
    }  # fmt: skip
    ensemble = added(write_folder(tmp_path / "trained", plans=plans), tmp_path).ensemble
    tiles = torch.randn((1, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ensemble.load_member(0, CPU)(tiles), built(3)(tiles)[0], atol=1e-5, rtol=1e-5)


def test_a_configuration_inherits_fields(tmp_path: Path) -> None:
    plans = plans_of()
    plans["configurations"]["base"] = plans["configurations"]["2d"]
    plans["configurations"]["2d"] = {"inherits_from": "base", "patch_size": [64, 64]}
    assert describe(str(write_folder(tmp_path / "trained", plans=plans)))[0].tile == 64


def test_a_3d_configuration_is_of_volumes_with_sizes_on_each_axis(tmp_path: Path) -> None:
    spec = added(write_folder(tmp_path / "trained", axes=3, mirroring=(0, 2)), tmp_path).ensemble.spec
    assert (spec.input.axes, spec.tile, spec.input.pixel_size_um) == ("zyx", (16, 32, 32), (2.0, 0.5, 0.5))
    assert spec.augmentations == ["identity", "zflip", "hflip", "zhflip"]
    assert spec.input.padding == "zero"


def test_axes_that_nnunet_transposes_are_those_of_the_image(tmp_path: Path) -> None:
    plans = plans_of(3) | {"transpose_forward": [2, 0, 1]}  # x is its first axis
    ensemble = added(write_folder(tmp_path / "trained", axes=3, plans=plans, mirroring=(0,)), tmp_path).ensemble
    spec = ensemble.spec
    assert (spec.tile, spec.input.pixel_size_um) == ((32, 32, 16), (0.5, 0.5, 2.0))
    assert spec.augmentations == ["identity", "hflip"]
    tiles = torch.randn((1, 1, 32, 32, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = built(3, axes=3)(tiles.permute(0, 1, 4, 2, 3))[0].permute(0, 1, 3, 4, 2)
        torch.testing.assert_close(ensemble.load_member(0, CPU)(tiles), expected, atol=1e-5, rtol=1e-5)


def test_planes_and_volumes_are_no_members_of_one_ensemble(tmp_path: Path) -> None:
    added(write_folder(tmp_path / "planes"), tmp_path)
    with pytest.raises(RefusedError, match="agree on the axes"):
        added(write_folder(tmp_path / "volumes", axes=3), tmp_path)


def changed(**fields: Any) -> dict[str, Any]:
    plans = plans_of()
    plans["configurations"]["2d"] |= fields
    return plans


def with_architecture(**fields: Any) -> dict[str, Any]:
    own = copy.deepcopy(architecture())
    own["arch_kwargs"] |= fields
    return changed(architecture=own)


@pytest.mark.parametrize(
    ("plans", "names"),
    [
        (changed(previous_stage="3d_lowres"), ["cascade", "3d_fullres or 3d_lowres"]),
        (changed(normalization_schemes=["MyNormalization"]), ["MyNormalization", "ZScoreNormalization"]),
        (changed(normalization_schemes=["ZScoreNormalization"] * 2), ["2 normalisations for 1 channels"]),
        (changed(preprocessor_name="MyPreprocessor"), ["MyPreprocessor", "ONNX"]),
        (changed(architecture=architecture() | {"network_class_name": "os.system"}), ["os.system", "PlainConvUNet"]),
        (
            changed(architecture=architecture() | {"network_class_name": "evil.architectures.unet.PlainConvUNet"}),
            ["evil.architectures", "PlainConvUNet"],
        ),
        (with_architecture(conv_op="os.system"), ["os.system", "Conv2d"]),
        (with_architecture(norm_op="os.path.InstanceNorm2d"), ["os.path.InstanceNorm2d"]),
        (with_architecture(n_conv_per_stage=[10**9, 1, 1]), ["n_conv_per_stage"]),
        (with_architecture(widths=3), ["arch_kwargs.widths"]),
        (with_architecture(features_per_stage=[4, 8, 16]), ["weights do not fit"]),
        (plans_of() | {"transpose_forward": [1, 0, 2]}, ["planes lie across y"]),
        (plans_of() | {"configurations": {}}, ["no configuration 2d"]),
        (changed(patch_size=[32, 48]), ["--tile", "32 x 48"]),
    ],
)  # fmt: skip
def test_what_chorus_does_not_do_as_nnunet_does_is_refused(plans: Any, names: list[str], tmp_path: Path) -> None:
    refusal(write_folder(tmp_path / "trained", plans=plans), tmp_path, *names)


def test_a_patch_that_is_no_square_takes_the_tile_that_is_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", plans=changed(patch_size=[32, 48]))
    refusal(folder, tmp_path, "multiples of 4", "not 50", tile=50)
    assert added(folder, tmp_path, tile=48).ensemble.spec.tile == 48


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("true",)


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained")
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(checkpoint, weights_only=False) | {"logging": Runs()}, checkpoint)
    refusal(folder, tmp_path, "checkpoint_final.pth", "does not run")


def test_a_folder_without_a_finished_fold_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained")
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    refusal(folder, tmp_path, "trained to its end")
    edited = add(str(tmp_path / "mine"), [str(folder / "fold_0" / "checkpoint_best.pth")], Wanted())
    assert edited.ensemble.spec.members[0].checkpoint == "checkpoint_best.pth"


@pytest.mark.parametrize("labels", [{"background": 0, "cell": 2}, {"cell": 1}, {"background": 0, "a": 1, "b": 1}])
def test_labels_with_gaps_are_refused(labels: Any, tmp_path: Path) -> None:
    refusal(write_folder(tmp_path / "trained", labels=labels, outputs=2), tmp_path, "dataset.json")


def test_a_folder_that_changed_after_it_was_added_is_refused(tmp_path: Path) -> None:
    ensemble = added(write_folder(tmp_path / "trained"), tmp_path).ensemble
    plans = tmp_path / "mine" / "trained" / "plans.json"
    content = json.loads(plans.read_text())
    content["configurations"]["2d"]["use_mask_for_norm"] = [True]
    plans.write_text(json.dumps(content))
    with pytest.raises(RefusedError, match="sha256"):
        read_ensemble(ensemble.url).load_member(0, CPU)


@needs_oracles
@pytest.mark.parametrize("name", ["nnunet_2d", "nnunet_3d_fullres"])
def test_networks_answer_as_what_nnunet_exported(name: str) -> None:
    (folder,) = (ORACLES / name).glob("nnUNetTrainer__*")
    facts, networks = trained(folder)
    exported = torch.jit.load(str(ORACLES / name / "fold_0.torchscript.pt"), map_location="cpu").eval()
    patch = facts.plans.configuration.patch_size
    tiles = torch.randn((2, 1, *patch), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(networks[0](tiles), exported(tiles), atol=1e-4, rtol=1e-4)


@needs_oracles
@pytest.mark.parametrize("name", ["nnunet_2d", "nnunet_3d_fullres"])
def test_probabilities_on_its_patches_are_those_of_nnunet(name: str) -> None:
    (folder,) = (ORACLES / name).glob("nnUNetTrainer__*")
    facts, networks = trained(folder)
    with np.load(ORACLES / name / "t_small.npz") as stored:
        image, expected = stored["image"][None], stored["probabilities"].astype(np.float32)
    planes = [image[:, z] for z in range(image.shape[1])]
    own = facts.prepared.apply(image, surveyed(facts.prepared.measures, planes))
    found = on_patches(facts, networks, own)["float32"]
    assert np.abs(found - expected).max() < 1e-3
    ranked = np.sort(expected, axis=0)
    clear = ranked[-1] - ranked[-2] > 5e-3
    assert (found.argmax(axis=0) == expected.argmax(axis=0))[clear].all()
