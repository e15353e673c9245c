"""A small run for the review page: fields of a plate and a slide with levels, results drawn from their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from PIL import Image

from chorus.cluster.state.scores import write_scores
from chorus.pipeline.exports.tables import write_table
from tests.support import object_runs
from tests.support.object_runs import drawn
from tests.support.reports import score, write_result, write_source, write_tables
from tests.support.rows import image_row

SLIDE = "slide.ome.zarr"
FIELDS = [f"p1.ome.zarr/{row}/{column}/{field}" for row in "AB" for column in ("01", "02") for field in "01"]
EVIL = "<img src=x onerror=alert(1)> & 100%.ome.zarr"


def pixels_of(labels: NDArray[np.integer[Any]], seed: int) -> NDArray[np.uint16]:
    noise = np.random.default_rng(seed).normal(0, 20, labels.shape)
    return np.clip(300 + 900 * (labels > 0) + noise, 0, 65535).astype(np.uint16)


def write_pyramid_source(path: Path, pixels: NDArray[np.uint16], levels: int) -> None:
    """A source (c, y, x) with levels that are each every second pixel of the one before."""
    write_source(path, pixels, "cyx", ("dna", "actin"))
    group = zarr.open_group(path)
    ome: dict[str, Any] = dict(group.attrs["ome"])  # type: ignore[arg-type]
    for level in range(1, levels):
        pixels = pixels[:, ::2, ::2]
        group.create_array(f"s{level}", data=pixels, chunks=(1, 128, 128), dimension_names=("c", "y", "x"))
        scale = {"type": "scale", "scale": [1.0, 2.0**level, 2.0**level]}
        ome["multiscales"][0]["datasets"].append({"path": f"s{level}", "coordinateTransformations": [scale]})
    group.attrs["ome"] = ome


def write_review_run(folder: Path) -> Path:
    """Ten images: eight fields on a plate of four wells, a slide of 700 x 900 in two channels, and one that
    failed, with a name that must be written with care.

    U grows with the place in `FIELDS`, the slide's is the largest.
    """
    out, rows = folder / "out", []
    for index, name in enumerate(FIELDS):
        labels = drawn(index, 100, 120, 8).astype(np.uint16)
        write_source(folder / "in" / name, pixels_of(labels, index), "yx")
        write_result(out, name, labels)
        rows.append(score(folder / "in" / "p1.ome.zarr", name, 0.02 + 0.01 * index, name.partition("/")[2]))
    labels = drawn(99, 700, 900, 60).astype(np.uint16)
    slide = np.stack([pixels_of(labels, 1), pixels_of(labels > 0, 2) // 2])
    write_pyramid_source(folder / "in" / SLIDE, slide, 2)
    write_result(out, SLIDE, labels)
    rows.append(score(folder / "in" / SLIDE, SLIDE, 0.2))
    failed = {"status": "failed", "message": "<img src=x onerror=alert(2)>", "pairwise_dice": None}
    rows.append(score(folder / "in" / EVIL, EVIL, None, **failed))
    write_tables(out, rows)
    return out


def write_flags(out: Path, names: list[str], flagged: dict[str, tuple[list[str], list[str]]]) -> None:
    """``flags.parquet`` in the order of `names`, with flags and reasons of some."""
    table = pd.DataFrame({"name": names, "rank": pd.array(range(1, len(names) + 1), dtype="Int64")})
    table["risk"] = np.linspace(0.9, 0.1, len(names))
    for index, key in enumerate(("flags", "reasons")):
        table[key] = [flagged.get(name, ([], []))[index] for name in names]
    table["review"] = [name in flagged for name in names]
    table.to_parquet(out / "flags.parquet")


def write_object_run(folder: Path, planes: dict[str, NDArray[np.int32]]) -> Path:
    """A run with objects: of each image the labels, (y, x) or (t, z, y, x), and a U that grows with its place."""
    source = object_runs.write_source(folder / "in", planes)
    out = object_runs.write_results(folder / "out", source, object_runs.write_ensemble(folder / "e"), planes)
    assert object_runs.run(out).state == "complete"
    rows = [
        image_row(
            f"{name}.ome.zarr",
            source=str(source / f"{name}.ome.zarr"),
            uncertainty=0.05 * (1 + place),
            pairwise_dice=0.9,
        )
        for place, name in enumerate(planes)
    ]
    write_scores(str(out), rows)
    return out


def write_many(out: Path, images: int, thumbnails: int) -> pd.DataFrame:
    """A run of scores alone, on plates, whose first images in the order of U have thumbnails."""
    rng = np.random.default_rng(0)
    names = [f"p{i // 768:03d}.ome.zarr/{chr(65 + i % 768 // 48)}/{i % 48 // 2 + 1:02d}/{i % 2}" for i in range(images)]
    status = np.where(rng.random(images) < 0.01, "failed", np.where(rng.random(images) < 0.02, "empty", "done"))
    table = pd.DataFrame({"name": names, "image": "", "source": "/nowhere", "status": status, "message": ""})
    uncertainty = np.clip(rng.lognormal(-3.4, 0.5, images), 0, 0.25)
    for name, factor in (("uncertainty", 1.0), ("epistemic", 0.2), ("aleatoric", 0.8)):
        table[name] = np.where(status == "done", uncertainty * factor, np.nan)
    table["pairwise_dice"] = np.where(status == "done", 1 - 2 * uncertainty, np.nan)
    table["area_fraction:nucleus"] = np.where(status == "done", rng.random(images) * 0.4, 0.0)
    write_tables(out, [])
    write_table(table, str(out / "scores.parquet"))
    order = table[table["status"] == "done"].sort_values(["uncertainty", "name"], ascending=[False, True])["name"]
    for index, name in enumerate(order[:thumbnails]):
        file = out / "report" / "thumbnails" / f"{name}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((192, 584, 3), 40 + index % 200, np.uint8)).save(file)
    return table
