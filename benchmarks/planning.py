"""How long does it take to plan a million regions, and how much memory?

A synthetic image table goes through everything that a driver does with it before the first region: it is collected,
written, read, costed, compared with an empty ledger, and the open regions are listed. Each step's seconds are
printed, and the peak memory of the process with what it was before (libraries only).
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from chorus.cluster.planning.cost import cost
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.state.ledger import Ledger
from chorus.pipeline.ensembles.ensemble import read_ensemble

T = TypeVar("T")


def main(
    ensemble: Annotated[str, typer.Argument(help="Any ensemble.yaml; only its settings are used.")],
    images: Annotated[int, typer.Option(help="Images to plan.")] = 100_000,
    regions: Annotated[int, typer.Option(help="Regions of each.")] = 10,
) -> None:
    """Print seconds and peak memory of planning IMAGES x REGIONS regions."""
    read = read_ensemble(ensemble)
    settings = resolve(ResultSettings(), read)
    steps: dict[str, float] = {}

    def timed(name: str, step: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = step()
        steps[name] = time.perf_counter() - started
        return result

    before = _peak()
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "images.parquet")
        table = timed("collect", lambda: ImageTable.collect(synthetic_images(images, regions, settings.region)))
        timed("digest", lambda: table.digest)
        timed("write", lambda: table.write(url))
        timed("read", lambda: ImageTable.read(url))
        timed("cost", lambda: cost(table, read, settings))
        finished = timed("scan of an empty ledger", lambda: Ledger(folder).scan(table))
        todo = timed("list what is open", lambda: finished.todo(table))
        timed("count what remains of each image", lambda: finished.remaining(table))
        timed("image(i) of a thousand", lambda: [table.image(i) for i in range(1000)])
        size = Path(url).stat().st_size
    report = Table("step", "seconds", title=f"{len(todo)} regions of {len(table)} images")
    for name, seconds in (steps | {"all": sum(steps.values())}).items():
        report.add_row(name, f"{seconds:.2f}")
    Console().print(report)
    print(f"peak memory {_peak() / 1e6:.0f} MB, of which libraries {before / 1e6:.0f} MB; table {size / 1e6:.1f} MB")


def synthetic_images(count: int, regions: int, region: int) -> Iterator[PlannedImage]:
    """Fields of a plate whose last row of regions is cut short, in a hundred different widths."""
    for index in range(count):
        height, width = region * regions - 100, region - index % 100
        yield PlannedImage(
            name=f"plate-{index // 10_000}.ome.zarr/A/{index % 10_000}/0",
            root=f"s3://bucket/screen/plate-{index // 10_000}.ome.zarr",
            path=f"A/{index % 10_000}/0",
            kind="plate",
            ngff="0.5",
            axes="cyx",
            shape=(4, height, width),
            dtype="uint16",
            level_path="0",
            output_axes="yx",
            output_shape=(height, width),
            scale=(0.325, 0.325),
            translation=(0.0, 0.0),
            units=("micrometer", "micrometer"),
            channels=(0,),
            model_height=height // 2,
            model_width=width // 2,
            region=region,
        )


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    typer.run(main)
