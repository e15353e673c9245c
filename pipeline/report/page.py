"""What stands on the report's page: read from ``run.json``, ``scores.parquet`` and the images of a run."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet

from pipeline import storage
from pipeline.ensemble import COLORS
from pipeline.errors import RefusedError
from pipeline.layout import ClassInfo
from pipeline.report.pictures import INFERNO, UNCERTAINTY_TOP, Picture, Views, draw_image, draw_views

TABLE_ROWS = 500  # a page of more is no page; the rest is in scores.parquet
_BINS = 24


@dataclass(frozen=True, slots=True)
class Row:
    """One image of ``scores.parquet``; numbers are None where the run has none."""

    name: str
    source_url: str
    status: str
    message: str
    uncertainty: float | None
    epistemic: float | None
    aleatoric: float | None
    pairwise_dice: float | None
    foreground: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Shown:
    """An image with its pictures and its rank by uncertainty, 1 for the most."""

    row: Row
    rank: int
    views: Views


@dataclass(frozen=True, slots=True)
class Aside:
    """An image without prediction: its picture (None where it cannot be read) and the reason."""

    row: Row
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram: its interval of uncertainty, its count, and its height (1 for the tallest)."""

    low: float
    high: float
    count: int
    height: float


def write_report(out_url: str, *, top: int = 8) -> str:
    """Write ``OUT/report/index.html``, one page that holds its pictures and needs nothing beside it.

    Parameters
    ----------
    out_url : the place of a finished or interrupted run
    top : how many of the most uncertain images are shown; half as many of the least uncertain

    Returns
    -------
    str
        URL of the page.

    Raises
    ------
    RefusedError
        If `out_url` holds no run.
    """
    out = storage.normalise(out_url)
    run = _read_run(storage.join(out, "run.json"))
    rows = _read_rows(storage.join(out, "scores.parquet"))
    classes = _classes(run)
    ranked = _ranked(rows)
    best_from = max(min(top, len(ranked)), len(ranked) - max(1, top // 2))
    shown = [
        Shown(row, rank, draw_views(row.source_url, storage.join(out, "images", row.name), classes))
        for rank, row in enumerate(ranked, 1)
        if rank <= top or rank > best_from
    ]
    empty = [row for row in rows if row.status == "empty"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "duration": _duration, "moment": _moment}
    page = environment.get_template("report.html.j2").render(
        run=run,
        classes=classes[1:],
        counts={status: sum(row.status == status for row in rows) for status in ("done", "empty", "failed")},
        rows=rows,
        table=(ranked + [row for row in rows if not _is_scored(row)])[:TABLE_ROWS],
        histogram=_histogram([row.uncertainty for row in ranked if row.uncertainty is not None]),
        worst=[each for each in shown if each.rank <= top],
        best=[each for each in reversed(shown) if each.rank > top],
        empty=[Aside(row, draw_image(row.source_url)[0] if i < top else None) for i, row in enumerate(empty)],
        failed=[row for row in rows if row.status == "failed"],
        inferno=INFERNO,
        scale_top=UNCERTAINTY_TOP,
        table_rows=TABLE_ROWS,
    )
    target = storage.join(out, "report", "index.html")
    storage.write_bytes(target, page.encode())
    return target


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except OSError as error:
        sentence = storage.explain(error, url)
        raise RefusedError(f"{sentence}; a report needs the --out of a `chorus predict` run") from error


def _read_run(url: str) -> dict[str, Any]:
    """``run.json`` with an entry, empty if need be, for each part that the page looks into."""
    try:
        run = json.loads(_read(url))
    except ValueError as error:
        raise RefusedError(f"{url}: is not JSON ({error}); run predict again to mend it") from error
    if not isinstance(run, dict):
        raise RefusedError(f"{url}: is no record of a run; run predict again to mend it")
    return (
        {"started": None, "finished": None, "outcome": None, "chorus": None}
        | run
        | {part: run.get(part) or {} for part in ("settings", "ensemble", "summary")}
    )


def _read_rows(url: str) -> list[Row]:
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(_read(url)))
    except pyarrow.ArrowInvalid as error:
        raise RefusedError(f"{url}: is not Parquet ({error}); run predict again to mend it") from error
    return [_row(values) for values in table.to_pylist()]


def _row(values: dict[str, Any]) -> Row:
    prefix = "foreground_fraction:"
    image, source = values.get("image") or "", values.get("source") or ""
    return Row(
        name=values.get("name") or image or storage.basename(source),
        source_url=storage.join(source, image),
        status=values.get("status") or "",
        message=values.get("message") or "",
        uncertainty=_finite(values.get("uncertainty")),
        epistemic=_finite(values.get("epistemic")),
        aleatoric=_finite(values.get("aleatoric")),
        pairwise_dice=_finite(values.get("pairwise_dice")),
        foreground={k.removeprefix(prefix): _finite(v) for k, v in values.items() if k.startswith(prefix)},
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _is_scored(row: Row) -> bool:
    return row.status == "done" and row.uncertainty is not None


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Images with an uncertainty, the most uncertain first; equal ones by name."""
    return sorted(filter(_is_scored, rows), key=lambda row: (-(row.uncertainty or 0.0), row.name))


def _classes(run: dict[str, Any]) -> list[ClassInfo]:
    """Classes of the ensemble, background first; a colour that is none is replaced by one that is."""
    entries = run["ensemble"].get("classes") or [{"name": "background"}, {"name": "foreground"}]
    return [
        ClassInfo(
            str(entry.get("name") or f"class {index}"),
            color
            if re.fullmatch(r"#[0-9a-fA-F]{6}", color := str(entry.get("color")))
            else COLORS[(index - 1) % len(COLORS)],
        )
        for index, entry in enumerate(entries)
    ]


def _histogram(values: Sequence[float]) -> list[Bar]:
    """How often each uncertainty occurs, from 0 to a round number above the largest; empty without values."""
    if not values:
        return []
    top = max(0.04, math.ceil(max(values) * 25) / 25)  # so that quarters of it are whole hundredths
    counts, edges = np.histogram(values, bins=_BINS, range=(0, top))
    return [
        Bar(float(low), float(high), int(count), float(count / counts.max()))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    """Seconds in the unit that a person would use."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _moment(text: str | None) -> str:
    """An ISO date and time without fractions; other text as it is."""
    if not text:
        return "–"
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(text)
