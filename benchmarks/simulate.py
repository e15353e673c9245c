"""The schedule from 1 to 1,000 GPUs by simulation: a table (CSV) and a picture (PNG) for docs/scale.md.

The run is 1 PB: 10^7 regions of 4096 x 4096 pixels of 3 channels of 16 bits, in 10^6 images. A region takes a GPU 3 s.
Constants are those that were measured here; see docs/scale.md for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console

from chorus.cluster.costs.simulation import simulate
from chorus.cluster.planning.devices.placement import tasks_at_once
from chorus.cluster.planning.devices.schedule import Devices, Schedule, Work

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
RATES = (0.0, 0.05, 0.5, 2.0)
GPUS_PER_NODE, CORES_PER_GPU = 8, 8
REGIONS, IMAGES, GPU_SECONDS = 10**7, 10**6, 3.0
# The driver's memory (`benchmarks/planning.py` at three sizes): libraries, an image, a region; rows of scores at the
# end.
LIBRARIES, PER_IMAGE, PER_REGION, PER_ROW = 615e6, 1_060, 21, 2_070
# Of a bucket: a page of 1,000 names, with one core's work (`benchmarks/listing.py`); requests of a region
# (docs/buckets.md).
PAGE, PAGE_SECONDS, REQUESTS, WRITES = 1_000, 0.1, 8, 5
app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


@dataclass(frozen=True)
class Design:
    """A way to cut and to finish: the present one, or another one to compare with."""

    name: str
    most_blocks_per_actor: int = Schedule().most_blocks_per_actor
    tasks: int | None = None

    def schedule(self, gpus: int) -> Schedule:
        return Schedule(
            # No more regions in a block than there must be: one of 289 tiles fills a block by itself.
            regions_per_block=1,
            most_blocks_per_actor=self.most_blocks_per_actor,
            tasks=self.tasks or tasks_at_once(gpus * CORES_PER_GPU),
        )


DESIGNS = (
    Design("at most 5,000 blocks, 2 finishing tasks", most_blocks_per_actor=0, tasks=2),
    Design("at most 5,000 blocks, 256 finishing tasks", most_blocks_per_actor=0, tasks=256),
    Design("at most 5,000 blocks", most_blocks_per_actor=0),
    Design("64 blocks for each actor (as it is)"),
)
WORK = Work(REGIONS, IMAGES, spread=0.2, read_seconds=2.0, write_seconds=3.5, finish_seconds=18.0)


@app.command()
def main(
    table: Annotated[Path, typer.Option(help="CSV.")] = Path("docs/scale.csv"),
    picture: Annotated[Path, typer.Option(help="PNG.")] = Path("docs/images/scale.png"),
) -> None:
    """Simulate all designs, numbers of GPUs and preemption rates; write the table and the picture."""
    rows = [_row(design, gpus, 0.0) for design in DESIGNS for gpus in GPUS]
    rows += [_row(DESIGNS[-1], gpus, rate) for rate in RATES[1:] for gpus in GPUS]
    frame = pd.DataFrame(rows)
    table.parent.mkdir(parents=True, exist_ok=True)
    frame.round(6).to_csv(table, index=False)
    shown = frame[frame.gpus.isin([1, 64, 1000])]
    console.print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    draw(frame, picture)
    console.print(f"kept in {table} and {picture}", highlight=False)


def _row(design: Design, gpus: int, rate: float) -> dict[str, Any]:
    kind = Devices(gpus, GPU_SECONDS, min(gpus, GPUS_PER_NODE), start_seconds=300, preemptions_per_hour=rate)
    ended = simulate([kind], WORK, design.schedule(gpus))
    return {
        "design": design.name,
        "gpus": gpus,
        "preemptions_per_node_hour": rate,
        "days": ended.seconds / 86_400,
        "busy": ended.busy,
        "whole_busy": ended.device_seconds / (gpus * ended.seconds),
        "blocks": ended.blocks,
        "tail_hours": ended.tail_seconds / 3600,
        "finish_hours": ended.finish_seconds / 3600,
        "driver_busy": ended.driver_busy,
        "driver_gb": _driver_memory() / 1e9,
        "preemptions": ended.preemptions,
        "repeated": ended.repeated_seconds / (ended.device_seconds + ended.repeated_seconds),
        "writes_per_second": WRITES * REGIONS / ended.stream_seconds,
        "requests_per_second": REQUESTS * REGIONS / ended.stream_seconds,
        "listing_minutes": (REGIONS + IMAGES) / PAGE * PAGE_SECONDS / 60,
    }


def _driver_memory() -> float:
    return LIBRARIES + PER_IMAGE * IMAGES + PER_REGION * REGIONS + PER_ROW * IMAGES


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Busy share, the end of the run, the driver, and repeated work, each against GPUs."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    still = frame[frame.preemptions_per_node_hour == 0]
    panels = (
        (axes[0, 0], "whole_busy", "share of GPU hours at work, start-up and end counted in"),
        (axes[0, 1], "driver_busy", "share of the driver's time"),
        (axes[1, 0], "end_hours", "hours at the end with idle GPUs"),
    )
    still = still.assign(end_hours=still.tail_hours + still.finish_hours)
    for axis, column, title in panels:
        for name, part in still.groupby("design", sort=False):
            axis.plot(part.gpus, part[column], marker=".", label=name)
        axis.set(xscale="log", xlabel="GPUs", title=title)
    axes[0, 0].axhline(0.95, color="grey", linewidth=0.8, linestyle="--")
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].set(yscale="log", ylim=(0.1, 5_000))
    for rate, part in frame[frame.design == DESIGNS[-1].name].groupby("preemptions_per_node_hour"):
        axes[1, 1].plot(part.gpus, 1 - part.whole_busy, marker=".", label=f"{rate:g} an hour")
    axes[1, 1].set(xscale="log", xlabel="GPUs", yscale="log")
    axes[1, 1].set_title("share of GPU hours not at work, by preemptions of a node")
    axes[1, 1].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(visible=True, alpha=0.3)
    figure.suptitle(f"10^7 regions of {GPU_SECONDS:g} s (1 PB), simulated")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    app()
