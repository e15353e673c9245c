"""The starter ensemble `nuclei-fluo`: its images in one folder, and its scores on those that nobody trained on.

`gather` copies DSB 2018 and BBBC039 side by side for ``chorus train`` (the recipe is in the model card); `score`
evaluates members and ensemble on their test images and on out-of-distribution groups, prints a table, and keeps the
means in ``about.scores`` of ``ensemble.yaml``.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import typer
import yaml
from rich.console import Console

from chorus.commands.ensembles.train import scores_table
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.training.data.pairs import TrainingPair, find_pairs, load_pair
from chorus.pipeline.training.evaluation import Evaluator, FoldScore, summarise, verdict

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


@app.command()
def gather(data: Data, out: Annotated[Path, typer.Argument(help="Gets `images` and `labels`.")]) -> None:
    """Copy the training images of both sets into one folder, named by their set."""
    for name in ("dsb2018", "bbbc039"):
        for kind in ("images", "labels"):
            (out / kind).mkdir(parents=True, exist_ok=True)
            for file in sorted((data / name / "train" / kind).iterdir()):
                shutil.copyfile(file, out / kind / f"{name}-{file.name}")


@app.command()
def score(
    data: Data,
    ensemble: Annotated[Path, typer.Option(help="The ensemble's folder.")] = Path("chorus/builtin/nuclei-fluo"),
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


def _begin(ensemble: str) -> None:
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = Evaluator(read_ensemble(ensemble), torch.device("cpu"))


def _scores(pair: TrainingPair) -> list[FoldScore]:
    return _evaluator.scores(pair.name, *load_pair(pair))


if __name__ == "__main__":
    app()
