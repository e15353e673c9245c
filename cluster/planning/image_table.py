"""The image table: one row per image, from which any region is found by arithmetic."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.io import storage
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import storage_errors

_STRINGS = pa.list_(pa.string())
_INTEGERS = pa.list_(pa.int64())
_FLOATS = pa.list_(pa.float64())
_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "Ngff": pa.string(),
    "int": pa.int64(),
    "tuple[int, ...]": _INTEGERS,
    "tuple[float, ...]": _FLOATS,
    "tuple[str | None, ...]": _STRINGS,
}
SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(PlannedImage)])
_BATCH = 1_000
# Columns that do not identify an image.
_NOT_OF_IMAGES = ["region", "region_depth", "note"]
# Columns that came later, and what they are in tables of before.
_LATER: dict[str, str | int] = {"note": "", "model_depth": 0, "region_depth": 0}
_OF_MODEL = ["model_height", "model_width"]


class ImageTable:
    """Images in order, stored as columns: 10^5 images take tens of megabytes."""

    def __init__(self, table: pa.Table, regions: np.ndarray) -> None:
        self._table = table
        self._ends = np.cumsum(regions, dtype=np.int64)

    @classmethod
    def collect(cls, images: Iterable[PlannedImage]) -> ImageTable:
        """Build the table of `images`, in their order, without holding them as objects."""
        batches: list[pa.RecordBatch] = []
        regions: list[int] = []
        rows: list[dict[str, object]] = []
        for image in images:
            rows.append({name: getattr(image, name) for name in SCHEMA.names})
            regions.append(image.regions)
            if len(rows) == _BATCH:
                batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
                rows = []
        batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        return cls(pa.Table.from_batches(batches).combine_chunks(), np.asarray(regions, dtype=np.int64))

    @classmethod
    def read(cls, url: str) -> ImageTable:
        """Read the table that `write` left at `url`.

        Raises
        ------
        OSError
            It is not there, or storage fails.
        DamagedError
            It is cut, or no such table.
        """
        data = storage.read_bytes(url)
        with parquet_errors(url, "run the same `chorus predict` again to mend it"):
            table = pq.read_table(io.BytesIO(data))
            for name, value in _LATER.items():
                if name not in table.column_names:  # of an earlier version
                    table = table.append_column(name, pa.array([value] * len(table), SCHEMA.field(name).type))
            return cls(table.select([*SCHEMA.names]), table.column("regions").to_numpy())

    def write(self, url: str) -> None:
        """Write the table as Parquet to `url`; raise OutputError where storage fails."""
        buffer = io.BytesIO()
        pq.write_table(self._table.append_column("regions", pa.array(self.region_counts)), buffer)
        with storage_errors(url):
            storage.write_bytes(url, buffer.getvalue())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def regions(self) -> int:
        """Return the number of regions of all images."""
        return int(self._ends[-1]) if len(self) else 0

    @property
    def region_counts(self) -> np.ndarray:
        """Return the regions per image, (images,) int64."""
        return np.diff(self._ends, prepend=0)

    @property
    def names(self) -> list[str]:
        """Return the names of the images, in the order of the table."""
        return list(self._table.column("name").to_pylist())

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Return name and note of every image that has a note."""
        noted = self._table.filter(pc.not_equal(self._table.column("note"), ""))
        return list(zip(noted.column("name").to_pylist(), noted.column("note").to_pylist(), strict=True))

    @cached_property
    def kinds(self) -> tuple[list[PlannedImage], np.ndarray]:
        """Return one image of each kind, and the kind of every image, (images,) int64.

        Images of a kind agree in whatever work, bytes and memory depend on: there are few kinds and many images.
        """
        sizes = ("model_height", "model_width", "model_depth", "region", "region_depth")
        columns = ("axes", "output_axes", "output_shape", "channels", "dtype", *sizes)
        rows = zip(*(map(str, self._table.column(name).to_pylist()) for name in columns), strict=True)
        first: dict[tuple[str, ...], int] = {}
        examples: list[int] = []
        kind = np.empty(len(self), np.int64)
        for index, row in enumerate(rows):
            kind[index] = first.setdefault(row, len(examples))
            if kind[index] == len(examples):
                examples.append(index)
        return [self.image(index) for index in examples], kind

    @property
    def pixels(self) -> np.ndarray:
        """Return the pixels of each image over all its planes, (images,) int64."""
        examples, kind = self.kinds
        pixels = np.array([example.pixels for example in examples], np.int64)
        return np.asarray(pixels[kind])

    def containers(self, images: np.ndarray) -> dict[str, int]:
        """Return the roots of the plates and collections that hold `images`, each with one of these images.

        Parameters
        ----------
        images : (n,) int64, row indices
        """
        chosen = self._table.select(["root", "kind"]).take(pa.array(images, pa.int64()))
        roots: dict[str, int] = {}
        for index, root, kind in zip(images.tolist(), *(c.to_pylist() for c in chosen.columns), strict=True):
            if kind != "image":
                roots.setdefault(root, index)
        return roots

    def image(self, index: int) -> PlannedImage:
        """Return the image in row `index`."""
        row = self._table.slice(index, 1).to_pylist()[0]
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        return PlannedImage(**values)

    def without(self, names: Collection[str]) -> ImageTable:
        """Return the table without the images `names` and those inside plates, wells or collections of these names."""
        gone = set(names)

        def parents(name: str) -> Iterator[str]:
            return itertools.accumulate(name.split("/"), "{}/{}".format)

        kept = np.array([gone.isdisjoint(parents(name)) for name in self.names], dtype=bool)
        return ImageTable(self._table.filter(pa.array(kept)), self.region_counts[kept])

    def resized(self, sizes: Mapping[int, tuple[int, int]]) -> ImageTable:
        """Return the table with other sizes of planes at the ensemble's pixel size: (height, width) by row."""
        table = self._table
        for axis, name in enumerate(_OF_MODEL):
            column = table.column(name).to_pylist()
            for row, size in sizes.items():
                column[row] = size[axis]
            index = table.schema.get_field_index(name)
            table = table.set_column(index, SCHEMA.field(name), pa.array(column, pa.int64()))
        return ImageTable(table, self.region_counts)

    def same_images(self, other: ImageTable) -> bool:
        """Return whether both tables hold the same images, whatever their division into regions and their scale."""
        a, b = (table._table.drop_columns([*_NOT_OF_IMAGES, *_OF_MODEL]) for table in (self, other))
        return bool(a.equals(b))

    def find(self, region: int) -> tuple[int, int]:
        """Return (image, region within the image) for a region of the whole run."""
        if not 0 <= region < self.regions:
            raise IndexError(f"region {region} of {self.regions}")
        image = int(np.searchsorted(self._ends, region, side="right"))
        return image, region - self.first_region(image)

    def first_region(self, image: int) -> int:
        """Return the number, within the run, of the first region of an image."""
        return int(self._ends[image - 1]) if image else 0

    @cached_property
    def digest(self) -> str:
        """Return a hash of what the images are (places, shapes, types), not of their pixels."""
        buffer = io.BytesIO()
        # The division into regions is a setting and compared as one.
        table = self._table.drop_columns(_NOT_OF_IMAGES)
        if not pc.any(pc.not_equal(table.column("model_depth"), 0)).as_py():
            table = table.drop_columns(["model_depth"])  # so that planes have the digest that they had before volumes
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table)
        return hashlib.sha256(buffer.getvalue()).hexdigest()
