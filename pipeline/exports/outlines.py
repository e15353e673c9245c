"""The objects of an image, the most uncertain first, with their names and outlines.

Rows are read group by group, pixels block by block, so that a slide of millions of objects takes the memory of one
group and one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chorus.pipeline.core.fields import FIELDS, OF_OBJECTS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.exports.contours import Polygon, polygons
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.sources.level_geometry import AxisPlace
from chorus.pipeline.io.sources.reading import open_level, read_window
from chorus.pipeline.io.storage_failures import one_line, storage_errors

# Edge of the blocks in which labels are read; any value gives the same outlines.
_BLOCK = 1024
_SAME = AxisPlace()
_PLACE = ["t", "z", "class", "label", "y0", "x0", "y1", "x1", "area"]


@dataclass(frozen=True)
class LabelledImage:
    """An image whose objects are exported.

    Attributes
    ----------
    labels_url : group that holds ``labels/<class>``
    axes : of the label images
    planes : numbers of time points and of z planes of the source's finest level
    channels : of the source
    classes : background first
    places : where the level that was segmented lies along axes of the finest one; as it is along those left out
    """

    name: str
    labels_url: str
    axes: str
    planes: tuple[int, int]
    channels: int
    classes: tuple[ClassInfo, ...]
    places: Mapping[str, AxisPlace] = field(default_factory=dict)

    def plane(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """Return time point and z plane, in the source's finest level, of a row of ``objects.parquet``."""
        t, z = (self.places.get(axis, _SAME).plane(int(row[axis])) for axis in "tz")
        return t, z

    def color(self, name: str) -> tuple[int, int, int]:
        """Return red, green and blue of a class."""
        text = next(entry.color for entry in self.classes if entry.name == name)
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
        return red, green, blue


@dataclass(frozen=True)
class Outline:
    """An object.

    Attributes
    ----------
    rank : by uncertainty within its image, 1 is the most uncertain
    name : rank, uncertainty and label, such as ``0001_U0.213_label17``
    row : of ``objects.parquet``
    parts : outlines in pixels of the level that was segmented
    color : red, green and blue
    """

    rank: int
    name: str
    row: dict[str, Any]
    parts: list[Polygon]
    color: tuple[int, int, int]


class ObjectTable:
    """Some consecutive rows of ``objects.parquet``, such as those of an image.

    Parameters
    ----------
    url : of the table
    start, stop : rows
    held : the same rows, where they are in memory already
    """

    def __init__(self, url: str, start: int, stop: int, held: pa.Table | None = None) -> None:
        self.url, self.start, self.stop, self._held = url, start, stop, held

    def __len__(self) -> int:
        return self.stop - self.start

    def in_memory(self) -> ObjectTable:
        """Return the same table, read into memory; raise as `groups`."""
        groups = list(self.groups())
        return ObjectTable(self.url, self.start, self.stop, pa.concat_tables(groups)) if groups else self

    def part(self, start: int, stop: int) -> ObjectTable:
        """Return rows `start` to `stop` of the table, which must be among these."""
        held = None if self._held is None else self._held.slice(start - self.start, stop - start)
        return ObjectTable(self.url, start, stop, held)

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows, one row group at a time.

        Raises
        ------
        ImageError
            If the table is damaged.
        OutputError
            If it cannot be read.
        """
        if self._held is not None:
            yield self._held if columns is None else self._held.select(columns)
            return
        fs, path = storage.filesystem(self.url)
        with storage_errors(self.url), fs.open(path, "rb") as source:
            try:
                file = pq.ParquetFile(source)
                first = 0
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    low, high = max(self.start - first, 0), min(self.stop - first, count)
                    if low < high:
                        yield file.read_row_group(group, columns=columns).slice(low, high - low)
                    first += count
            except pa.ArrowInvalid as error:
                reason = f"is damaged ({one_line(error)})"
                raise ImageError(f"{self.url}: {reason}; remove it and run `chorus objects` again") from error

    def uncertainty(self, column: str | None) -> NDArray[np.float64]:
        """Read the uncertainty of each object.

        Parameters
        ----------
        column : name; None if no uncertainty was saved

        Returns
        -------
        NDArray[np.float64]
            (objects,), NaN for an object without a value.

        Raises
        ------
        OutputError
            If the table cannot be read.
        """
        if column is None:
            return np.full(len(self), np.nan)
        values = [part[column].to_numpy().astype(np.float64) for part in self.groups([column])]
        return np.concatenate([np.zeros(0), *values])


def uncertainty_column(columns: Sequence[str]) -> str | None:
    """Return the column by which objects are sorted; None if no uncertainty was saved."""
    return next((field.name for field in OF_OBJECTS if field.name in columns), None)


def by_uncertainty(uncertainty: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return indices of objects, the most uncertain first; ties and unknown values in the order of the table."""
    order: NDArray[np.int64] = np.argsort(np.where(np.isnan(uncertainty), np.inf, -uncertainty), kind="stable")
    return order


def ranks(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Invert an order into ranks.

    Parameters
    ----------
    order : (objects,) a permutation of indices

    Returns
    -------
    NDArray[np.int64]
        (objects,) ranks, 1 for the first of `order`.
    """
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(1, len(order) + 1)
    return places


def object_name(rank: int, count: int, column: str | None, uncertainty: float, label: int) -> str:
    """Name an object so that names sort by rank."""
    uncertainty_text = "" if column is None or np.isnan(uncertainty) else f"_{FIELDS[column].letter}{uncertainty:.3f}"
    return f"{rank:0{max(4, len(str(count)))}d}{uncertainty_text}_label{label}"


def outlines(
    image: LabelledImage, table: ObjectTable, column: str | None, color: Literal["class", "uncertainty"]
) -> Iterator[Outline]:
    """Yield the objects of an image, block by block.

    Parameters
    ----------
    column : by which they are ranked
    color : by class, or by uncertainty over the range of its field

    Raises
    ------
    ImageError : the label images cannot be read, or are not those of the table
    """
    places = ranks(by_uncertainty(table.uncertainty(column)))
    palette, (low, high) = _palette(), FIELDS[column or OF_OBJECTS[0].name].display.ends
    first = 0
    for group in table.groups():
        rows = group.to_pylist()
        for index, parts in _outlines(image, group):
            row, rank = rows[index], int(places[first + index])
            uncertainty = float("nan") if column is None or row[column] is None else float(row[column])
            shade = 0 if np.isnan(uncertainty) else min(max(round((uncertainty - low) / (high - low) * 255), 0), 255)
            painted = image.color(row["class"]) if color == "class" else palette[shade]
            yield Outline(rank, object_name(rank, len(table), column, uncertainty, row["label"]), row, parts, painted)
        first += len(rows)


def _palette() -> list[tuple[int, int, int]]:
    """Return 256 colours from certain (blue) to most uncertain (yellow), visible on dark and on bright."""
    from matplotlib import colormaps

    return [(int(r), int(g), int(b)) for r, g, b, _ in colormaps["plasma"](np.arange(256), bytes=True)]


def _outlines(image: LabelledImage, group: pa.Table) -> Iterator[tuple[int, list[Polygon]]]:
    """Yield the index in `group` and the outlines of each of its objects."""
    rows = group.select(_PLACE).to_pandas()
    large = (rows["y1"] - rows["y0"] > _BLOCK) | (rows["x1"] - rows["x0"] > _BLOCK)
    # What is larger than a block is read alone.
    rows["block"] = np.where(large, -1 - np.arange(len(rows)), 0)
    keys = ["class", "t", "z", "block", rows["y0"] // _BLOCK, rows["x0"] // _BLOCK]
    for (name, t, z, *_), plane_rows in rows.groupby(keys, sort=True):
        window = Window.of(
            plane_rows["y0"].min(), plane_rows["y1"].max(), plane_rows["x0"].min(), plane_rows["x1"].max()
        )
        array = open_level(image.labels_url, f"labels/{name}/s0")
        try:
            labels = read_window(array, image.axes, int(t), int(z), (0,), window)[0]
        except ValueError as error:
            raise _other(image, name) from error
        for row in plane_rows.itertuples():
            top, left = row.y0 - window.y.start, row.x0 - window.x.start
            mask = labels[top : row.y1 - window.y.start, left : row.x1 - window.x.start] == row.label
            if np.count_nonzero(mask) != row.area:
                raise _other(image, name)
            yield int(row.Index), polygons(mask, row.y0, row.x0)


def _other(image: LabelledImage, name: str) -> ImageError:
    return ImageError(f"{image.labels_url}/labels/{name}: is not what objects.parquet lists; run `chorus objects` anew")


def full_resolution(ring: NDArray[np.int64], image: LabelledImage) -> NDArray[np.int64] | NDArray[np.float64]:
    """Transform a ring to pixels of the source's finest level.

    Parameters
    ----------
    ring : (vertices, 2) x and y in pixels of the level that was segmented

    Returns
    -------
    NDArray[np.int64] or NDArray[np.float64]
        (vertices, 2) x and y; integers if all of them are, else rounded to 3 decimals.
    """
    x, y = (image.places.get(axis, _SAME) for axis in "xy")
    scaled = ring * np.array([x.factor, y.factor]) + np.array([x.offset, y.offset])
    whole: NDArray[np.int64] = np.rint(scaled).astype(np.int64)
    return whole if np.allclose(scaled, whole, rtol=0, atol=1e-6) else np.round(scaled, 3)
