"""Makes what tests need: ensembles of small real networks, and OME-Zarr images."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import yaml
import zarr
from safetensors.torch import save_file

ARCHITECTURE = {"architecture": "Unet", "encoder": "tu-tf_mobilenetv3_small_minimal_100"}
OPTIONS = {"decoder_channels": [16, 16, 8, 8, 8]}


def network(seed: int, *, channels: int = 1, outputs: int = 2) -> torch.nn.Module:
    """A small U-Net with random weights whose answers vary over the image and sit on both sides of one half."""
    module, state = _network(seed, channels, outputs)
    torch.set_rng_state(state)  # what a test draws next does not depend on which tests came before
    return copy.deepcopy(module)


@cache
def _network(seed: int, channels: int, outputs: int) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    module = smp.create_model(
        ARCHITECTURE["architecture"],
        ARCHITECTURE["encoder"],
        encoder_weights=None,
        in_channels=channels,
        classes=outputs,
        **OPTIONS,
    )
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            # Fresh running statistics flatten what a random network says; let it see some noise first.
            layer.momentum = None
    module.train()
    smooth = torch.nn.functional.interpolate(torch.randn(8, channels, 20, 20), size=(64, 64), mode="bicubic")
    with torch.no_grad():
        module(smooth)
        module.eval()
        answer = module(smooth)
        head = module.segmentation_head[0]
        spread = answer.std(dim=(0, 2, 3)).clamp(min=1e-6)
        head.weight.mul_((2 / spread)[:, None, None, None])
        head.bias.sub_(answer.mean(dim=(0, 2, 3))).mul_(2 / spread)
    return module.eval(), torch.get_rng_state()


def write_ensemble(
    folder: Path,
    *,
    members: int = 3,
    tile: int = 64,
    channels: int = 1,
    classes: int = 2,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """An ensemble of `members` small networks in `folder`; `changes` replace entries of its ``ensemble.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = classes - (changes.get("activation") == "sigmoid") + 2 * bool(changes.get("flows"))
    entries = []
    for index in range(members):
        name = f"member-{index}.safetensors"
        state = network(seed + index, channels=channels, outputs=outputs).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        entries.append({"kind": "smp", **ARCHITECTURE, "options": OPTIONS, "weights": name, "sha256": digest})
    names = ["background", *(f"class-{k}" for k in range(1, classes))]
    content: dict[str, Any] = {
        "format": "chorus-ensemble/2",
        "name": "test",
        "classes": [{"name": name} for name in names],
        "input": {
            "channels": [f"channel-{c}" for c in range(channels)],
            "normalisation": {"kind": "mean_std", "mean": [500.0] * channels, "std": [300.0] * channels},
        },
        "tile": tile,
        "members": entries,
    }
    path = folder / "ensemble.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


class LightNetwork(torch.nn.Module):
    """A few convolutions: TorchScript, so that processes that host it start in half the time of a U-Net's."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, width, 5, padding=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(width, width, 5, padding=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(width, 2, 5, padding=2),
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return 10 * self.layers(tiles)


class PoisonedNetwork(LightNetwork):
    """A tile that is brighter than any other image's takes its process down with it, as a fault in a library does.

    It reads memory that is not there, so that it needs ``--trust-code``.
    """

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if bool(tiles.max() > 100.0):
            nowhere = torch.full([1, 1], 1 << 40, dtype=torch.int64)
            return torch.ops.aten._sparse_coo_tensor_unsafe(nowhere, torch.ones(1), [2]).to_dense()
        return 10 * self.layers(tiles)


def scripted(module: torch.nn.Module, path: Path) -> dict[str, str]:
    """Write a network as TorchScript; the member of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and yet what users have
        torch.jit.save(torch.jit.script(module), path)
    return {"kind": "torchscript", "weights": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def write_light_ensemble(
    folder: Path, *, members: int = 3, width: int = 16, poison: bool = False, **changes: Any
) -> Path:
    """An ensemble of small TorchScript networks, tiles of 64, two classes; see `LightNetwork`, `write_ensemble`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(members):
        entries.append(
            scripted((PoisonedNetwork if poison else LightNetwork)(index, width), folder / f"member-{index}.pt")
        )
    content: dict[str, Any] = {
        "format": "chorus-ensemble/2",
        "name": "light",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [300.0]}},
        "tile": 64,
        "members": entries,
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content | changes))
    return folder / "ensemble.yaml"


class VolumeNetwork(torch.nn.Module):
    """A few convolutions of volumes, which are not symmetric."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(1, width, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(width, 2, 3, padding=1)
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return 10 * self.layers(tiles)


def volume_network(seed: int, width: int = 4) -> torch.nn.Module:
    """The network of a member of `write_volume_ensemble`."""
    state = torch.get_rng_state()
    made = VolumeNetwork(seed, width).eval()
    torch.set_rng_state(state)
    return made


def write_volume_ensemble(
    folder: Path, *, members: int = 2, width: int = 4, pixel_size: Any = None, **changes: Any
) -> Path:
    """An ensemble of small TorchScript networks of volumes, tiles of 8 x 24 x 24, two classes."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(members):
        entries.append(scripted(volume_network(index, width), folder / f"member-{index}.pt"))
    content: dict[str, Any] = {
        "format": "chorus-ensemble/2",
        "name": "volumes",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {
            "channels": ["dna"],
            "axes": "zyx",
            "pixel_size_um": pixel_size,
            "normalisation": {"kind": "mean_std", "mean": [500.0], "std": [300.0]},
        },
        "tile": [8, 24, 24],
        "augmentations": ["identity", "zflip", "hflip"],
        "members": entries,
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content | changes))
    return folder / "ensemble.yaml"


def pixels(shape: Sequence[int], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """Blurred noise between 0 and about 1000 (0 and 255 for uint8)."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=tuple(shape))
    smooth = gaussian_filter(noise, [0] * (len(shape) - 2) + [2, 2])
    smooth = (smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-9)
    return (smooth * (255 if dtype == "uint8" else 1000)).astype(dtype)


def write_image(
    path: Path,
    data: np.ndarray,
    axes: str = "yx",
    *,
    channels: Sequence[str] = (),
    pixel_size: float | None = None,
    depth: float = 1.0,
    chunk: int = 64,
    ngff: str = "0.5",
) -> Path:
    """A single-level OME-Zarr image of `data`; `depth` is the pixel size along z."""
    types = {"t": "time", "c": "channel"}
    unit = {} if pixel_size is None else {"unit": "micrometer"}
    scale = [pixel_size or 1.0 if a in "yx" else depth if a == "z" else 1.0 for a in axes]
    multiscale: dict[str, Any] = {
        "axes": [{"name": a, "type": types.get(a, "space")} | (unit if a in "zyx" else {}) for a in axes],
        "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
        "name": path.name,
    }
    window = {"min": 0, "max": 1000, "start": 0, "end": 1000}
    omero = {"channels": [{"label": name, "color": "FFFFFF", "window": window} for name in channels]}
    attributes: dict[str, Any] = {"multiscales": [multiscale]} | ({"omero": omero} if channels else {})
    old = ngff == "0.4"
    if old:
        multiscale["version"] = "0.4"
    else:
        attributes = {"ome": {"version": "0.5"} | attributes}
    group = zarr.create_group(path, zarr_format=2 if old else 3, attributes=attributes)
    chunks = tuple(min(chunk, n) if a in "yx" else 1 for a, n in zip(axes, data.shape, strict=True))
    names = {} if old else {"dimension_names": list(axes)}
    # An array without any chunk is not black, but a fault of who wrote it.
    group.create_array("s0", data=data, chunks=chunks, config={"write_empty_chunks": not data.any()}, **names)
    return path
