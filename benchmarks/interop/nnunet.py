"""nnU-Net's own predictions beside those of Chorus, from one unmodified trained folder.

Three comparisons for each image, a file of ``image`` (z, y, x), its ``spacing`` and ``labels``:

- preparation: the image's non-zero crop, normalised by statistics that Chorus merges over planes, against nnU-Net's;
- networks: those that Chorus builds, on nnU-Net's patches, weights and mean of logits, against nnU-Net's probabilities;
- whole: `chorus ensemble add` and `chorus predict` against nnU-Net, and both against the truth.

Run it where nnunetv2 is installed beside Chorus. Where it is not, or with `--stored`, the answers that are stored in the
file (``preprocessed``, ``probabilities``) take its place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any

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
    labels, probabilities = predictor.predict_single_npy_array(
        raw.copy(), dict(properties), save_or_return_probabilities=True
    )
    return {"preprocessed": data, "segmentation": labels, "probabilities": probabilities}


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
    logits, mean = on_patches(facts, networks, prepared)
    for name, own in (("logits", logits), ("probabilities", mean)):
        whole = np.zeros_like(probabilities)
        whole[0] = 1
        whole[:, *crop] = own
        figures[f"mean of {name}"] = float(np.abs(whole - probabilities).max())
        figures[f"labels, {name}"] = _disagreement(whole, probabilities)
    figures["Dice nnU-Net"] = _dice(theirs["segmentation"], truth)
    if predict:
        labels, own = by_chorus(folder, image, content["spacing"])
        figures["Dice Chorus"] = _dice(labels, truth)
        figures["same label"] = float((labels == theirs["segmentation"]).mean())
        figures["same label in crop"] = float((labels == theirs["segmentation"])[crop].mean())
        figures["mean difference"] = float(np.abs(own - probabilities).mean())
    return figures


def on_patches(facts: Facts, networks: list[torch.nn.Module], prepared: Images) -> tuple[Images, Images]:
    """Predict on nnU-Net's patches with its weights, summed in float32.

    Returns
    -------
    tuple
        Probabilities (classes, z, y, x) from the mean of logits, as nnU-Net has it, and the mean of probabilities.
    """
    patch = facts.plans.configuration.patch_size
    size = [1] * (3 - len(patch)) + patch
    data, inside = _padded(prepared, size)
    weight = _gaussian(patch).reshape(size)
    mirrors = [axes for n in range(len(facts.mirroring) + 1) for axes in combinations(facts.mirroring, n)]
    sums = [np.zeros((len(facts.dataset.classes), *data.shape[1:])) for _ in range(2)]
    for start in product(*(_starts(n, p) for n, p in zip(data.shape[1:], size, strict=True))):
        window = tuple(slice(s, s + p) for s, p in zip(start, size, strict=True))
        tile = torch.from_numpy(data[:, *window].reshape(1, len(data), *patch))
        answers = []
        with torch.inference_mode():
            for network in networks:
                for axes in mirrors:
                    flipped = [axis + 2 for axis in axes]
                    answers.append(network(tile.flip(flipped)).flip(flipped))
        stacked = torch.stack(answers)
        for total, values in zip(sums, (stacked, stacked.softmax(dim=2)), strict=True):
            total[:, *window] += values.mean(dim=0).reshape(-1, *size).numpy() * weight
    logits, mean = sums
    softmax = torch.from_numpy(logits / _total(data.shape[1:], size, weight)).softmax(dim=0).numpy()
    return softmax[:, *inside], (mean / mean.sum(axis=0))[:, *inside]


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
        _chorus("predict", place / "images", "--ensemble", place / "ensemble", "--out", place / "out", "--dtype", "float32")
        (result,) = (place / "out" / "images").glob("*.zarr")
        group = zarr.open_group(result, mode="r")
        probability = np.asarray(group["s0"])[0]
        labels = np.asarray(group["labels/semantic/s0"])
        return labels.reshape(image.shape), probability


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
    return weight.astype(np.float64)


def _total(shape: tuple[int, ...], size: list[int], weight: Images) -> Images:
    total = np.zeros(shape)
    for start in product(*(_starts(n, p) for n, p in zip(shape, size, strict=True))):
        total[tuple(slice(s, s + p) for s, p in zip(start, size, strict=True))] += weight
    return total


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
