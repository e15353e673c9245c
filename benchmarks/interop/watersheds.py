"""Objects of distances, boundaries and affinities beside torch-em, micro-SAM's rule, elf and PlantSeg's chain.

Maps are made of true labels (z, y, x), smoothed and with noise. Per method, three comparisons: the tool against the
truth, Chorus on the whole volume against the tool, and Chorus in blocks against Chorus on the whole volume: AP at IoU
0.5 and 0.9, and the objects of the whole that blocks split, merge or lose.

Run it where torch-em is installed beside Chorus; without it, the columns of the tool are empty.
"""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tifffile
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from chorus.pipeline.instances.maps.blocks import SeenBlocks
from chorus.pipeline.instances.maps.mutex import MutexSettings
from chorus.pipeline.instances.maps.objects import map_objects
from chorus.pipeline.instances.maps.rules import MapSettings, label_box
from chorus.pipeline.instances.methods import MapMethod
from chorus.pipeline.instances.volumes.blocks import BlockGrid, Box
from chorus.pipeline.metrics.objects import count_objects
from tests.support.object_maps import VOLUME_OFFSETS, MapsInMemory, maps_of

METHODS: tuple[MapMethod, ...] = ("distances", "boundaries", "agglomeration", "affinities")
MINIMUM = 30
"""Objects of fewer voxels are left out of the comparisons."""
Figures = dict[str, Any]


def main(
    files: Annotated[list[Path], typer.Argument(help="Label images: TIFF, or HDF5 with `label`.")],
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise on all maps.")] = 0.1,
    block: Annotated[int, typer.Option(help="Edge of a block in y and x.")] = 50,
    halo: Annotated[int, typer.Option(help="Pixels that a block sees beyond itself.")] = 16,
    out: Annotated[Path | None, typer.Option(help="JSON of the figures.")] = None,
) -> None:
    """Print the comparison."""
    table = Table("labels", "method", "tool", "its s", "whole/tool", "s", "blocks/whole", "split", "merged", "lost")
    rows = []
    for path in files:
        labels = labels_of(path)
        maps = maps_of(labels, VOLUME_OFFSETS, noise=noise)
        for method in METHODS:
            figures = compared(method, labels, maps, block, halo)
            rows.append({"labels": path.stem, "method": method} | figures)
            table.add_row(path.stem, method, *columns(figures))
            Console(stderr=True).print(path.stem, method)
    Console(width=150).print(table)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


def labels_of(path: Path) -> NDArray[np.int32]:
    """Read labels (z, y, x)."""
    if path.suffix in (".tif", ".tiff"):
        return np.asarray(tifffile.imread(path), np.int32)
    import h5py

    with h5py.File(path) as file:
        return np.asarray(file["label"], np.int32)


def compared(method: MapMethod, labels: NDArray[np.int32], maps: MapsInMemory, block: int, halo: int) -> Figures:
    """Return the figures of a method; AP at IoU 0.5 and 0.9."""
    shape = labels.shape
    settings = MapSettings(method, minimum_size=1, mutex=MutexSettings(VOLUME_OFFSETS))
    started = time.perf_counter()
    theirs = by_tool(method, maps) if importlib.util.find_spec("torch_em") else None
    between = time.perf_counter()
    whole = label_box(maps, Box.of(0, shape[0], 0, shape[1], 0, shape[2]), settings).labels
    seconds = time.perf_counter() - between
    margin = settings.blocks(shape).margin
    blocks = SeenBlocks(BlockGrid(shape, (min(block, shape[0]), block, block)), (halo,) * 3, margin)
    found = map_objects(maps, blocks, settings)
    counts = count_objects(whole, found.astype(np.int64), minimum_size=MINIMUM)
    figures: Figures = {
        "seconds": seconds,
        "ap": precision(labels, whole),
        "blocks": precision(whole, found),
        "split": int(counts.splits),
        "merged": int(counts.merges),
        "lost": missing(whole, found),
    }
    if theirs is not None:
        figures |= {
            "tool_seconds": between - started,
            "tool_ap": precision(labels, theirs),
            "against_tool": precision(theirs, whole),
        }
    return figures


def columns(figures: Figures) -> list[str]:
    """Return the columns of the printed table; those of the tool are empty where it is not installed."""

    def both(name: str) -> str:
        return " ".join(f"{value:.3f}" for value in figures[name]) if name in figures else ""

    tool = f"{both('tool_ap')} (ours {both('ap')})" if "tool_ap" in figures else ""
    its_seconds = f"{figures['tool_seconds']:.1f}" if "tool_seconds" in figures else ""
    lost = [str(figures[name]) for name in ("split", "merged", "lost")]
    return [tool, its_seconds, both("against_tool"), f"{figures['seconds']:.1f}", both("blocks"), *lost]


def precision(truth: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """Return AP at IoU 0.5 and 0.9."""
    counts = count_objects(truth.astype(np.int64), found.astype(np.int64), minimum_size=MINIMUM)
    return counts.average_precision[0], counts.average_precision[8]


def missing(whole: NDArray[Any], found: NDArray[Any]) -> int:
    """Count objects of the whole of which blocks find less than half of the voxels."""
    sizes, covered = np.bincount(whole.ravel()), np.bincount(whole.ravel(), (found > 0).ravel())
    return int(((sizes >= MINIMUM) & (covered < sizes / 2))[1:].sum())


def by_tool(method: MapMethod, maps: MapsInMemory) -> NDArray[Any]:
    """Label objects by the tool's own functions and defaults."""
    from elf.segmentation import GaspFromAffinities
    from elf.segmentation.mutex_watershed import mutex_watershed
    from elf.segmentation.watershed import distance_transform_watershed
    from torch_em.util import segmentation as torch_em

    foreground = maps.inside.astype(np.float32)
    if method == "distances":
        return np.asarray(
            torch_em.watershed_from_center_and_boundary_distances(maps.centre.copy(), maps.edge.copy(), foreground)
        )
    if method == "boundaries":
        return np.asarray(torch_em.watershed_from_components(maps.walls.copy(), foreground, min_size=1))
    if method == "affinities":
        offsets = [list(offset) for offset in VOLUME_OFFSETS]
        found = mutex_watershed(1 - maps.affinity, offsets, [1, 1, 1], mask=maps.inside)
        near = 1 - maps.affinity
        return np.asarray(torch_em.size_filter(found.astype("uint32"), 50, near, with_background=True))
    walls = np.where(maps.inside, maps.walls, 1).astype(np.float32)
    superpixels, _ = distance_transform_watershed(
        walls, threshold=0.5, sigma_seeds=1.0, sigma_weights=2.0, min_size=100, alpha=1.0, mask=maps.inside.copy()
    )
    offsets = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    linkage = {"linkage_criteria": "average", "add_cannot_link_constraints": False}
    gasp = GaspFromAffinities(
        offsets, beta_bias=0.5, superpixel_generator=lambda *_, **__: superpixels, run_GASP_kwargs=linkage
    )
    found, _ = gasp(1 - np.stack([walls] * 3))
    return np.where(maps.inside, np.asarray(found) + 1, 0)


if __name__ == "__main__":
    typer.run(main)
