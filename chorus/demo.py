"""All of Chorus on a small sample that is made first: ``python -m chorus.demo FOLDER``, or ``make demo``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chorus.pipeline.demo.synthetic_data import write_other_images, write_sample_plate

console = Console()
SEED = 7
ENSEMBLE = "nuclei-fluo"


def demo(folder: Annotated[Path, typer.Argument(help="Where the sample and the results go.")]) -> None:
    """Make a sample plate and unfamiliar images, segment with the built-in ensemble, rank, and write the report."""
    images, results = folder / "images", folder / "results"
    step("1. A sample: a plate of simulated nuclei, and images of quite another kind")
    if not images.exists():
        write_sample_plate(str(images / "plate.ome.zarr"), SEED)
        write_other_images(str(images / "other"))
    step("2. The ensemble that comes with Chorus: five small U-Nets trained on real nuclei")
    command("ensemble", "show", ENSEMBLE)
    step("3. Segment everything, and make every nucleus an object")
    command("predict", str(images), "--ensemble", ENSEMBLE, "--out", str(results))
    step("4. What to look at first, and why")
    command("rank", str(results), "--top", "8")
    console.print(
        f"\nLook at [bold]{results}/report/index.html[/bold]: the worst, the best and the unfamiliar images with their "
        f"labels and their uncertainty.\nThe results are OME-Zarr in {results}/images, every nucleus a row of "
        f"{results}/objects.parquet.\n\nThe same on your own data:\n"
        f"  [bold]chorus predict YOUR.ome.zarr --ensemble {ENSEMBLE} --out results[/bold]\n"
        f"  [bold]chorus rank results[/bold]\n"
        f"and with an ensemble of your own: [bold]chorus train IMAGES --labels LABELS --out my-ensemble[/bold]\n"
        f"(chorus is in .venv/bin; TIFF and PNG: chorus convert FOLDER --out images)",
        highlight=False,
        soft_wrap=True,
    )


def step(text: str) -> None:
    """Print the title of a step."""
    console.print(f"\n[bold cyan]{text}[/bold cyan]")


def command(*arguments: str) -> None:
    """Run a command as on the command line, and stop where it fails."""
    console.print("$ chorus " + " ".join(arguments), style="dim", highlight=False, soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", "chorus.cli", *arguments], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


if __name__ == "__main__":
    typer.run(demo)
