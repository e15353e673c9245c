"""What other backends and reduced precision change: an ensemble on images, beside PyTorch in fp32.

::

    python benchmarks/precision.py IMAGES... --ensemble E [--truth LABELS] [--ways openvino:fp32,openvino:bf16]

Prints for each way the largest and the mean difference of a probability, the share of pixels whose label changes, how
U moves and keeps its order, and with a truth the Dice of both. Works on the CPU and on a GPU.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.io.outputs.writer import open_labels, open_posterior

REFERENCE = "eager:fp32"


def main(
    sources: Annotated[list[str], typer.Argument(help="OME-Zarr images, as for `chorus predict`.")],
    ensemble: Annotated[str, typer.Option(help="ensemble.yaml")],
    truth: Annotated[str | None, typer.Option(help="Labels, as for `chorus evaluate --truth`.")] = None,
    ways: Annotated[str, typer.Option(help="backend:precision, comma-separated.")] = "eager:bf16,eager:fp16",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    augment: Annotated[bool, typer.Option(help="With the ensemble's augmentations.")] = True,
    results: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Compare backends and precisions.

    Example: `python benchmarks/precision.py plate.ome.zarr --ensemble nuclei/ --ways openvino:fp32,openvino:bf16`
    """
    rows = []
    with TemporaryDirectory() as folder:
        for way in (REFERENCE, *ways.split(",")):
            backend, _, precision = way.partition(":")
            settings = {"backend": backend, "precision": precision, "device": device, "dtype": "float32"}
            settings |= {} if augment else {"augmentations": ["identity"]}
            rows.append(_measured(folder, way, sources, ensemble, truth, settings))
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*names)
    for row in rows:
        table.add_row(*(_shown(row.get(name)) for name in names))
    Console().print(table)
    if results is not None:
        results.write_text(json.dumps(rows, indent=2))


def _measured(
    folder: str, way: str, sources: list[str], ensemble: str, truth: str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """One way beside the reference, which ran before."""
    out = f"{folder}/{way}"
    wanted = ResultSettings.model_validate(settings | {"save": ["probability"]})
    started = time.monotonic()
    run = RunSettings(executor="serial")
    predict(PredictRequest(sources=sources, ensemble=ensemble, out=out, settings=wanted, run=run), Silent())
    row: dict[str, Any] = {"way": way, "seconds": time.monotonic() - started}
    exact, found = (read_scores(f"{folder}/{one}").set_index("name") for one in (REFERENCE, way))
    kept = exact.index[exact["status"] == "done"]
    largest, total, changed, pixels = 0.0, 0.0, 0, 0
    for name in kept:
        urls = [f"{folder}/{one}/images/{name}" for one in (REFERENCE, way)]
        first, second = (np.asarray(open_posterior(url)[:]) for url in urls)
        labels = [np.asarray(open_labels(url)[:]) for url in urls]
        difference = np.abs(first - second)
        largest, total = max(largest, float(difference.max())), total + float(difference.mean(dtype=np.float64))
        changed, pixels = changed + int((labels[0] != labels[1]).sum()), pixels + labels[0].size
    uncertain = exact.loc[kept, "uncertainty"], found.loc[kept, "uncertainty"]
    row |= {"max |dp|": largest, "mean |dp|": total / len(kept), "labels changed": changed / pixels}
    row |= {
        "mean U": float(uncertain[1].mean()),
        "max |dU|": float((uncertain[0] - uncertain[1]).abs().max()),
        "Spearman of U": float(uncertain[0].corr(uncertain[1], method="spearman")),
    }
    if truth is not None:
        evaluate(EvaluateRequest(out=out, truth=truth, executor="serial"), Silent())
        dice = read_evaluation(out).filter(like="dice:")
        row["mean Dice"] = float(dice.mean(axis=1).mean())
    return row


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


if __name__ == "__main__":
    typer.run(main)
