"""How time and memory grow with the work: more images, larger images, and many small ones against one large plane.

Each row is a whole run of ``chorus predict`` on Ray, from the first region's reading to the last record, with one small
member and no augmentations, so that everything else weighs as much as it ever can. Images of different shapes have not
the same number of tiles for their pixels, since the grid rounds up: so time is given per tile and per pixel.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.made import SIZE, write_ensemble, write_images
from benchmarks.records import keep, surroundings
from benchmarks.run import whole_run

FIELD = (520, 696)
TIMES = (1, 2, 4, 8)
TILE = 256
console = Console()


def main(
    quick: Annotated[bool, typer.Option("--quick", help="An eighth of the images: a few minutes.")] = False,
    images: Annotated[int | None, typer.Option(help="Images of 1024 x 1024 in the smallest run.")] = None,
    edge: Annotated[int | None, typer.Option(help="Edge of the smallest plane that grows.")] = None,
    fields: Annotated[int | None, typer.Option(help="Fields of 520 x 696, against a plane of their area.")] = None,
    encoder: Annotated[str, typer.Option(help="Of the one U-Net.")] = "tu-tf_mobilenetv3_small_minimal_100",
    backend: Annotated[str, typer.Option(help="As of `chorus predict`.")] = "eager",
    only: Annotated[str, typer.Option(help="Parts, of images,sizes,fields.")] = "images,sizes,fields",
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Measure how time and memory grow: 1, 2, 4 and 8 times the images and the pixels, and 1,000 fields or one plane.

    Examples: `python benchmarks/growth.py --quick`, `python benchmarks/growth.py --only fields --fields 1000`
    """
    images, edge, fields = (
        images or (2 if quick else 8),
        edge or (1024 if quick else 2048),
        fields or (125 if quick else 1000),
    )
    folder = Path(tempfile.mkdtemp(prefix="chorus-growth-"))
    parts, rows = only.split(","), []
    try:
        ensemble = write_ensemble(folder / "ensemble", 1, TILE, encoder)
        how = {"augmentations": ["identity"], "backend": backend}
        if "images" in parts:
            rows += [measured(folder, ensemble, how, "images", images * times, (SIZE, SIZE)) for times in TIMES]
        if "sizes" in parts:
            edges = [round(edge * math.sqrt(times)) for times in TIMES]
            rows += [measured(folder, ensemble, how, "sizes", 1, (length, length)) for length in edges]
        if "fields" in parts:
            side = round(math.sqrt(fields * FIELD[0] * FIELD[1]))
            rows.append(measured(folder, ensemble, how, "fields", fields, FIELD))
            rows.append(measured(folder, ensemble, how, "fields", 1, (side, side)))
        report(rows, results, quick=quick)
    finally:
        shutil.rmtree(folder)


def measured(
    folder: Path, ensemble: Path, how: dict[str, Any], part: str, count: int, shape: tuple[int, int]
) -> dict[str, Any]:
    """A row: one run over `count` images of `shape`."""
    console.print(f"{part}: {count} x {shape[0]} x {shape[1]} ...")
    made = folder / "images"
    write_images(made, count, shape)
    row = whole_run(sorted(made.iterdir()), ensemble, folder / "out", how)
    shutil.rmtree(made)
    shutil.rmtree(folder / "out")
    seconds = row["whole_seconds"]
    per = {
        "milliseconds_per_tile": 1e3 * seconds / row["tiles"],
        "seconds_per_megapixel": 1e6 * seconds / row["pixels"],
    }
    return {"part": part, "images": count, "shape": list(shape), "backend": how["backend"], **per, **row}


def report(rows: list[dict[str, Any]], folder: Path, *, quick: bool) -> None:
    """Print one table and keep the figures as JSON; ratios are to the first row of each part."""
    console.print(*surroundings(), highlight=False)
    table = Table()
    heads = (
        "part",
        "images",
        "shape",
        "tiles",
        "seconds",
        "ms a tile",
        "ratio",
        "s a Mpx",
        "ratio",
        "busy",
        "waits for",
    )
    for head in (*heads, "driver MB", "workers MB"):
        table.add_column(head, justify="right")
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["part"] not in first and first:
            table.add_section()
        base = first.setdefault(row["part"], row)
        for name in ("milliseconds_per_tile", "seconds_per_megapixel"):
            row[f"{name}_ratio"] = row[name] / base[name]
        idle = {name: share for name, share in row["devices_were"].items() if name not in ("busy", "start")}
        table.add_row(
            row["part"],
            f"{row['images']}",
            " x ".join(map(str, row["shape"])),
            f"{row['tiles']}",
            f"{row['whole_seconds']:.1f}",
            f"{row['milliseconds_per_tile']:.2f}",
            f"{row['milliseconds_per_tile_ratio']:.2f}",
            f"{row['seconds_per_megapixel']:.3f}",
            f"{row['seconds_per_megapixel_ratio']:.2f}",
            f"{row['busy_share']:.0%}",
            ", ".join(f"{name} {share:.0%}" for name, share in idle.items() if share >= 0.01),
            f"{row['peak_driver_bytes'] / 1e6:.0f}",
            f"{row['peak_workers_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    keep(folder, "-growth-quick" if quick else "-growth", rows)


if __name__ == "__main__":
    typer.run(main)
