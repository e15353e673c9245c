"""The list of all images as data for the page's script: in the page if there are few images, else in files beside it.

Files are scripts, since a page that was opened from a disk may not load other files::

    OUT/report/data/rows-<n>.js      1000 images each, in order
    OUT/report/data/order-<n>.js     all images sorted by a quantity: their indices in that order, uint32
    OUT/report/data/marks.js         status and flags of each image, as bits, uint16
    OUT/report/data/plate-<n>.js     the wells of a plate

Text from users (names, messages) is escaped for scripts within a page, also in the files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps

from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.report.plates import Plates, rounded
from chorus.pipeline.report.rows import STATUSES, Images
from chorus.pipeline.scores.flag_registry import FLAG_NAMES, REVIEW

INLINE = 60
"""Up to this number of images everything is in one file."""
ROWS = 1000
"""Images per file of rows."""
_LIMIT = 16  # bits of a mark


def marks_of(images: Images) -> list[str]:
    """Return the filters of the list: each is a bit of an image's mark."""
    raised = {flag for raised_by in images.table["flags"] for flag in raised_by} - set(STATUSES)
    flags = [flag for flag in FLAG_NAMES if flag in raised] + sorted(raised.difference(FLAG_NAMES))
    statuses = [status for status in STATUSES if (images.table["status"] == status).any()]
    review = [REVIEW] if images.table["review"].any() else []
    return [*statuses, *flags, *review][:_LIMIT]


def parts(images: Images, plates: Plates, shown: set[str]) -> Iterator[tuple[str, object]]:
    """Yield everything that the script may request, by key; `shown` are names of images that have a thumbnail."""
    for start in range(0, len(images), ROWS):
        yield f"rows-{start // ROWS}", _rows(images, slice(start, start + ROWS), shown)
    for index, quantity in enumerate(images.quantities):
        values = images.table[quantity.key].to_numpy(np.float64, na_value=np.nan)
        order = np.argsort(values if quantity.low_is_bad else -values, kind="stable")  # NaN goes last
        yield f"order-{index}", _packed(order, "<u4")
    yield "marks", _packed(_marks(images), "<u2")
    for index, content in enumerate(plates.maps):
        yield f"plate-{index}", asdict(content)


def write_parts(out: str, images: Images, plates: Plates, shown: set[str]) -> None:
    """Write `parts` into files, replacing those of an earlier report.

    Raises
    ------
    OutputError
        If storage does not accept them.
    """
    folder = data_url(out)

    def write(part: tuple[str, object]) -> None:
        key, value = part
        script = f"chorusData({htmlsafe_json_dumps(key)},{_json(value)});\n"
        storage.write_bytes(storage.join(folder, f"{key}.js"), script.encode())

    remove_parts(out)
    with storage_errors(folder), ThreadPoolExecutor(8) as pool:
        list(pool.map(write, parts(images, plates, shown)))


def remove_parts(out: str) -> None:
    """Remove the files of an earlier report."""
    with storage_errors(data_url(out)):
        remove_folder(data_url(out))


def data_url(out: str) -> str:
    """Return the URL of the folder of the files."""
    return storage.join(out, "report", "data")


def _json(value: object) -> str:
    return str(htmlsafe_json_dumps(value, separators=(",", ":")))


def _rows(images: Images, which: slice, shown: set[str]) -> list[list[object]]:
    """Return per image: name, rank, whether it has a thumbnail, its numbers, reasons, message."""
    table = images.table.iloc[which]
    columns = [
        rounded(table[quantity.key].to_numpy(np.float64, na_value=np.nan), quantity.digits)
        for quantity in images.quantities
    ]
    numbers = zip(*columns, strict=True) if columns else iter([()] * len(table))
    texts = zip(table["name"], table["rank"].tolist(), table["reasons"], table["message"], strict=True)
    return [
        [name, rank, int(name in shown), list(values), list(reasons), message]
        for (name, rank, reasons, message), values in zip(texts, numbers, strict=True)
    ]


def _marks(images: Images) -> np.ndarray:
    bits = {name: 1 << index for index, name in enumerate(marks_of(images))}
    table: pd.DataFrame = images.table
    marks = np.array([bits.get(status, 0) for status in table["status"]], np.uint16)
    marks |= np.where(table["review"].to_numpy(bool), bits.get(REVIEW, 0), 0).astype(np.uint16)
    for row, flags in enumerate(table["flags"]):
        for flag in flags:
            marks[row] |= bits.get(flag, 0)
    return marks


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()
