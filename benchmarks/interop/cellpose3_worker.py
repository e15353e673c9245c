"""The part of `cellpose3.py` that runs in the environment of Cellpose 3.1: its own answers, as .npz files."""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from cellpose import models, transforms
from cellpose.resnet_torch import CPnet

TILE = 224


def fixture(weights: str, tiles: str, target: str, *widths: str) -> None:
    network = CPnet([int(width) for width in widths], 3, 3)
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        outputs, style, _ = network.eval()(torch.from_numpy(np.load(tiles)))
    np.savez_compressed(target, outputs=outputs.numpy(), style=style.numpy())


def images(weights: str, folder: str, *paths: str) -> None:
    model = models.CellposeModel(gpu=False, pretrained_model=weights)
    # The published networks see an image as it is where no diameter is given.
    model.diam_labels = model.diam_mean
    size = models.SizeModel(model, pretrained_size=f"{weights}_size.npy")
    for path in paths:
        target = Path(folder) / f"{Path(path).stem}.npz"
        if target.exists():
            continue
        image = iio.imread(path)
        image = image[..., 0] if image.ndim == 3 else image
        normalised = transforms.normalize_img(image[..., None].astype(np.float32))[..., 0]
        tile = np.zeros((1, 2, TILE, TILE), np.float32)
        part = normalised[:TILE, :TILE]
        tile[0, 0, : part.shape[0], : part.shape[1]] = part
        model.net.mkldnn = False
        with torch.no_grad():
            (dy, dx, cell), style = (one[0].numpy() for one in model.net.eval()(torch.from_numpy(tile))[:2])
        masks, flows, image_style = model.eval(image, channels=[0, 0], flow_threshold=0.4)
        everything, _, _ = model.eval(image, channels=[0, 0], flow_threshold=0.0)
        diam, diam_style = size.eval(image, channels=[0, 0])
        np.savez(
            target,
            image=image,
            normalised=normalised,
            tile=tile,
            answer=np.stack([cell, dy, dx]),
            tile_style=style,
            masks=masks,
            masks_all=everything,
            flows=flows[1],
            cell=flows[2],
            style=image_style,
            diam=diam,
            diam_style=diam_style,
        )


if __name__ == "__main__":
    {"fixture": fixture, "images": images}[sys.argv[1]](*sys.argv[2:])
