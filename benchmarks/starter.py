"""The starter ensemble `nuclei-fluo`: its images, its reference set, and its scores on images that nobody trained on.

`gather` copies DSB 2018 and BBBC039 side by side for ``chorus train`` and keeps whole fields out, of which `reference`
makes the reference set after the training. `score` evaluates members and ensemble on their test images and on
out-of-distribution groups, prints a table, and keeps the means in ``about.scores`` of ``ensemble.yaml``; `robust`
scores it on test images with noise, blur and a low gain. The recipe of a robust ensemble::

    python benchmarks/starter.py gather DATA starter
    chorus train starter/training/images --labels starter/training/labels --out nuclei-fluo --class background \\
      --class nucleus --flows --channel dna --encoder tu-tf_mobilenetv3_small_minimal_100 \\
      --option 'decoder_channels=[64,48,32,16,16]' --no-imagenet --folds 5 --steps 6000 --batch 8 --patch 128 \\
      --learning-rate 0.005 --validate-every 1000 --keep last --weights-dtype float16 --scale 0.5 2 --gamma 1.5 \\
      --contrast 1.8 --offset 0.2 --noise 0.12 --photons 15 --blur 2.5 --shading 0.5 --elastic --cutout 0.1
    python benchmarks/starter.py reference starter --ensemble nuclei-fluo
    python benchmarks/starter.py score DATA --ensemble nuclei-fluo
    python benchmarks/starter.py robust DATA --ensemble nuclei-fluo
"""

from __future__ import annotations

import csv
import hashlib
import multiprocessing as mp
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import typer
import yaml
from rich.console import Console
from rich.table import Table

from chorus.cluster.commands.calibrate import CalibrateRequest, calibrate_ensemble
from chorus.cluster.commands.convert import ConvertRequest, convert
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import RunSettings
from chorus.cluster.runtime.reporting import Silent
from chorus.commands.ensembles.train import scores_table
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.stress.corruptions import CORRUPTIONS, corrupted
from chorus.pipeline.training.data.pairs import TrainingPair, find_pairs, load_pair
from chorus.pipeline.training.evaluation import ENSEMBLE, Evaluator, FoldScore, summarise, verdict

app = typer.Typer(no_args_is_help=True)
console = Console()
Data = Annotated[Path, typer.Argument(help="Folder that holds dsb2018 and bbbc039, each split into train and test.")]
# OOD images of stained tissue are scored on their grey values, as `images_grey`.
TESTS = {
    "dsb2018-test": "dsb2018/test",
    "bbbc039-test": "bbbc039/test",
    **{f"ood-{name}": f"dsb2018/ood/{name}" for name in ("fluor_small_shift", "fluor_large", "fluor_tissue")},
    **{f"ood-{name}": f"dsb2018/ood/{name}" for name in ("brightfield", "he")},
}


BUILTIN = Path("chorus/builtin/nuclei-fluo")
# Images of whole fields that no member sees: the reference set of `chorus calibrate`. Out of 60 and 20.
REFERENCE = {"dsb2018": 24, "bbbc039": 6}

# Of the middle level of `chorus stress`.
SPOILT = {one.name: one for one in CORRUPTIONS if one.name in ("noise", "photons", "defocus", "gain")}
MIDDLE = 3


@app.command()
def gather(
    data: Data,
    out: Annotated[Path, typer.Argument(help="Gets `training` and `reference`.")],
    everything: Annotated[
        bool, typer.Option("--everything", help="Keep nothing out, as for the first `nuclei-fluo`.")
    ] = False,
) -> None:
    """Copy the training images of both sets into one folder, and those of the fields kept as reference into another."""
    for name, number in REFERENCE.items():
        groups = fields(data / name)
        kept_out = reference_fields(groups, 0 if everything else number)
        for image, group in groups.items():
            place = out / ("reference" if group in kept_out else "training")
            for kind in ("images", "labels"):
                (place / kind).mkdir(parents=True, exist_ok=True)
                (file,) = (data / name / "train" / kind).glob(f"{image}.*")
                shutil.copyfile(file, place / kind / f"{name}-{file.name}")
    for place in sorted(out.iterdir()):
        console.print(f"{place.name}: {len(list((place / 'images').iterdir()))} images", highlight=False)


def fields(folder: Path) -> dict[str, str]:
    """Return the field of each training image, by the name of its file without the suffix.

    Tiles of DSB 2018 that were cut from one field have the same `field_group`; BBBC039 has one field a well.
    """
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    key = "field_group" if "field_group" in rows[0] else "well"
    return {Path(row["image"]).stem: row[key] for row in rows if row["image"].startswith("train/")}


def reference_fields(groups: dict[str, str], number: int) -> set[str]:
    """Return whole fields with `number` images in all, in an order that depends on the fields' names alone."""
    chosen: set[str] = set()
    left = number
    for group in sorted(set(groups.values()), key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = sum(one == group for one in groups.values())
        if size <= left:
            chosen.add(group)
            left -= size
    return chosen


@app.command()
def reference(
    gathered: Annotated[Path, typer.Argument(help="What `gather` made.")],
    ensemble: Annotated[Path, typer.Option(help="The ensemble's folder, trained on `training` alone.")] = BUILTIN,
) -> None:
    """Make the reference set of the ensemble of the fields that were kept out, and say what it weighs."""
    with tempfile.TemporaryDirectory() as folder:
        images, out = str(Path(folder) / "images"), str(Path(folder) / "out")
        convert(
            ConvertRequest(sources=[str(gathered / "reference" / "images")], out=images, executor="serial"), Silent()
        )
        run = PredictRequest(sources=[images], ensemble=str(ensemble), out=out, run=RunSettings(executor="serial"))
        truth = str(gathered / "reference" / "labels")
        made = calibrate_ensemble(CalibrateRequest(run=run, truth=truth), Silent())
    if made.reference is None or made.failures:
        console.print(made.message, *made.failures.values())
        raise typer.Exit(1)
    known = made.reference
    weights = [(ensemble / f"reference.{suffix}").stat().st_size for suffix in ("json", "npz")]
    console.print(
        f"{known.images} images, mean Dice {np.mean(known.dice):.3f}, {sum(weights) / 1e6:.2f} MB", highlight=False
    )
    for note in known.notes:
        console.print(note, highlight=False)


@app.command()
def score(
    data: Data,
    ensemble: Annotated[Path, typer.Option(help="The ensemble's folder.")] = BUILTIN,
    only: Annotated[list[str] | None, typer.Option(help=f"Out of {', '.join(TESTS)}; by default all.")] = None,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Score members and ensemble, with augmentations and without, on every test set and out-of-distribution group."""
    path = ensemble / "ensemble.yaml"
    content = yaml.safe_load(path.read_text())
    found: dict[str, dict[str, float]] = content["about"].setdefault("scores", {})
    with ProcessPoolExecutor(workers, mp.get_context("spawn"), _begin, (str(ensemble),)) as pool:
        for name, place in TESTS.items():
            if only and name not in only:
                continue
            images = data / place / "images_grey"
            images = images if images.is_dir() else data / place / "images"
            pairs = find_pairs(str(images), str(data / place / "labels"), ["dna"]).pairs
            begun = time.monotonic()
            scores = [one for scores in pool.map(_scores, pairs) for one in scores]
            found[name] = {key: round(value, 4) for key, value in summarise(scores).items()}
            console.print(scores_table(name, found[name]))
            console.print(f"{verdict(found[name])}; {time.monotonic() - begun:.0f} s", highlight=False)
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


@app.command()
def robust(
    data: Data,
    ensemble: Annotated[Path, typer.Option(help="The ensemble's folder.")] = BUILTIN,
    only: Annotated[list[str] | None, typer.Option(help="Out of dsb2018-test, bbbc039-test; by default both.")] = None,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Score the ensemble on test images as they are, and spoilt as in the middle of `chorus stress`."""
    with ProcessPoolExecutor(workers, mp.get_context("spawn"), _begin, (str(ensemble),)) as pool:
        for name in only or ("dsb2018-test", "bbbc039-test"):
            pairs = find_pairs(str(data / TESTS[name] / "images"), str(data / TESTS[name] / "labels"), ["dna"]).pairs
            table = Table(title=f"{name}: {len(pairs)} images, {ensemble}", title_justify="left")
            for title in ("", "Dice", "AP 0.5", "mAP"):
                table.add_column(title, justify="right" if title else "left")
            for how in ("as it is", *SPOILT):
                scores = [one for scores in pool.map(partial(_corrupted_scores, how), pairs) for one in scores]
                means = summarise(scores)
                one = SPOILT.get(how)
                label = how if one is None else f"{one.label}, {one.degree(MIDDLE):g} {one.unit}"
                table.add_row(label, *(f"{means[f'{key}:{ENSEMBLE}']:.3f}" for key in ("dice", "ap50", "map")))
            console.print(table)


def _corrupted_scores(how: str, pair: TrainingPair) -> list[FoldScore]:
    image, truth = load_pair(pair)
    if how in SPOILT:
        seed = int(hashlib.sha256(pair.name.encode()).hexdigest()[:8], 16)
        image, truth = corrupted(image, truth, SPOILT[how], MIDDLE, seed)
    return _evaluator.scores(pair.name, image, truth)


def _begin(ensemble: str) -> None:
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = Evaluator(read_ensemble(ensemble), torch.device("cpu"))


def _scores(pair: TrainingPair) -> list[FoldScore]:
    return _evaluator.scores(pair.name, *load_pair(pair))


if __name__ == "__main__":
    app()
