"""What overlap, tile and blending window cost, and what they bring: passes, Dice, AP of objects, errors at seams.

`measure` runs an ensemble over test sets with a truth, for every tile, overlap and window, without augmentations or
with the four flips, and keeps a line of JSON for each image (what is there already is not computed again). `draw` makes
the tables and the picture of docs/overlap.md of them.

A seam is where two neighbouring tiles weigh the same; errors are taken in a band around it, against the same tile with
the largest overlap that is affordable (`REFERENCE`), so that they are those of the seams and not of the context that a
tile shows to the network.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.augmentation import FLIPS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.tiling import Grid, TileAxis
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.inference.blending import gaussian_window
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.inference.tile_stream import PlaneWindow, RegionInProgress
from chorus.pipeline.instances.whole_image import label_image
from chorus.pipeline.members.contract import Member
from chorus.pipeline.metrics.objects import count_objects
from chorus.pipeline.metrics.segmentation import dice
from chorus.pipeline.preprocessing.preparation import surveyed
from chorus.pipeline.training.data.pairs import TrainingPair, find_pairs, load_pair

app = typer.Typer(no_args_is_help=True)
console = Console()
SETS = ("dsb2018", "bbbc039")
TILES = (128, 192, 256, 384, 512)
OVERLAPS = (0.0, 0.125, 0.25, 0.5, 0.75)
REFERENCE = 0.875
BAND = 8  # pixels on either side of a seam
VALUES = ("passes", "dice", "ap50", "uncertainty", "seam_mean", "seam_p999", "doubt", "flips")
WINDOWS = {"tile/8": 8.0, "tile/4": 4.0}  # sigma of the Gaussian
LARGE = (8192, 8192)  # a plane whose edges hardly count
Rows = Annotated[Path, typer.Option(help="A line of JSON for each image, tile, overlap and window.")]


@dataclass(frozen=True)
class Job:
    """One image with one tile, at all overlaps; `reference` says whether its seams are measured."""

    data: str
    pair: TrainingPair
    tile: int
    augmentations: tuple[str, ...]
    reference: bool

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.data, self.pair.name, self.tile, len(self.augmentations)


class SeveralWindows(RegionInProgress):
    """A region whose tiles are blended with several windows at once: members see each tile once.

    `weights` : of each window, (tile, tile) float32
    """

    def __init__(
        self,
        plane: PlaneWindow,
        target: Window,
        settings: InferenceSettings,
        weights: Sequence[torch.Tensor],
        members: int,
    ) -> None:
        super().__init__(plane, target, settings, weights[0], members, None)
        self._others = [RegionInProgress(plane, target, settings, one, members, None) for one in weights[1:]]

    def take(self, *said: Any) -> None:
        super().take(*said)
        for other in self._others:
            other.take(*said)

    def posteriors(self) -> list[Posterior]:
        return [self.posterior(), *(other.posterior() for other in self._others)]


@app.command()
def measure(
    data: Annotated[Path, typer.Argument(help="Folder that holds dsb2018/test and bbbc039/test.")],
    rows: Rows = Path("benchmarks/results/overlap.jsonl"),
    ensemble: Annotated[str, typer.Option(help="ensemble.yaml or its folder.")] = "chorus/builtin/nuclei-fluo",
    tiles: Annotated[list[int] | None, typer.Option("--tile", help="Tile sizes; by default all.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Out of {', '.join(SETS)}; by default both.")] = None,
    backend: Annotated[
        Backend, typer.Option(help="What carries out the networks, in fp32; see `chorus bench engine`.")
    ] = "eager",
    flips: Annotated[bool, typer.Option("--flips", help="With the four flips, instead of no augmentation.")] = False,
    references: Annotated[int, typer.Option(help="Images of each set whose seams are measured.")] = 3,
    images: Annotated[int | None, typer.Option(help="Images of each set; by default all.")] = None,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Run every tile, overlap and window over the images; what `rows` holds is left out."""
    found = _read(rows) if rows.exists() else []
    known = {(row["data"], row["image"], row["tile"], row.get("augmentations", 1), "flips" in row) for row in found}
    augmentations = FLIPS if flips else FLIPS[:1]
    jobs = _jobs(data, only or SETS, tiles or TILES, augmentations, references, images)
    jobs = [job for job in jobs if not known & {(*job.key, True), (*job.key, job.reference)}]
    console.print(f"{len(jobs)} jobs to do", highlight=False)
    with ProcessPoolExecutor(workers, mp.get_context("spawn"), _begin, (ensemble, backend)) as pool:
        for count, future in enumerate(as_completed([pool.submit(_measure, job) for job in jobs]), start=1):
            with rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in future.result())
            console.print(f"{count} of {len(jobs)}", highlight=False)


@app.command()
def draw(rows: Rows = Path("benchmarks/results/overlap.jsonl"), out: Path = Path("docs/images/overlap.png")) -> None:
    """Print the tables of docs/overlap.md and draw its picture."""
    columns = ["data", "augmentations", "tile", "window", "overlap"]
    # Rows of before have neither augmentations nor maps of doubt.
    read = pd.DataFrame(_read(rows)).reindex(columns=["image", *columns, *VALUES])
    read["augmentations"] = read.augmentations.fillna(1).astype(int)
    # An image that was measured again, with a reference then, counts once.
    frame = _complete(read.drop_duplicates(["image", *columns], keep="last"))
    means = frame.groupby(columns, sort=False)[list(VALUES)].mean().reset_index().sort_values(columns)
    large = {(tile, overlap): _passes(LARGE, tile, overlap) for tile in TILES for overlap in OVERLAPS}
    means["large"] = [large[tile, overlap] for tile, overlap in zip(means.tile, means.overlap, strict=True)]
    half = means.passes.where(means.overlap == 0.5).groupby([means[column] for column in columns[:4]]).transform("max")
    means["price"] = means.passes / half
    for (name, count, window), part in means.groupby(["data", "augmentations", "window"]):
        images = frame[(frame.data == name) & (frame.augmentations == count)].image.nunique()
        _show(part, f"{name}, {count} augmentation(s), sigma {window}, {images} images")
    _draw(means, out)


def _jobs(
    data: Path,
    names: Sequence[str],
    tiles: Sequence[int],
    augmentations: tuple[str, ...],
    references: int,
    images: int | None,
) -> list[Job]:
    """Those with a reference first, and all tiles of an image one after the other.

    Without tiles larger than the image, in which there is no seam.
    """
    jobs = []
    for name in names:
        folder = data / name / "test"
        pairs = find_pairs(str(folder / "images"), str(folder / "labels"), ["dna"]).pairs[:images]
        shortest = min(load_pair(pairs[0])[1].shape)
        fitting = [tile for tile in tiles if tile <= shortest]
        jobs += [
            (index, Job(name, pair, tile, augmentations, index < references))
            for index, pair in enumerate(pairs)
            for tile in fitting
        ]
    return [job for _, job in sorted(jobs, key=lambda entry: entry[0])]


_ensemble: Ensemble
_members: list[Member]


def _begin(ensemble: str, backend: Backend) -> None:
    from chorus.pipeline.inference.allocation import keep_freed_memory

    global _ensemble, _members
    torch.set_num_threads(1)
    keep_freed_memory()
    _ensemble = read_ensemble(ensemble)
    count, tile = range(len(_ensemble.spec.members)), _ensemble.spec.tile
    _members = load_members(_ensemble, count, torch.device("cpu"), tile, backend, "fp32")


def _measure(job: Job) -> list[dict[str, Any]]:
    """A row for every overlap and window."""
    image, truth = load_pair(job.pair)
    inputs = _ensemble.all_inputs
    statistics = surveyed(inputs.measures, [image])
    pixels = np.concatenate([one.apply(image, statistics) for one in inputs.preparations])
    reference = _posteriors(pixels, job, REFERENCE)[0] if job.reference else None
    rows = []
    for overlap in OVERLAPS:
        grid = Grid.make(truth.shape, job.tile, overlap)
        begun = time.process_time()
        found = _posteriors(pixels, job, overlap)
        seconds = time.process_time() - begun
        for window, posterior in zip(WINDOWS, found, strict=True):
            row = {
                "data": job.data,
                "image": job.pair.name,
                "tile": job.tile,
                "augmentations": len(job.augmentations),
                "overlap": overlap,
                "window": window,
                "passes": _passes(truth.shape, job.tile, overlap),
                "cpu_seconds": seconds,
                "dice": dice(posterior.labels > 0, truth > 0),
                "ap50": _objects(truth, posterior),
                "uncertainty": _uncertainty(posterior),
            }
            rows.append(row | (_errors(posterior, reference, grid) if reference is not None else {}))
    return rows


def _posteriors(pixels: NDArray[np.float32], job: Job, overlap: float) -> list[Posterior]:
    """Of the whole plane, one for each of `WINDOWS`."""
    tile = job.tile
    settings = InferenceSettings(
        outputs=_ensemble.outputs,
        multilabel=_ensemble.multilabel,
        tile=tile,
        augmentations=job.augmentations,
        batch=max(1, 256**2 // tile**2),
    )
    height, width = pixels.shape[1:]
    whole = Window.of(0, height, 0, width)
    plane = PlaneWindow(pixels, whole, Grid.make((height, width), tile, overlap))
    engine = Engine(_members, settings, torch.device("cpu"), _ensemble.all_inputs.channels)
    weights = [gaussian_window(tile) if part == 8 else window_of(tile, tile / part) for part in WINDOWS.values()]
    with torch.inference_mode():
        region = SeveralWindows(plane, whole, settings, weights, len(_members))
        while region.waiting:
            engine.answer([(region, settings.batch)])
        return region.posteriors()


def window_of(tile: int, sigma: float) -> torch.Tensor:
    """A Gaussian of another width than `chorus.pipeline.inference.blending.gaussian_window`, (tile, tile) float32."""
    line = np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / sigma) ** 2)
    return torch.from_numpy(np.outer(line, line).astype(np.float32))


def _objects(truth: NDArray[np.integer], posterior: Posterior) -> float:
    """AP of objects at an IoU of 0.5."""
    found = label_image(posterior.probability[1:].sum(axis=0), posterior.flows)
    return count_objects(truth, found).average_precision[0]


def _uncertainty(posterior: Posterior) -> float | None:
    """U, the mean predictive variance over the predicted foreground."""
    foreground = posterior.labels > 0
    return float((posterior.epistemic + posterior.aleatoric)[foreground].mean()) if foreground.any() else None


def _errors(posterior: Posterior, reference: Posterior, grid: Grid) -> dict[str, float | None]:
    """Against the reference: |p - p_ref| around seams and everywhere, and labels that differ in a megapixel.

    `doubt` is how far the predictive variance is off around seams, as a share of what it is there.
    """
    error = np.abs(posterior.probability - reference.probability).max(axis=0)
    seam = _near_seams(grid.y)[:, None] | _near_seams(grid.x)[None]
    band = error[seam]
    doubt, known = (one.epistemic + one.aleatoric for one in (posterior, reference))
    return {
        "doubt": float(np.abs(doubt - known)[seam].mean() / known[seam].mean()) if band.size else None,
        "seam_mean": float(band.mean()) if band.size else None,
        "seam_p999": float(np.quantile(band, 0.999)) if band.size else None,
        "all_mean": float(error.mean()),
        "flips": float(np.mean(posterior.labels != reference.labels) * 1e6),
    }


def _near_seams(axis: TileAxis) -> NDArray[np.bool_]:
    """Pixels within `BAND` of a seam, (length,) bool."""
    near = np.zeros(axis.length, np.bool_)
    for index in range(axis.count - 1):
        seam = axis.span(index).start + (axis.tile + axis.step) // 2
        near[max(0, seam - BAND) : max(0, seam + BAND)] = True
    return near


def _passes(shape: tuple[int, ...], tile: int, overlap: float) -> float:
    """How often a network sees a pixel of a plane, on average: tiles times their pixels, per pixel."""
    return Grid.make((shape[0], shape[1]), tile, overlap).count * tile**2 / (shape[0] * shape[1])


def _read(rows: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows.read_text().splitlines()]


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    """Without images that lack a tile that others of their set have: what is compared is of the same images."""
    tiles = frame.groupby(["data", "augmentations", "image"]).tile.transform("nunique")
    return frame[tiles == frame.groupby(["data", "augmentations"]).tile.transform("nunique")]


def _show(part: pd.DataFrame, title: str) -> None:
    table = Table(title=title)
    heads = ("tile", "overlap", "passes", "of 0.5", "large plane", "Dice", "AP50", "U", "seam mean", "seam 99.9 %")
    for head in (*heads, "doubt", "flips / Mpx"):
        table.add_column(head, justify="right")
    for row in part.itertuples():
        cells = [
            f"{row.tile}", f"{row.overlap:g}", f"{row.passes:.2f}", f"{row.price:.2f}", f"{row.large:.2f}",
            f"{row.dice:.4f}", f"{row.ap50:.4f}", f"{row.uncertainty:.5f}", f"{row.seam_mean:.1e}",
            f"{row.seam_p999:.3f}", f"{row.doubt:.3f}", f"{row.flips:.0f}",
        ]  # fmt: skip
        table.add_row(*("" if cell == "nan" else cell for cell in cells))
    console.print(table)


def _draw(means: pd.DataFrame, out: Path) -> None:
    """A row of panels for each set: what is gained and lost by passes a pixel of a large plane."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    panels = {"dice": "Dice", "ap50": "AP at IoU 0.5", "seam_p999": "99.9 % of |Δp| at seams", "flips": "flips / Mpx"}
    studies = means.groupby(["data", "augmentations"], sort=False)
    figure, axes = plt.subplots(len(studies), len(panels), figsize=(16, 3.6 * len(studies)), layout="constrained")
    for row, ((name, count), study) in zip(np.atleast_2d(axes), studies, strict=True):
        for axis, (column, title) in zip(row, panels.items(), strict=True):
            for index, tile in enumerate(TILES):
                for window, style in zip(WINDOWS, ("-", "--"), strict=True):
                    part = study[(study.tile == tile) & (study.window == window)]
                    if len(part):
                        axis.plot(
                            part.large, part[column], style, color=f"C{index}", marker=".", label=f"{tile}, {window}"
                        )
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set(title=f"{name} x {count}: {title}", xlabel="passes a pixel (large plane)")
            if column == "flips":
                axis.set_yscale("log")
            axis.grid(visible=True, alpha=0.3)
        row[-1].legend(fontsize=7, title="tile, sigma", title_fontsize=7)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    console.print(f"drawn in {out}", highlight=False)


if __name__ == "__main__":
    app()
