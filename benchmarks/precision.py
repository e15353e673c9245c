"""What reduced precision changes: an ensemble on images, in fp32 and in bf16 or fp16 autocast.

Prints, for each image, the largest and the mean difference of the probability, the share of pixels whose label
changes, and U in both. Works on the CPU and on a GPU.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cluster.record import read_scores
from cluster.reprocess import predict
from cluster.request import PredictRequest, Silent
from cluster.settings import ResultSettings, RunSettings
from pipeline.outputs import open_labels, open_posterior


def main(
    sources: Annotated[list[str], typer.Argument(help="OME-Zarr images, as for `chorus predict`.")],
    ensemble: Annotated[str, typer.Option(help="ensemble.yaml")],
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    augment: Annotated[bool, typer.Option(help="With the ensemble's augmentations.")] = True,
) -> None:
    """Compare precisions.

    Example: `python benchmarks/precision.py plate.ome.zarr --ensemble nuclei/ --device cuda`
    """
    table = Table()
    for head in (
        "precision",
        "image",
        "max |dp|",
        "mean |dp|",
        "labels changed",
        "U fp32",
        "U",
        "seconds fp32",
        "seconds",
    ):
        table.add_column(head, justify="right")
    with TemporaryDirectory() as folder:
        seconds = {}
        for precision in ("fp32", "bf16", "fp16"):
            settings = ResultSettings.model_validate(
                {"precision": precision, "device": device, "dtype": "float32", "save": ["probability"]}
                | ({} if augment else {"augmentations": ["identity"]})
            )
            out = str(Path(folder) / precision)
            started = time.monotonic()
            run = RunSettings(executor="serial")
            predict(PredictRequest(sources=sources, ensemble=ensemble, out=out, settings=settings, run=run), Silent())
            seconds[precision] = time.monotonic() - started
        exact = read_scores(f"{folder}/fp32").set_index("name")
        for precision in ("bf16", "fp16"):
            rough = read_scores(f"{folder}/{precision}").set_index("name")
            for name in exact.index[exact["status"] != "failed"]:
                urls = [f"{folder}/{kind}/images/{name}" for kind in ("fp32", precision)]
                a, b = (np.asarray(open_posterior(url)[:]) for url in urls)
                labels = [np.asarray(open_labels(url)[:]) for url in urls]
                table.add_row(
                    precision,
                    name,
                    f"{np.abs(a - b).max():.1e}",
                    f"{np.abs(a - b).mean():.1e}",
                    f"{np.mean(labels[0] != labels[1]):.2e}",
                    f"{exact.loc[name, 'uncertainty']:.6f}",
                    f"{rough.loc[name, 'uncertainty']:.6f}",
                    f"{seconds['fp32']:.0f}",
                    f"{seconds[precision]:.0f}",
                )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
