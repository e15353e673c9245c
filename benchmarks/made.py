"""What benchmarks are run on: simulated images, and networks whose speed does not depend on what they learned."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import yaml
import zarr
from numpy.typing import NDArray
from safetensors.torch import save_file

SIZE = 1024


def write_images(folder: Path, count: int, shape: tuple[int, int] = (SIZE, SIZE)) -> None:
    """Simulated fields of `shape`, uint16, OME-Zarr 0.5 with chunks of 256."""
    from chorus.pipeline.demo.synthetic_data import simulate_field

    fields = [np.pad(simulate_field(seed, (SIZE, SIZE))[0], _more(shape), mode="wrap") for seed in range(4)]
    for index in range(count):
        field = fields[index % 4][: shape[0], : shape[1]]
        write_image(folder / f"{index:04d}.zarr", np.roll(field, index, axis=1), chunk=256)


def write_image(path: Path, pixels: NDArray[np.uint16], chunk: int) -> None:
    """A single-level image (y, x) as OME-Zarr 0.5."""
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    multiscale = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": scale}], "name": "field"}
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    group.create_array("s0", data=pixels, chunks=(chunk, chunk), dimension_names=["y", "x"])


def _more(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns by which a field of `SIZE` falls short of `shape`."""
    return [(0, max(0, length - SIZE)) for length in shape]


def write_ensemble(folder: Path, members: int, tile: int, encoder: str = "resnet18") -> Path:
    """U-Nets with random weights: speed does not depend on what they learned."""
    import segmentation_models_pytorch as smp

    folder.mkdir()
    entries = []
    for index in range(members):
        torch.manual_seed(index)
        module = smp.create_model("Unet", encoder, encoder_weights=None, in_channels=1, classes=2)
        path = folder / f"member-{index}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(
            {"kind": "smp", "architecture": "Unet", "encoder": encoder, "weights": path.name, "sha256": digest}
        )
    content = {
        "format": "chorus-ensemble/2",
        "name": "benchmark",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [1000.0], "std": [800.0]}},
        "tile": tile,
        "members": entries,
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return folder / "ensemble.yaml"
