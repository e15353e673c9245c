"""Whole runs against their bare forward passes, on one machine in one go.

`whole` is the time from the first region's reading to the last record of ``chorus predict`` on Ray, from OME-Zarr to
OME-Zarr; `bare` is what the members' forward passes over the same unique tiles would take at the fastest of several
settings, measured on the same cores right before and right after; the run has as many threads and tiles a call as that
one. Start-up is given apart. Both are of the same `--backend` and `--precision`; where these are not eager and fp32,
forward passes of eager PyTorch in fp32 are measured, too. `benchmarks/compare.py` says what changed since then.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

# As in the actors of a run: idle threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.bare import Setting, best_setting, passes_per_second
from benchmarks.made import SIZE, write_ensemble, write_images
from benchmarks.records import keep, surroundings
from benchmarks.watching import Memory, Watch
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.telemetry.profile import profile, read_timeline
from chorus.pipeline.backends.choice import BACKENDS
from chorus.pipeline.core.augmentation import FLIPS
from chorus.pipeline.core.tiling import Grid

# A shared machine is slower for some seconds now and then, and a call with tiles of 512 takes more than one second.
BARE_SECONDS = 30.0
console = Console()


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer passes: under 5 minutes on 2 cores.")] = False,
    members: Annotated[int | None, typer.Option(help="ResNet-18 U-Nets in the ensemble.")] = None,
    tiles: Annotated[list[int] | None, typer.Option("--tile", help="Tile sizes.")] = None,
    images: Annotated[int | None, typer.Option(help="Images of 1024 x 1024 in the smaller run.")] = None,
    backend: Annotated[str, typer.Option(help=f"Of the networks: auto, {', '.join(BACKENDS)}.")] = "eager",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    few: Annotated[bool, typer.Option(help="Also few passes a tile, on 1 and 4 times the images.")] = True,
    actors: Annotated[
        int | None,
        typer.Option(help="Of one thread each, beside as many bare processes; the other cores are the host's."),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Measure whole runs against bare forward passes, and memory and time against the number of images.

    On all cores, passes and all that is done beside them share these; with fewer `--actors` they do not, as with GPUs.

    Examples: `python benchmarks/run.py --quick`, `python benchmarks/run.py --tile 512 --images 16`,
    `python benchmarks/run.py --backend inductor --precision bf16`, `python benchmarks/run.py --actors 1 --no-few`
    """
    members = members or 5
    augmentations = list(FLIPS)
    sizes = tiles or ([256] if quick else [256, 512])
    images = images or (2 if quick else 16)
    folder = Path(tempfile.mkdtemp(prefix="chorus-bench-"))
    how = {"backend": backend, "precision": precision}
    try:
        write_images(folder / "images", (4 if quick else 2) * images)
        rows = []
        if not quick:
            for tile in sizes:
                ensemble = write_ensemble(folder / f"ensemble-{tile}", members, tile)
                setting = best_setting(ensemble, tile, len(augmentations), how, seconds=4, processes=actors)
                rows.append(compare(folder, ensemble, setting, members, augmentations, images))
        if few:
            rows += growth(folder, sizes[0], images if quick else images // 2, how, actors)
        report(rows, results, quick=quick)
    finally:
        shutil.rmtree(folder)


def growth(folder: Path, tile: int, images: int, how: dict[str, str], actors: int | None) -> list[dict[str, Any]]:
    """Few passes a tile, then the same with 4 times the images: how time and memory grow."""
    ensemble = write_ensemble(folder / "ensemble-few", 2, tile)
    setting = best_setting(ensemble, tile, 1, how, seconds=2, processes=actors)
    small, large = (compare(folder, ensemble, setting, 2, ["identity"], count) for count in (images, 4 * images))
    large["time_ratio_of_4_times_the_images"] = large["whole_seconds"] / small["whole_seconds"]
    return [small, large]


def compare(
    folder: Path, ensemble: Path, setting: Setting, members: int, augmentations: list[str], images: int
) -> dict[str, Any]:
    """One row: bare passes before, the whole run, bare passes after."""
    tile = setting.tile
    console.print(f"tile {tile}, {members} members x {len(augmentations)} augmentations, {images} images ...")
    before = passes_per_second(ensemble, len(augmentations), [setting], seconds=BARE_SECONDS)[0]
    how = {"augmentations": augmentations, "backend": setting.backend, "precision": setting.precision}
    how |= {"batch": setting.tiles, "threads": setting.threads}
    sources = [folder / "images" / f"{index:04d}.zarr" for index in range(images)]
    row = whole_run(sources, ensemble, folder / "out", how, setting.processes)
    after = passes_per_second(ensemble, len(augmentations), [setting], seconds=BARE_SECONDS)[0]
    unique = Grid.make((SIZE, SIZE), tile, 0.5).count * images * members * len(augmentations)
    rate = (before + after) / 2
    bare = unique / rate
    plain = replace(setting, backend="eager", precision="fp32")
    eager = (
        rate if setting == plain else passes_per_second(ensemble, len(augmentations), [plain], seconds=BARE_SECONDS)[0]
    )
    return {
        "tile": tile,
        "backend": setting.backend,
        "precision": setting.precision,
        "members": members,
        "augmentations": len(augmentations),
        "images": images,
        "passes": unique,
        "bare_passes_per_second_before_after": [round(before, 2), round(after, 2)],
        "bare_setting": asdict(setting),
        "bare_seconds": bare,
        "engine_over_eager": rate / eager,
        "bare_over_whole": bare / float(row["whole_seconds"]),
        **row,
    }


def whole_run(
    sources: list[Path], ensemble: Path, out: Path, how: dict[str, Any], actors: int | None = None
) -> dict[str, Any]:
    """``chorus predict`` on Ray, in a process of its own so that its memory is its own; `how` are `ResultSettings`."""
    shutil.rmtree(out, ignore_errors=True)
    context = mp.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(
        target=_predict, args=(send, list(map(str, sources)), str(ensemble), str(out), how, actors)
    )
    process.start()
    send.close()  # so that a process that ends without an answer is heard of
    row: dict[str, Any] = receive.recv()
    process.join()
    return row


def _predict(
    send: Connection, sources: list[str], ensemble: str, out: str, how: dict[str, Any], actors: int | None
) -> None:
    from chorus.cluster.predict import predict

    watch = Watch()
    request = PredictRequest(
        sources=sources,
        ensemble=ensemble,
        out=out,
        settings=ResultSettings(**how),
        run=RunSettings(executor="ray", profile=True, actors=actors),
    )
    started = time.monotonic()
    with Memory() as memory:
        outcome = predict(request, watch)
    ended = time.monotonic()
    if outcome.state != "complete" or watch.first is None:
        raise SystemExit(f"the run did not come to its end: {outcome.state} {outcome.message}")
    whole = ended - watch.first
    send.send(
        {
            "whole_seconds": whole,
            "start_up_seconds": watch.first - started,
            "regions": watch.regions,
            "tiles": watch.tiles,
            "pixels": watch.pixels,
            "busy_share": watch.busy / (whole * watch.devices),
            "megapixels_per_second": watch.pixels / whole / 1e6,
            "peak_driver_bytes": memory.driver,
            "peak_workers_bytes": memory.workers,
            "devices_were": profile(read_timeline(out)).states,
        }
    )


def report(rows: list[dict[str, Any]], folder: Path, *, quick: bool) -> None:
    """Print one table and keep the figures as JSON."""
    machine, versions = surroundings()
    console.print(f"{machine}, {versions}", highlight=False)
    table = Table()
    heads = ("backend", "tile", "M x T", "images", "passes", "bare s", "/ eager", "whole s", "bare/whole", "busy")
    for head in (*heads, "start-up s", "driver MB", "workers MB"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            f"{row['backend']} {row['precision']}",
            f"{row['tile']}",
            f"{row['members']} x {row['augmentations']}",
            f"{row['images']}",
            f"{row['passes']}",
            f"{row['bare_seconds']:.1f}",
            f"{row['engine_over_eager']:.2f}",
            f"{row['whole_seconds']:.1f}",
            f"{row['bare_over_whole']:.3f}",
            f"{row['busy_share']:.0%}",
            f"{row['start_up_seconds']:.1f}",
            f"{row['peak_driver_bytes'] / 1e6:.0f}",
            f"{row['peak_workers_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    keep(folder, "-quick" if quick else "", rows)


if __name__ == "__main__":
    typer.run(main)
