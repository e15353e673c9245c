"""``chorus train``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from chorus.commands.ensembles.train_options import TrainOptions
from chorus.console.format import duration
from chorus.console.options import Json, with_options

if TYPE_CHECKING:
    from chorus.cluster.training.run import TrainOutcome


@with_options(TrainOptions)
def train(options: TrainOptions, as_json: Json = False) -> None:
    """Train an ensemble from annotated images, a fold per GPU (or core); the same command again resumes.

    OUT becomes the ensemble: `ensemble.yaml` at the end, `training/curves.svg`, and from the first validation on the
    best weights so far in `folds/`. Exit code 0: all done, 1: done without images that could not be read, 2: refused,
    3: interrupted, resumable.

    **Examples**

    `chorus train images/ --labels masks/ --out nuclei/ --flows --class background --class nucleus`

    `chorus train plate.ome.zarr --labels nuclei --out nuclei/ --hold-out 0.2 --encoder resnet34 --learning-rate find`

    `chorus train images/ -l masks/ -o gs://bucket/tissue --label-kind classes --class background --class gland
    --class vessel --test unseen/ --test-labels unseen-masks/ --address auto`

    `chorus train few/ -l few-masks/ -o tuned/ --start nuclei/ --steps 400 --folds 3`
    """
    from chorus.cluster.training import run as training
    from chorus.console.training_progress import TrainingReporter

    err = Console(stderr=True)
    outcome = training.train(options.request(), TrainingReporter(err))
    if as_json:
        print(json.dumps(_content(outcome)))
    for dataset, scores in outcome.scores.items():
        err.print(scores_table(dataset, scores))
        err.print(outcome.verdicts[dataset], highlight=False, soft_wrap=True, markup=False)
    for line in _lines(outcome):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


def scores_table(dataset: str, scores: dict[str, float]) -> Table:
    """Return a table with a row per predictor: Dice, and AP of objects where there are any."""
    metrics = {"dice": "Dice", "ap50": "AP 0.5", "map": "mAP 0.5:0.95"}
    there = [metric for metric in metrics if any(name.startswith(f"{metric}:") for name in scores)]
    table = Table(title=f"{dataset}: {scores['images']:.0f} images that nobody trained on", title_justify="left")
    table.add_column("")
    for metric in there:
        table.add_column(metrics[metric], justify="right")
    for predictor in [name.removeprefix("dice:") for name in scores if name.startswith("dice:")]:
        table.add_row(predictor.replace(":", ", "), *(f"{scores[f'{metric}:{predictor}']:.4f}" for metric in there))
    return table


def _content(outcome: TrainOutcome) -> dict[str, Any]:
    """Return the outcome as JSON content."""
    names = ("out", "state", "hash", "scores", "verdicts", "skipped", "seconds")
    content = {name: getattr(outcome, name) for name in names}
    return content | {"folds": [fold.model_dump(mode="json") for fold in outcome.folds]}


def _lines(outcome: TrainOutcome) -> list[str]:
    """Return how the training ended, where the ensemble is, and what to do next."""
    dices = ", ".join(f"{fold.mean_dice:.3f}" for fold in outcome.folds)
    begun = ", ".join(sorted({fold.begun_with for fold in outcome.folds}))
    lines = [
        f"{len(outcome.folds)} members, begun with {begun} weights; validation Dice {dices}; "
        f"{duration(outcome.seconds)} since the training was first begun"
    ]
    lines += [f"  {reason}: {len(names)} left out" for reason, names in outcome.skipped.items()]
    return [
        *lines,
        f"ensemble {outcome.out}/ensemble.yaml",
        f"curves   {outcome.out}/training/curves.svg",
        f"next     chorus predict IMAGES --ensemble {outcome.out} --out results",
    ]
