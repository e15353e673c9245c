"""The report page: its content, and where it and its files are written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib import resources

import jinja2
from markupsafe import Markup

from chorus.pipeline.core.run_document import PredictDocument, PredictSummary, SavedEnsemble
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.report import listing, sections
from chorus.pipeline.report.citations import citations
from chorus.pipeline.report.documents import Evaluation, Sentinels, classes_of, read_document, read_run
from chorus.pipeline.report.pictures import INFERNO, UNCERTAINTY_TOP, Picture, Views, data_uri, draw_image, draw_views
from chorus.pipeline.report.plates import Plates, plates_of
from chorus.pipeline.report.rows import STATUSES, Images, Row, read_images
from chorus.pipeline.report.thumbnails import thumbnail_url, thumbnails_present, write_thumbnail
from chorus.pipeline.scores.flag_registry import flag_label
from chorus.pipeline.scores.registry import phrase_of
from chorus.pipeline.shift.shift import Shift

# Maximum number of names within the page; the list has all.
_NAMED = 50
# Maximum number of pictures of empty predictions.
_DRAWN = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """An image with its pictures."""

    row: Row
    views: Views


@dataclass(frozen=True, slots=True)
class Aside:
    """An image without prediction: its picture (None if it cannot be read) and the reason."""

    row: Row
    picture: Picture | None


def write_report(out_url: str, *, top: int = 8) -> str:
    """Write ``OUT/report/index.html`` and, if there are many images, the files that it loads.

    Parameters
    ----------
    out_url : output of a finished or interrupted run
    top : number of images shown large: those to review first; half as many of the last ones

    Returns
    -------
    str
        URL of the page.

    Raises
    ------
    RefusedError
        If `out_url` contains no run.
    OutputError
        If storage does not accept the page.
    """
    out = storage.normalise(out_url)
    notes: list[str] = []
    run = read_run(out, needed_by="a report")
    images = read_images(out, notes)
    plates = plates_of(images)
    worst, best = _pictures(out, images, run, top)
    inline = len(images) <= listing.INLINE
    small = images.rows(range(len(images))) if inline else [each.row for each in worst + best]
    present = _thumbnails(out, small, run)
    data = _page_data(images, plates)
    if inline:
        listing.remove_parts(out)
        urls = {row.name: thumbnail_url(out, row.name) for row in small if row.name in present}
        with storage_errors(out):
            data["thumbnails"] = {name: data_uri(storage.read_bytes(url)) for name, url in urls.items()}
        data["inline"] = dict(listing.parts(images, plates, present))
    else:
        listing.write_parts(out, images, plates, present)
    content = _content(out, run, images, notes) | {"worst": worst, "best": best, "plates": plates, "data": data}
    page = _environment().get_template("report.html.j2").render(content)
    target = storage.join(out, "report", "index.html")
    with storage_errors(target):
        storage.write_bytes(target, page.encode(errors="backslashreplace"))
    return target


def _content(out: str, run: PredictDocument, images: Images, notes: list[str]) -> dict[str, object]:
    """Return the variables of the template, except for pictures and lists."""
    ensemble = run.ensemble or SavedEnsemble()
    if run.reference is not None and run.reference.differs:
        notes.append(run.reference.differs)
    known = sections.known_of(ensemble.url, ensemble.hash, notes)
    shift = read_document(out, "shift.json", Shift, "chorus shift", notes)
    evaluation = read_document(out, "evaluation.json", Evaluation, "chorus evaluate", notes)
    if evaluation is not None and evaluation.outcome == "running":
        notes.append("the evaluation was interrupted and is left out; run the same `chorus evaluate` again")
        evaluation = None
    flows = "cellpose" in known.kinds or "flows" in run.settings.save
    with storage_errors(out):
        flows = flows or storage.exists(storage.join(out, "objects.json"))
    empty = images.rows(images.places("empty")[:_NAMED])
    return {
        "run": run,
        "ensemble": ensemble,
        "summary": run.summary or PredictSummary(),
        "settings": run.settings.content,
        "classes": classes_of(run)[1:],
        "images": images,
        "counts": {status: len(images.places(status)) for status in STATUSES},
        "raised": sections.flags_raised(images),
        "review": int(images.table["review"].sum()),
        "empty": [Aside(row, draw_image(row.source_url)[0] if i < _DRAWN else None) for i, row in enumerate(empty)],
        "failed": images.rows(images.places("failed")[:_NAMED]),
        "noted": images.rows(images.noted()[:_NAMED]),
        "noted_count": len(images.noted()),
        "known": known,
        "distributions": sections.distributions(images, known.reference),
        "evaluation": evaluation,
        "metrics": sections.metrics_shown(evaluation) if evaluation else [],
        "measured": sections.measured_plots(images),
        "shift": shift,
        "shift_tests": sections.shifted_first(shift) if shift else [],
        "shift_groups": sections.groups_first(shift) if shift else [],
        "sentinels": read_document(out, "sentinels.json", Sentinels, "chorus predict", notes),
        "citations": citations(run.chorus, flows=flows, ensemble=known.about.cite),
        "notes": notes,
        "named": _NAMED,
        "inferno": INFERNO,
        "scale_top": UNCERTAINTY_TOP,
    }


def _pictures(out: str, images: Images, run: PredictDocument, top: int) -> tuple[list[Shown], list[Shown]]:
    """Return the images to review first, and for comparison the last ones, the very last on top."""
    ranked = images.ranked()
    first = ranked[:top]
    last = ranked[max(len(first), len(ranked) - (top + 1) // 2) :][::-1]
    classes = classes_of(run)

    def draw(row: Row) -> Shown:
        result = storage.join(out, "images", row.name)
        return Shown(row, draw_views(row.source_url, result, classes, labels_url=_labels_url(out, row, run)))

    worst, best = ([draw(row) for row in images.rows(places)] for places in (first, last))
    return worst, best


def _thumbnails(out: str, rows: list[Row], run: PredictDocument) -> set[str]:
    """Return the names of the images that have a thumbnail; those of `rows` without one get one.

    Runs of earlier versions have none.
    """
    present, classes = thumbnails_present(out), classes_of(run)
    for row in rows:
        if row.name not in present and row.status != "failed":
            write_thumbnail(out, row.name, row.source_url, _labels_url(out, row, run), classes)
            present.add(row.name)
    return present


def _labels_url(out: str, row: Row, run: PredictDocument) -> str:
    return row.source_url if run.settings.in_place else storage.join(out, "images", row.name)


def _page_data(images: Images, plates: Plates) -> dict[str, object]:
    """Return the data that the page's script needs before it requests any part."""
    return {
        "count": len(images),
        "rows": listing.ROWS,
        "quantities": [
            {"label": each.label, "digits": each.digits, "first": each.listed} for each in images.quantities
        ],
        "marks": (marks := listing.marks_of(images)),
        "mark_labels": [flag_label(mark) for mark in marks],
        "plates": plates.names,
        "limits": plates.limits,
        "colors": INFERNO,
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chorus.pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "duration": _duration,
        "moment": _moment,
        "words": _words,
        "flag": flag_label,
        "phrase": phrase_of,
        "chance": _chance,
    }
    folder = resources.files("chorus.pipeline.report")
    environment.globals |= {name: Markup((folder / f"report.{name}").read_text()) for name in ("css", "js")}
    return environment


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _chance(p: float | None) -> str:
    return "under 0.001" if p is not None and p < 0.001 else _number(p, 3)


def _words(value: object) -> str:
    """Format a setting for display."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _duration(seconds: float | None) -> str:
    """Format seconds in a suitable unit."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _moment(text: str | None) -> str:
    """Format an ISO date and time without fractions; other text is returned unchanged."""
    if not text:
        return "–"
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(text)
