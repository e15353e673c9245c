"""deepflash2's files: read without running code, and they answer as the networks that were saved in them."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from torchvision.transforms import Normalize

from chorus.pipeline.ensembles.ensemble import Ensemble, check_answer, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.kinds.deepflash2 import describe

CPU = torch.device("cpu")
ENCODER = "tu-mobilenetv3_small_050"
MEAN, STD = np.array([0.21, 0.05]), np.array([0.13, 0.04])


def model(seed: int, **options: Any) -> torch.nn.Module:
    """With the settings that it was built with, as ``create_smp_model`` leaves them on it."""
    torch.manual_seed(seed)
    kwargs = {"encoder_name": ENCODER, "encoder_weights": "imagenet", "in_channels": 2, "classes": 3} | options
    module: torch.nn.Module = smp.Unet(**kwargs | {"encoder_weights": None}).eval()
    module.kwargs = kwargs
    return module


def save(module: torch.nn.Module, path: Path, stats: Any, **changes: Any) -> Path:
    """As ``deepflash2.models.save_smp_model`` writes: these keys, the old container, pickle protocol 2."""
    content = {"model": module.state_dict(), "arch": "Unet", "stats": stats, **module.kwargs} | changes
    content = {key: value for key, value in content.items() if value is not ...}
    torch.save(content, path, pickle_protocol=2, _use_new_zipfile_serialization=False)
    return path


def ensemble_of(path: Path, *, channels: int = 2, classes: int = 3, **fields: Any) -> Ensemble:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    content = {
        "format": "chorus-ensemble/2",
        "name": "test",
        "classes": [{"name": f"class-{k}"} for k in range(classes)],
        "input": {"channels": [f"c{c}" for c in range(channels)], "normalisation": {"kind": "member"}},
        "tile": 64,
        "members": [{"kind": "deepflash2", "weights": path.name, "sha256": digest} | fields],
    }
    (path.parent / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return read_ensemble(str(path.parent))


def answer(ensemble: Ensemble, pixels: np.ndarray) -> torch.Tensor:
    """Of member 0 for raw pixels (channels, y, x), as a worker has it."""
    member = ensemble.load_member(0, CPU)
    check_answer(ensemble, 0, member, 64, CPU)
    prepared = ensemble.inputs([0]).preparations[0].apply(pixels, {})
    with torch.inference_mode():
        return member(torch.from_numpy(prepared)[None])


def raw(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (2, 64, 64), dtype=dtype, endpoint=True)


def expected(module: torch.nn.Module, pixels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
    """The network's answer for pixels in the units of its statistics, normalised in float64."""
    x = (pixels.astype(np.float64) - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        return module(torch.from_numpy(x.astype(np.float32))[None])


def refusal(ensemble: Ensemble, *names: str) -> None:
    with pytest.raises(RefusedError) as caught:
        ensemble.load_member(0, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in names), message


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_checkpoint_answers_as_the_network_that_was_saved(dtype: str, tmp_path: Path) -> None:
    module, pixels = model(0), raw(dtype)
    ensemble = ensemble_of(save(module, tmp_path / "Unet_fold1.pth", (MEAN, STD)))
    torch.testing.assert_close(
        answer(ensemble, pixels),
        expected(module, pixels / np.iinfo(dtype).max, MEAN, STD),  # `_read_img` of deepflash2 0.1
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_statistics_since_version_0_2_are_of_8_bit_images(tmp_path: Path) -> None:
    module, pixels = model(1), raw("uint8")
    stats = {"channel_means": 255 * MEAN, "channel_stds": 255 * STD}
    ensemble = ensemble_of(save(module, tmp_path / "m.pth", stats))
    wanted = expected(module, pixels, 255 * MEAN, 255 * STD)
    torch.testing.assert_close(answer(ensemble, pixels), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer(ensemble, pixels.astype(np.uint16) * 257), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer(ensemble, pixels.astype(np.float32)), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stats", [([MEAN], [STD]), (MEAN.tolist(), STD.tolist()), np.array([MEAN, STD])])
def test_statistics_may_be_arrays_or_lists(stats: Any, tmp_path: Path) -> None:
    module = model(0)
    ensemble = ensemble_of(save(module, tmp_path / "m.pth", stats))
    prepared = ensemble.inputs([0]).preparations[0].apply(raw("uint8"), {})
    wanted = (raw("uint8") / 255 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(prepared, wanted, atol=1e-5)


def test_numbers_of_numpy_are_read_for_one_channel(tmp_path: Path) -> None:
    module = model(0, in_channels=1)
    ensemble = ensemble_of(save(module, tmp_path / "m.pth", (np.float64(0.2), np.float64(0.1))), channels=1)
    prepared = ensemble.inputs([0]).preparations[0].apply(raw("uint8")[:1], {})
    np.testing.assert_allclose(prepared, (raw("uint8")[:1] / 255 - 0.2) / 0.1, atol=1e-5)


def test_without_statistics_the_ensemble_normalises(tmp_path: Path) -> None:
    ensemble = ensemble_of(save(model(0), tmp_path / "m.pth", None))
    np.testing.assert_array_equal(ensemble.inputs([0]).preparations[0].apply(raw("uint8"), {}), raw("uint8"))


def test_options_of_the_model_are_kept_under_their_present_names(tmp_path: Path) -> None:
    module = model(0, decoder_channels=[8] * 5, decoder_use_norm=False)
    old = {"decoder_use_norm": ..., "decoder_use_batchnorm": False}
    ensemble = ensemble_of(save(module, tmp_path / "m.pth", (MEAN, STD), **old))
    x = torch.randn((1, 2, 64, 64))
    with torch.inference_mode():
        torch.testing.assert_close(ensemble.load_member(0, CPU)(x), module(x), atol=1e-5, rtol=1e-4)


def test_what_a_file_says_makes_a_member_of_an_ensemble(tmp_path: Path) -> None:
    path = save(model(0), tmp_path / "Unet_fold1.pth", (MEAN, STD))
    (found,) = describe(str(path))
    assert (found.name, found.channels) == ("Unet_fold1", ["channel-0", "channel-1"])
    assert found.classes == ["background", "class-1", "class-2"]
    assert (found.activation, found.tile, found.normalisation) == ("softmax", 512, None)
    assert [entry.role for entry in found.outputs] == ["classes"]
    fields = found.entry.model_dump(exclude_none=True, exclude={"kind", "weights"})
    assert fields == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    ensemble_of(path, **fields).load_member(0, CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": ...}, "lacks 'arch'"),
        ({"model": ..., "weights": 3}, "lacks 'model'"),
        ({"arch": "unext50_deepflash2"}, "no architecture unext50_deepflash2"),
        ({"encoder_name": "resnet-1"}, "resnet-1"),
        ({"classes": 5}, "do not fit Unet"),
        ({"stats": (MEAN[:1], STD[:1])}, "not 2 finite means and stds"),
        ({"stats": ("dim", "bright")}, "`stats`"),
        ({"stats": {"mean": 1}}, "channel_means"),
        ({"stats": Path("somewhere")}, "does not run"),
    ],
)
def test_other_checkpoints_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    refusal(ensemble_of(save(model(0), tmp_path / "m.pth", **{"stats": (MEAN, STD)} | changes)), "m.pth", said)


def test_a_checkpoint_of_other_channels_or_for_flows_is_refused(tmp_path: Path) -> None:
    path = save(model(0), tmp_path / "m.pth", (MEAN, STD))
    refusal(ensemble_of(path, channels=1), "trained on 2 channels", "input.channels")
    refusal(ensemble_of(path, model=0), "holds one network", "remove `model`")
    flowing = yaml.safe_load((tmp_path / "ensemble.yaml").read_text()) | {"flows": True}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(flowing))
    refusal(read_ensemble(str(tmp_path)), "no flows")


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    refusal(ensemble_of(save(model(0), tmp_path / "m.pth", Trap(trap))), "does not run")
    assert not trap.exists()


@pytest.mark.parametrize("data", [b"", b"not weights", b"PK\x03\x04" + bytes(60)])
def test_garbage_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(data)
    refusal(ensemble_of(tmp_path / "m.pth"), "m.pth", "not a checkpoint")
    with pytest.raises(RefusedError, match="not found"):
        describe(str(tmp_path / "absent.pth"))


class InferenceEnsemble(torch.nn.Module):
    """What deepflash2's has on it (traced networks, statistics, tile); it takes and gives whole images by itself."""

    def __init__(self, models: list[torch.nn.Module], scale: float = 1.0) -> None:
        super().__init__()
        self.num_classes, self.use_tta, self.tile_shape = 3, True, (64, 64)
        self.norm = Normalize((255 * MEAN).tolist(), (255 * STD).tolist())
        tile = torch.rand(1, 2, 64, 64)
        self.models = torch.nn.ModuleList([torch.jit.trace(m, tile) for m in models])
        self.tiler = Tiler(scale)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tile = self.norm(x.permute(2, 0, 1).unsqueeze(0))
        answers = []
        for model in self.models:
            answers.append(torch.softmax(model(tile), dim=1))
        mean = torch.stack(answers).mean(dim=0)[0]
        return torch.argmax(mean, dim=0), mean


class Tiler(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.nn.Module]]:
    torch.manual_seed(3)
    layers = lambda: (torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1))  # noqa: E731
    modules: list[torch.nn.Module] = [torch.nn.Sequential(*layers()).eval() for _ in range(2)]
    path = tmp_path_factory.mktemp("deepflash2") / "ensemble_Unet.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and yet what users have
        torch.jit.save(torch.jit.script(InferenceEnsemble(modules, scale=2.0)), path)
    return path, modules


def test_each_network_of_an_inference_ensemble_is_a_member(scripted: tuple[Path, list[torch.nn.Module]]) -> None:
    path, modules = scripted
    pixels = raw("uint8")
    members = [answer(ensemble_of(path, model=i), pixels) for i in range(2)]
    for module, member in zip(modules, members, strict=True):
        wanted = expected(module, pixels, 255 * MEAN, 255 * STD)
        torch.testing.assert_close(member, wanted, atol=1e-4, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = torch.jit.load(path)
    with torch.inference_mode():
        _, probabilities = whole(torch.from_numpy(pixels).permute(1, 2, 0).float())
    mean = torch.stack([torch.softmax(member, 1) for member in members]).mean(0)[0]
    torch.testing.assert_close(mean, probabilities, atol=1e-5, rtol=1e-4)


def test_an_inference_ensemble_describes_each_of_its_networks(scripted: tuple[Path, list[torch.nn.Module]]) -> None:
    path, _ = scripted
    first, second = describe(str(path))
    assert (first.name, second.name) == ("ensemble_Unet-0", "ensemble_Unet-1")
    assert second.entry.model_dump()["model"] == 1
    assert (len(first.channels), len(first.classes), first.tile) == (2, 3, 64)
    assert "2-fold" in first.about.limits


@pytest.mark.parametrize("which", [None, 2, -1])
def test_a_network_that_an_inference_ensemble_has_not_is_refused(
    which: int | None, scripted: tuple[Path, list[torch.nn.Module]]
) -> None:
    refusal(ensemble_of(scripted[0], model=which), "holds 2 networks", "`model: 0` to `model: 1`")
