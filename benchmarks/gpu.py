"""What a GPU gives: forward passes by backend and precision, their share of its peak, and whole runs against them.

Runs unattended in under 8 minutes: what no time is left for is left out and named. Nothing is downloaded; networks have
random weights. `--device cpu --quick` runs the same code on a small scale where there is no GPU.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.made import write_ensemble, write_images
from benchmarks.records import keep, surroundings
from benchmarks.run import whole_run
from chorus.pipeline.backends.choice import usable
from chorus.pipeline.backends.member import on_backend
from chorus.pipeline.core.augmentation import FLIPS
from chorus.pipeline.core.device import DeviceChoice
from chorus.pipeline.core.devices import chosen, device_of
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.members import AUTOCAST
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.members.contract import Member, ModuleMember

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
console = Console()


def main(
    device: Annotated[DeviceChoice, typer.Option(help="What to measure.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Small networks and images: to try the script.")] = False,
    budget: Annotated[float, typer.Option(help="Seconds; what would take longer is left out.")] = 400.0,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Measure a GPU.

    Examples: `python benchmarks/gpu.py`, `python benchmarks/gpu.py --device cpu --quick`
    """
    kind = chosen(device)
    if device == "auto" and not device_of(kind).accelerated:
        raise typer.BadParameter("there is no GPU here; use --device cpu --quick to try the script")
    ends = time.monotonic() + budget
    members, tile, edge, encoder = (2, 64, 128, "resnet18") if quick else (5, 512, 2048, "resnet34")
    folder = Path(tempfile.mkdtemp(prefix="chorus-gpu-"))
    try:
        url = write_ensemble(folder / "ensemble", members, tile, encoder)
        where = device_of(kind).torch_device
        device_of(kind).be_repeatable()
        peak = matmul_peak(where, 512 if quick else 8192, seconds=0.2 if quick else 3.0)
        console.print(f"{surroundings()[0]}; bf16 products of matrices: {peak / 1e12:.3g} TFLOP/s", highlight=False)
        rows = [
            row | {"tile": tile, "members": members, "augmentations": len(FLIPS), "peak_tflops": peak / 1e12}
            for row in engines(read_ensemble(str(url)), where, tile, peak, ends, quick=quick)
        ]
        for row in [row for row in rows if "passes_per_second" in row and row["precision"] == "bf16"]:
            # Each member is converted by itself, in the trial and again in the actor unless it was kept.
            needed = row["setup_seconds"] * members + (5 if quick else 90)
            if time.monotonic() + needed > ends:
                row["whole_left_out"] = f"{needed:.0f} s more would not fit"
                continue
            passes = Grid.make((edge, edge), tile, 0.5).count * members * len(FLIPS)
            images = max(1, min(128, round(row["passes_per_second"] * (1 if quick else 40) / passes)))
            row |= whole(folder, url, row, images, edge, passes, kind)
        report(rows, results, quick=quick)
    finally:
        shutil.rmtree(folder)


def engines(
    ensemble: Ensemble, device: torch.device, tile: int, peak: float, ends: float, *, quick: bool
) -> list[dict[str, Any]]:
    """Forward passes of the first member by backend and precision; all members have its architecture."""
    member = ensemble.load_member(0, device, tile)
    flops = flops_of_a_pass(member, tile, device)
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        for backend in usable(precision, device.type):
            row: dict[str, Any] = {"what": "engine", "backend": backend, "precision": precision}
            rows.append(row)
            if time.monotonic() + (0 if quick else 60) > ends:
                row["left_out"] = "no time was left"
                continue
            started = time.perf_counter()
            found: dict[int, float] = {}
            try:
                for tiles in (1,) if quick else (4, 8, 16):
                    asked = on_backend(member, backend, precision, device)
                    call = calling(asked, tiles * len(FLIPS), tile, precision, device)
                    call()
                    row.setdefault("setup_seconds", time.perf_counter() - started)
                    found[tiles] = tiles * len(FLIPS) * rate(call, device, seconds=0.2 if quick else 3.0)
                    if backend not in ("eager", "cudagraphs"):
                        break  # each shape is converted by itself, which takes its time
            except (RefusedError, torch.OutOfMemoryError) as error:
                row["left_out"] = str(error).splitlines()[0]
            if found:
                best = max(found, key=lambda tiles: found[tiles])
                row |= {"tiles_per_call": best, "passes_per_second": found[best]}
                row |= {"gflop_per_pass": flops / 1e9, "share_of_peak": found[best] * flops / peak}
            console.print(row, highlight=False)
    return rows


def flops_of_a_pass(member: Member, tile: int, device: torch.device) -> int:
    """Floating-point operations of a tile, as PyTorch counts them: two for a product that is added."""
    from torch.utils.flop_counter import FlopCounterMode

    if not isinstance(member, ModuleMember):
        raise TypeError("only networks of PyTorch are counted")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        member.module(torch.zeros(1, 1, tile, tile, device=device))
    return int(counter.get_total_flops())


def matmul_peak(device: torch.device, size: int, *, seconds: float) -> float:
    """Floating-point operations a second of bf16 products of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 * rate(lambda: a @ b, device, seconds=seconds)


def calling(asked: Member, count: int, tile: int, precision: Precision, device: torch.device) -> Callable[[], Any]:
    """A call of a member with so many tiles."""
    batch = torch.randn(count, 1, tile, tile, device=device).contiguous(memory_format=torch.channels_last)
    dtype = AUTOCAST.get(precision)

    def call() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return asked(batch)

    return call


def rate(call: Callable[[], Any], device: torch.device, *, seconds: float) -> float:
    """Calls a second, after a warm-up."""

    for _ in range(3):
        call()
    device_of(device).synchronize()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(2):
            call()
        calls += 2
        device_of(device).synchronize()
    return calls / (time.perf_counter() - started)


def whole(
    folder: Path, ensemble: Path, row: dict[str, Any], images: int, edge: int, passes: int, device: str
) -> dict[str, Any]:
    """``chorus predict`` over `images` of `edge`, each of so many `passes`, against the bare passes of `row`."""
    made = folder / "images"
    write_images(made, images, (edge, edge))
    how = {
        "augmentations": list(FLIPS),
        "backend": row["backend"],
        "precision": row["precision"],
        "device": device,
        "batch": row["tiles_per_call"],
    }
    found = whole_run(sorted(made.iterdir()), ensemble, folder / "out", how)
    shutil.rmtree(made)
    bare = images * passes / row["passes_per_second"]
    return found | {"images": images, "bare_seconds": bare, "bare_over_whole": bare / found["whole_seconds"]}


def report(rows: list[dict[str, Any]], folder: Path, *, quick: bool) -> None:
    """Print one table and keep the figures as JSON."""
    table = Table()
    heads = (
        "backend",
        "precision",
        "tiles a call",
        "passes/s",
        "of peak",
        "set-up s",
        "images",
        "whole s",
        "bare/whole",
    )
    for head in (*heads, "busy"):
        table.add_column(head, justify="right")
    shown = (
        ("tiles_per_call", "d"), ("passes_per_second", ".1f"), ("share_of_peak", ".1%"), ("setup_seconds", ".1f"),
        ("images", "d"), ("whole_seconds", ".1f"), ("bare_over_whole", ".3f"), ("busy_share", ".0%"),
    )  # fmt: skip
    for row in rows:
        cells = [format(row[name], form) if name in row else "" for name, form in shown]
        table.add_row(row["backend"], row["precision"], *cells)
    console.print(table)
    for row in rows:
        for name, what in (("left_out", "engine"), ("whole_left_out", "whole run")):
            if name in row:
                console.print(f"{what} left out: {row['backend']} {row['precision']}: {row[name]}", highlight=False)
    keep(folder, "-gpu-quick" if quick else "-gpu", rows)


if __name__ == "__main__":
    typer.run(main)
