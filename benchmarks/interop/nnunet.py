"""nnU-Net's own predictions beside those of Chorus, from one unmodified trained folder.

Three comparisons for each image, a file of ``image`` (z, y, x), its ``spacing`` and ``labels``:

- preparation: the image's non-zero crop, normalised by statistics that Chorus merges over planes, against nnU-Net's;
- networks: those that Chorus builds, on nnU-Net's patches, weights and mean of logits, against nnU-Net's probabilities;
- whole: `chorus ensemble add` and `chorus predict` against nnU-Net, and both against the truth.

Run it where nnunetv2 is installed beside Chorus; with `--stored` the answers in the file (``preprocessed``,
``probabilities``, ``segmentation``) take its place. nnU-Net sums logits and weights in float16: `float16` is the
difference with sums like that, `float32` with the sums that Chorus would take.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import tifffile
import torch
import typer
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from chorus.pipeline.members.kinds.nnunet.folder import Facts, Fold, facts_of, folds_at
from chorus.pipeline.members.kinds.nnunet.networks import build_network
from chorus.pipeline.preprocessing.preparation import surveyed

MARGIN = 5e-3
"""Labels must agree where the two most probable classes are further apart than this."""
Images = NDArray[Any]


def main(
    folder: Annotated[Path, typer.Argument(help="A folder that nnU-Net trained.")],
    images: Annotated[list[Path], typer.Argument(help="Files (.npz) with image, spacing and labels.")],
    stored: Annotated[bool, typer.Option("--stored", help="Compare with what the files hold.")] = False,
    predict: Annotated[bool, typer.Option("--predict/--no-predict", help="Run Chorus on the whole images too.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON of the figures.")] = None,
) -> None:
    """Print the comparison."""
    facts, networks = trained(folder)
    rows = []
    for path in images:
        with np.load(path) as file:
            content = {name: file[name] for name in file}
        theirs = content if stored else by_nnunet(folder, content["image"], content["spacing"])
        rows.append({"image": path.stem} | compared(folder, facts, networks, content, theirs, predict=predict))
        Console(stderr=True).print(rows[-1])
    table = Table(title=f"{folder.name}: Chorus against nnU-Net{' (stored)' if stored else ''}")
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    Console(width=200).print(table)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


def trained(folder: Path) -> tuple[Facts, list[torch.nn.Module]]:
    """Return what the folder says, and the networks of its folds."""
    networks = []
    for fold in folds_at(str(folder), [path.name for path in folder.iterdir()]):
        facts, state = facts_of(fold, fold.read())
        own = facts.plans.configuration
        outputs = len(facts.dataset.classes) - facts.dataset.has_regions
        channels = len(facts.dataset.channels)
        # nnU-Net's own order of axes: the volume is transposed before.
        built = build_network(str(folder), own.architecture, channels, outputs, state, range(len(own.patch_size)))
        networks.append(built.eval())
    return facts, networks


def by_nnunet(folder: Path, image: Images, spacing: Images) -> dict[str, Images]:
    """Return what nnU-Net itself predicts of (z, y, x)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    predictor = nnUNetPredictor(
        use_mirroring=True, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), tuple(fold.fold for fold in _folds(folder)))
    # It changes the array that it is given.
    raw, properties = image[None].astype(np.float32), {"spacing": list(spacing)}
    data, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        raw.copy(), None, dict(properties), predictor.plans_manager, predictor.configuration_manager,
        predictor.dataset_json,
    )  # fmt: skip
    answers = {}
    for name, sums in (("", torch.float16), (" in float32", torch.float32)):
        # The dtype of its sums is written in its code.
        with patch.object(torch, "half", sums):
            labels, probabilities = predictor.predict_single_npy_array(
                raw.copy(), dict(properties), save_or_return_probabilities=True
            )
        answers |= {f"segmentation{name}": labels, f"probabilities{name}": probabilities}
    return {"preprocessed": data} | answers


def compared(
    folder: Path,
    facts: Facts,
    networks: list[torch.nn.Module],
    content: dict[str, Images],
    theirs: dict[str, Images],
    *,
    predict: bool,
) -> dict[str, float | str]:
    """Return the figures of an image."""
    image, truth = content["image"], content["labels"]
    crop = _crop(image)
    planes = [image[None, z] for z in range(len(image))]
    prepared = facts.prepared.apply(image[None], surveyed(facts.prepared.measures, planes))[:, *crop]
    figures: dict[str, float | str] = {}
    if "preprocessed" in theirs and theirs["preprocessed"].shape == prepared.shape:
        figures["preparation"] = float(np.abs(prepared - theirs["preprocessed"].astype(np.float32)).max())
    probabilities = theirs["probabilities"].astype(np.float32)
    for name, own in on_patches(facts, networks, prepared).items():
        whole = np.zeros_like(probabilities)
        whole[0] = 1
        whole[:, *crop] = own
        figures[f"{name}: difference"] = float(np.abs(whole - probabilities).max())
        figures[f"{name}: labels"] = _disagreement(whole, probabilities)
        figures[f"{name}: Dice"] = _dice(whole.argmax(axis=0), truth)
        if name == "float32" and (exact := theirs.get("probabilities in float32")) is not None:
            figures["both in float32: difference"] = float(np.abs(whole - exact).max())
    figures["nnU-Net: Dice"] = _dice(theirs["segmentation"], truth)
    if predict:
        labels, own = by_chorus(folder, image, content["spacing"])
        figures["Chorus: Dice"] = _dice(labels, truth)
        inside = np.zeros_like(labels)
        inside[crop] = labels[crop]
        figures["Chorus, nothing outside of the crop: Dice"] = _dice(inside, truth)
        figures["same labels"] = float((labels == theirs["segmentation"])[crop].mean())
        figures["mean difference"] = float(np.abs(own - probabilities)[:, *crop].mean())
    return figures


def on_patches(facts: Facts, networks: list[torch.nn.Module], prepared: Images) -> dict[str, Images]:
    """Predict on nnU-Net's patches with its weights.

    Returns
    -------
    dict
        Probabilities (classes, z, y, x): of the mean of logits over folds, mirrors and patches, summed in ``float16``
        as nnU-Net does or in ``float32``; and the ``mean`` of probabilities.
    """
    edges = facts.plans.configuration.patch_size
    size = [1] * (3 - len(edges)) + edges
    data, inside = _padded(prepared, size)
    weight = torch.from_numpy(_gaussian(edges)).reshape(size)
    mirrors = [axes for n in range(len(facts.mirroring) + 1) for axes in combinations(facts.mirroring, n)]
    classes, half, whole = len(facts.dataset.classes), torch.float16, torch.float64
    sums = torch.zeros((classes, *data.shape[1:]), dtype=whole)
    mean, total = torch.zeros_like(sums), torch.zeros(data.shape[1:], dtype=whole)
    folds = [torch.zeros_like(sums, dtype=half) for _ in networks]
    rounded = torch.zeros_like(total, dtype=half)
    for start in product(*(_starts(n, p) for n, p in zip(data.shape[1:], size, strict=True))):
        window = tuple(slice(s, s + p) for s, p in zip(start, size, strict=True))
        tile = torch.from_numpy(data[:, *window].reshape(1, len(data), *edges))
        with torch.inference_mode():
            views = torch.stack([_mirrored(network, tile, axes) for network in networks for axes in mirrors])
        logits = views.reshape(len(networks), len(mirrors), classes, *size)
        mean[:, *window] += logits.softmax(dim=2).mean(dim=(0, 1)) * weight
        sums[:, *window] += logits.mean(dim=(0, 1)) * weight
        total[window] += weight
        rounded[window] += weight
        for fold, own in zip(folds, logits.mean(dim=1), strict=True):
            fold[:, *window] += own * weight
    average = torch.stack([fold / rounded for fold in folds]).sum(dim=0) / len(folds)
    found = {"float16": average.float().softmax(dim=0), "float32": (sums / total).softmax(dim=0), "mean": mean / total}
    return {name: value[:, *inside].numpy() for name, value in found.items()}


def _mirrored(network: torch.nn.Module, tile: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    flipped = [axis + 2 for axis in axes]
    logits: torch.Tensor = network(tile.flip(flipped)).flip(flipped)[0]
    return logits


def by_chorus(folder: Path, image: Images, spacing: Images) -> tuple[Images, Images]:
    """Run the two commands on (z, y, x); return labels and the probabilities of all classes."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        z, y, x = map(float, spacing)
        tifffile.imwrite(
            place / "volume.ome.tif", image,
            metadata={"axes": "ZYX", "PhysicalSizeX": x, "PhysicalSizeY": y, "PhysicalSizeZ": z},
        )  # fmt: skip
        _chorus("convert", place / "volume.ome.tif", "--out", place / "images")
        _chorus("ensemble", "add", place / "ensemble", folder)
        _chorus(
            "predict",
            place / "images",
            "--ensemble",
            place / "ensemble",
            "--out",
            place / "out",
            "--dtype",
            "float32",
            "--executor",
            "serial",
        )
        (result,) = (place / "out" / "images").glob("*.zarr")
        group = zarr.open_group(result, mode="r")
        names = [channel["label"] for channel in group.attrs["ome"]["omero"]["channels"]]
        own = [index for index, name in enumerate(names) if name.startswith("probability")]
        maps, labels = np.asarray(group["s0"]), np.asarray(group["labels/semantic/s0"])
        return labels.reshape(image.shape), maps.reshape(len(names), *image.shape)[own]


def _chorus(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "chorus.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def _folds(folder: Path) -> list[Fold]:
    return folds_at(str(folder), [path.name for path in folder.iterdir()])


def _crop(image: Images) -> tuple[slice, ...]:
    return tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(image))


def _padded(data: Images, size: list[int]) -> tuple[Images, tuple[slice, ...]]:
    missing = [max(0, p - n) for n, p in zip(data.shape[1:], size, strict=True)]
    pads = [(gap // 2, gap - gap // 2) for gap in missing]
    inside = tuple(slice(low, low + n) for (low, _), n in zip(pads, data.shape[1:], strict=True))
    return np.pad(data, [(0, 0), *pads]), inside


def _starts(length: int, patch: int) -> list[int]:
    steps = int(np.ceil((length - patch) / (patch / 2))) + 1
    return [0] if steps == 1 else [int(np.round((length - patch) / (steps - 1) * i)) for i in range(steps)]


def _gaussian(patch: list[int]) -> Images:
    peak = np.zeros(patch)
    peak[tuple(p // 2 for p in patch)] = 1
    weight = gaussian_filter(peak, [p / 8 for p in patch], 0, mode="constant", cval=0)
    weight = (weight / weight.max() * 10).astype(np.float16)
    weight[weight == 0] = weight[weight > 0].min()
    return weight


def _disagreement(own: Images, theirs: Images) -> float:
    """Return the number of pixels whose labels differ although their margin is over `MARGIN`."""
    ranked = np.sort(theirs, axis=0)
    clear = ranked[-1] - ranked[-2] > MARGIN
    return int(((own.argmax(axis=0) != theirs.argmax(axis=0)) & clear).sum())


def _dice(labels: Images, truth: Images) -> str:
    values = []
    for label in range(1, int(truth.max()) + 1):
        ours, real = labels == label, truth == label
        values.append(2 * (ours & real).sum() / max(1, ours.sum() + real.sum()))
    return " ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    typer.run(main)
