"""The part of `stars.py` that runs in the environment of StarDist: its models of random weights, and its answers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
from csbdeep.utils import normalize
from stardist.models import Config2D, Config3D, StarDist2D, StarDist3D

# Small: what matters is that each layer, grid and option occurs.
SMALL = {"unet_n_depth": 2, "unet_n_filter_base": 4}
PLANES: dict[str, dict[str, Any]] = {
    "random-grid1": {"n_rays": 32, "grid": (1, 1), **SMALL},
    "random-grid2": {"n_rays": 32, "grid": (2, 2), "unet_batch_norm": True, **SMALL},
    "random-odd": {"n_rays": 7, "grid": (1, 2), "unet_kernel_size": (5, 3), "unet_activation": "elu", **SMALL},
    "random-classes": {"n_rays": 16, "grid": (4, 4), "n_classes": 2, **SMALL},
}
VOLUMES: dict[str, dict[str, Any]] = {
    "random-3d-unet": {"rays": 12, "grid": (1, 2, 2), "backbone": "unet", **SMALL},
    "random-3d-resnet": {"rays": 12, "grid": (1, 2, 2), "backbone": "resnet", "resnet_n_filter_base": 4},
}


def models(parent: str, image: str) -> None:
    """Write models whose objects in an image are some hundreds, a few pixels wide, and overlap."""
    keras.utils.set_random_seed(0)
    rng, plane = np.random.default_rng(0), np.load(image)
    for name, options in (PLANES | VOLUMES).items():
        volume = name in VOLUMES
        model = (StarDist3D if volume else StarDist2D)(
            (Config3D if volume else Config2D)(**options), name=name, basedir=parent
        )
        weights = [_random(rng, w.path, w.numpy()) for w in model.keras_model.weights]
        model.keras_model.set_weights(weights)
        folder = Path(parent) / name
        model.keras_model.save_weights(str(folder / "weights_best.h5"))
        answer = model.predict(_normalised(_volume(plane) if volume else plane))
        # Of the points the most probable thousand or so are candidates.
        threshold = float(np.partition(answer[0].ravel(), -1500)[-1500]) if answer[0].size > 1500 else 0.5
        (folder / "thresholds.json").write_text(json.dumps({"prob": threshold, "nms": 0.4}))


def _random(rng: np.random.Generator, path: str, value: Any) -> Any:
    if "moving_variance" in path or "gamma" in path:
        return rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
    if "bias" in path or "beta" in path or "moving_mean" in path:
        centre = 7.0 if path.split("/")[-2].endswith("dist") else 0.0
        return rng.normal(centre, 0.3, value.shape).astype(np.float32)
    return value


def answers(target: str, *arguments: str) -> None:
    """Write what models (folders) answer of images (.npy), one file of each pair."""
    folders = [Path(one) for one in arguments if Path(one).is_dir()]
    images = [Path(one) for one in arguments if not Path(one).is_dir()]
    for folder in folders:
        volume = json.loads((folder / "config.json").read_text())["n_dim"] == 3
        model = (StarDist3D if volume else StarDist2D)(None, name=folder.name, basedir=str(folder.parent))
        for path in images[:1] if volume else images:
            image = np.load(path)
            pixels = _normalised(_volume(image) if volume else image)
            found: dict[str, Any] = {"pixels": pixels}
            found["prob"], found["dist"] = model.predict(pixels)[:2]
            if not volume:
                found["labels"], objects = model.predict_instances(pixels)[:2]
                found["points"] = objects["points"]
            np.savez(Path(target) / f"{folder.name}-{path.stem}.npz", **found)


def _volume(plane: Any) -> Any:
    return np.stack([np.roll(plane[:64, :64], shift, axis=0) for shift in range(16)])


def _normalised(image: Any) -> Any:
    return normalize(image, 1, 99.8, axis=tuple(range(image.ndim)))


if __name__ == "__main__":
    {"models": models, "answers": answers}[sys.argv[1]](*sys.argv[2:])
