"""How many regions an actor must have in hand so that a fast device never waits for reading, scoring and writing.

The device of this benchmark answers a region of 2048 x 2048 after a set time and does nothing else; all around it is
the product's: `chorus.cluster.regions.worker.RegionWorker` reads OME-Zarr, prepares, scores, writes maps and labels,
and records. The share of the time in which the device was busy says whether it had to wait, on the cores of this
machine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.made import write_ensemble, write_images
from benchmarks.records import keep
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.predict import plan_job
from chorus.cluster.regions.batch_queue import Answered
from chorus.cluster.regions.worker import RegionWorker
from chorus.cluster.runs.setup import make_ready, open_record
from chorus.cluster.runtime.reporting import Silent
from chorus.pipeline.core.fields import ALEATORIC, EPISTEMIC, PROBABILITY
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.demo.synthetic_data import simulate_field
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.tile_stream import PlaneWindow

REGION, MEMBERS = 2048, 5
console = Console()


class Waiting:
    """See `chorus.cluster.regions.worker.Answering`: a device that takes `seconds` for a region, one after the other.

    Attributes
    ----------
    spans : when it began with a region and was done with it, by `time.perf_counter`
    """

    tiles_per_call = 1

    def __init__(self, seconds: float, posterior: Posterior) -> None:
        self._seconds, self._posterior = seconds, posterior
        self._lock = threading.Lock()
        self.spans: list[tuple[float, float]] = []

    def answer(self, plane: PlaneWindow, target: Window, features: TileFeatures | None = None) -> Answered:
        with self._lock:
            began = time.perf_counter()
            time.sleep(self._seconds)
            self.spans.append((began, time.perf_counter()))
        return self._posterior, self._seconds

    @property
    def busy(self) -> float:
        """Share of the time from its first to its last region."""
        spans = np.array(self.spans)
        return float((spans[:, 1] - spans[:, 0]).sum() / (spans[-1, 1] - spans[0, 0]))


def main(
    seconds: Annotated[list[float] | None, typer.Option(help="That the device takes for a region.")] = None,
    in_hand: Annotated[list[int] | None, typer.Option(help="Regions at once.")] = None,
    regions: Annotated[int, typer.Option(help="In all, a multiple of 16.")] = 32,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Measure the device's busy share.

    Example: `python benchmarks/feeding.py --seconds 0.3 --in-hand 3`
    """
    folder = Path(tempfile.mkdtemp(prefix="chorus-feeding-"))
    rows = []
    try:
        write_images(folder / "images", regions // 16, (4 * REGION, 4 * REGION))
        ensemble = write_ensemble(folder / "ensemble", MEMBERS, 512)
        posterior = made_posterior()
        for one in seconds or [0.3, 0.6]:
            for count in in_hand or [2, 3, 4, 6]:
                rows.append(fed(folder, ensemble, posterior, one, count, regions))
                console.print(rows[-1], highlight=False)
    finally:
        shutil.rmtree(folder)
    table = Table("seconds of a region", "in hand", "busy", "seconds of a core beside it")
    for row in rows:
        cells = (f"{row['seconds']:g}", str(row["in_hand"]), f"{row['busy']:.0%}", f"{row['cpu_per_region']:.2f}")
        table.add_row(*cells)
    console.print(table)
    keep(results, "-feeding", rows)


def fed(
    folder: Path, ensemble: Path, posterior: Posterior, seconds: float, in_hand: int, regions: int
) -> dict[str, Any]:
    """One run over all regions by as many threads as regions are in hand."""
    settings = ResultSettings(tile=512, overlap=0.5, augmentations=["identity"], region=REGION)
    sources = [str(path) for path in sorted((folder / "images").iterdir())]
    request = PredictRequest(sources=sources, ensemble=str(ensemble), out=str(folder / "out"), settings=settings)
    job = plan_job(request, Silent())
    record, fresh = open_record(job, time.time())
    context = make_ready(job, record, "feeding", fresh=fresh)
    device = Waiting(seconds, posterior)
    worker = RegionWorker(context, torch.device("cpu"), answering=device)
    cpu = sum(os.times()[:2])
    with ThreadPoolExecutor(in_hand) as pool:
        states = [status.state for status in pool.map(worker.process, range(regions))]
    cpu = sum(os.times()[:2]) - cpu
    if set(states) != {"done"}:
        raise RuntimeError(f"regions ended as {set(states)}")
    shutil.rmtree(folder / "out")
    return {
        "seconds": seconds, "in_hand": in_hand, "regions": regions, "busy": device.busy,
        "cpu_per_region": cpu / regions, "cores": psutil.cpu_count(),
    }  # fmt: skip


def made_posterior() -> Posterior:
    """Of a region with as many objects as a real one, and noise in the last bits of its maps as networks have it."""
    field = np.pad(simulate_field(0, (1024, 1024))[0], (0, REGION - 1024), mode="wrap").astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.01, field.shape).astype(np.float32)
    foreground = 1 / (1 + np.exp(-(field - field.mean()) / field.std())) + noise
    probability = np.stack([1 - foreground, foreground]).clip(0, 1)
    variance = probability[0] * probability[1]
    labels = (probability[1] > 0.5).astype(np.uint8)
    return Posterior(
        fields={
            PROBABILITY.name: probability,
            EPISTEMIC.name: (variance / 4)[None],
            ALEATORIC.name: (variance * 3 / 4)[None],
        },
        labels=labels,
        masks=labels,
        member_masks=np.stack([labels] * MEMBERS),
    )


if __name__ == "__main__":
    typer.run(main)
