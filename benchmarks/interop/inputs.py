"""Inputs of the comparisons: those that a folder holds, or small ones that are made where it holds none.

A folder of the user's may hold, at any depth: trained models of StarDist (``config.json``, ``weights_best.h5``),
folders that nnU-Net trained (``plans.json``; beside them the images, ``*.npz`` of ``image``, ``spacing``, ``labels``),
networks of Cellpose 1 to 3 with their size model (``NAME``, ``NAME_size.npy``), label images of volumes (TIFF with
``mask`` in its name, HDF5 with ``label``), packages of BioImage.IO (``*.zip`` with ``rdf.yaml`` or
``bioimageio.yaml``), and grey images (``*.png``).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from chorus.pipeline.bioimageio.export import pack_members
from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.ensembles.ensemble import read_ensemble
from tests.support.cellpose_networks import residual_state
from tests.support.nnunet_folders import plans_of, write_folder
from tests.support.volumes import balls

STARTER = "chorus/builtin/nuclei-fluo"
CELLPOSE = (2, 32, 64, 128, 256)
"""Channels of the published networks."""
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


@dataclass(frozen=True)
class Inputs:
    """What is compared.

    Attributes
    ----------
    stardist : trained models
    nnunet : trained folders, each with its images
    cellpose : networks with their size models
    labels : label images of volumes
    packages : of BioImage.IO
    images : grey images
    made : the names of those that are not the user's
    """

    stardist: list[Path]
    nnunet: list[tuple[Path, list[Path]]]
    cellpose: list[Path]
    labels: list[Path]
    packages: list[Path]
    images: list[Path]
    made: frozenset[str]


def gather(folder: Path | None, scratch: Path) -> Inputs:
    """Find the inputs in a folder, and make those that it lacks in `scratch`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder is not None else []
    stardist = [path.parent for path in files if path.name == "config.json" and _has(path, "*.h5")]
    nnunet = [(path.parent, _images(path.parent.parent)) for path in files if path.name == "plans.json"]
    cellpose = [path for path in files if not path.suffix and path.with_name(f"{path.name}_size.npy").exists()]
    labels = [path for path in files if _has_labels(path)]
    packages = [path for path in files if path.suffix == ".zip" and _is_package(path)]
    images = [path for path in files if path.suffix == ".png"]
    nnunet = [(trained, found) for trained, found in nnunet if found]
    made = {"nnunet": nnunet, "cellpose": cellpose, "labels": labels, "packages": packages, "images": images}
    volume = _volume()
    return Inputs(
        stardist,
        nnunet or [_nnunet(scratch, axes, volume[:12, :40, :48]) for axes in (2, 3)],
        cellpose or [_cellpose(scratch)],
        labels or [_labels(scratch, volume)],
        packages or [_package(scratch)],
        images or [_plane(scratch, seed) for seed in range(2)],
        frozenset(name for name, found in made.items() if not found),
    )


def _has(path: Path, pattern: str) -> bool:
    return any(path.parent.glob(pattern))


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.npz")) if {"image", "spacing", "labels"} <= set(np.load(path).files)]


def _has_labels(path: Path) -> bool:
    if path.suffix in (".tif", ".tiff"):
        return "mask" in path.name
    if path.suffix != ".h5":
        return False
    import h5py

    with h5py.File(path) as file:
        return "label" in file


def _is_package(path: Path) -> bool:
    return not {"rdf.yaml", "bioimageio.yaml"}.isdisjoint(zipfile.ZipFile(path).namelist())


def _volume() -> NDArray[np.int32]:
    rng = np.random.default_rng(0)
    spheres = [(rng.uniform(0, 20), rng.uniform(0, 64), rng.uniform(0, 72), rng.uniform(5, 9)) for _ in range(24)]
    return balls((20, 64, 72), spheres)


def _nnunet(scratch: Path, axes: int, volume: NDArray[np.int32]) -> tuple[Path, list[Path]]:
    """Write two folds of random weights and a volume of the spacing of their plan."""
    image = 40 + 120 * (volume > 0) + np.random.default_rng(1).normal(0, 15, volume.shape)
    plans, path = plans_of(axes), scratch / "balls.npz"
    (configuration,) = plans["configurations"].values()
    for name in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{name}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{name}_kwargs"] = RESAMPLING
    classes = np.where(volume > 0, 1 + volume % 2, 0)
    np.savez(path, image=image.clip(1, 255).astype(np.float32), spacing=[2.0, 0.5, 0.5], labels=classes)
    plans |= {"transpose_backward": [0, 1, 2], "plans_name": "nnUNetPlans"}
    name = f"nnUNetTrainer__nnUNetPlans__{next(iter(plans['configurations']))}"
    folder = write_folder(scratch / name, axes=axes, folds=(0, 1), mirroring=tuple(range(axes)), plans=plans)
    return folder, [path]


def _cellpose(scratch: Path) -> Path:
    """Write a network of random weights and a size model of random coefficients."""
    path = scratch / "cellpose-random"
    torch.save(residual_state(widths=CELLPOSE), path)
    rng = np.random.default_rng(0)
    model = {"A": rng.normal(0, 0.05, CELLPOSE[-1]), "smean": rng.normal(0, 0.05, CELLPOSE[-1])}
    content = np.array(model | {"ymean": np.log(25.0), "diam_mean": 30.0}, dtype=object)
    np.save(path.with_name(f"{path.name}_size.npy"), content, allow_pickle=True)
    return path


def _labels(scratch: Path, volume: NDArray[np.int32]) -> Path:
    path = scratch / "balls-mask.tif"
    tifffile.imwrite(path, volume.astype(np.uint16))
    return path


def _package(scratch: Path) -> Path:
    """Pack the first member of the starter."""
    starter, folder = read_ensemble(STARTER), scratch / "packages"
    folder.mkdir()
    return pack_members(starter, starter.spec.about, folder, [0])[0]


def _plane(scratch: Path, seed: int) -> Path:
    path = scratch / f"plane-{seed}.png"
    image, _ = simulate_field(seed, (256, 256))
    iio.imwrite(path, (image / image.max() * 255).astype(np.uint8))
    return path
