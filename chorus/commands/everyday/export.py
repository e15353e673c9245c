"""``chorus export``: ``rois``, ``geojson``, ``tables``, ``annotation``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chorus.console.format import SHOWN, duration, failures
from chorus.console.options import Address, Executor, Json, validated

if TYPE_CHECKING:
    from chorus.cluster.exports.records import ExportRow, ExportSummary, PackageRow, PackageSummary
    from chorus.cluster.state.outcome import Outcome

err = Console(stderr=True)

_Run = Annotated[str, typer.Argument(help="Results of `chorus predict`.")]
_WithObjects = Annotated[str, typer.Argument(help="Results of `chorus predict`, after `chorus objects`.")]
_To = Annotated[str, typer.Option("--out", "-o", help="Gets the files: a folder, or a gs://, s3:// or az:// URL.")]
_Color = Annotated[
    Literal["class", "uncertainty"] | None,
    typer.Option(help="Colour of objects; by default of their uncertainty, or where none was saved of their class."),
]
_Decided = Annotated[
    Literal["accept", "reject", "correct-later"] | None,
    typer.Option(help="Only images that were decided so in `chorus review`."),
]


def rois(
    results: _WithObjects,
    out: _To,
    color: _Color = None,
    decided: _Decided = None,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Write the objects of each image as a set of ImageJ ROIs (.zip), the most uncertain first.

    Beside them `by_uncertainty.csv` lists the objects of all images by uncertainty, `images.csv` the outcome of each
    image.
    Exit code 0: all done, 1: some images failed, 2: refused, 3: interrupted, resumable.

    **Examples**

    `chorus export rois results/ --out rois/`

    `chorus export rois results/ --out rois/ --color class`

    `chorus export rois results/ --out rois/ --decided accept`
    """
    content = {"out": results, "to": out, "kind": "rois", "color": color, "executor": executor, "address": address}
    _objects(content, _only(results, decided), as_json)


def geojson(
    results: _WithObjects,
    out: _To,
    object_type: Annotated[
        Literal["detection", "annotation"],
        typer.Option("--as", help="What QuPath makes of objects: many, or such as can be edited."),
    ] = "detection",
    color: _Color = None,
    decided: _Decided = None,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Write the objects of each image as GeoJSON for QuPath, in pixels of the full resolution, most uncertain first.

    Beside them `by_uncertainty.csv` and `images.csv`, and exit codes, as of `chorus export rois`.

    **Examples**

    `chorus export geojson results/ --out qupath/`

    `chorus export geojson gs://bucket/results --out gs://bucket/qupath --as annotation --address auto`
    """
    content = {"out": results, "to": out, "kind": "geojson", "object_type": object_type, "color": color}
    _objects(content | {"executor": executor, "address": address}, _only(results, decided), as_json)


def tables(
    results: _Run,
    out: _To,
    kind: Annotated[Literal["csv", "parquet", "json"], typer.Option("--format", help="Of the files.")] = "csv",
    as_json: Json = False,
) -> None:
    """Write all data of images (scores, flags, evaluation) and of objects as two tables.

    **Example**

    `chorus export tables results/ --out tables/ --format parquet`
    """
    from chorus.cluster.exports.tables import export_tables

    rows = export_tables(results, out, kind)
    if as_json:
        print(json.dumps({"out": out, "format": kind, "rows": rows}))
        return
    for name, count in rows.items():
        Console().print(f"{out.rstrip('/')}/{name}.{kind}  {count} rows", highlight=False, soft_wrap=True, markup=False)


def annotation(
    results: _Run,
    out: _To,
    images: Annotated[int | None, typer.Option(help="How many; by default 20, or all of --decided.")] = None,
    decided: _Decided = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Score, the worst first, or `risk`; by default `risk` after `chorus flag`, else uncertainty."
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(help="Of larger images the most uncertain window of this edge is taken, in pixels.")
    ] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a package that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Collect the worst images with the prediction as draft labels, to correct and to train on.

    Leaves `images/`, `labels/`, `package.csv` (where each comes from, scores, reasons) and `README.txt` (what to do).

    **Examples**

    `chorus export annotation results/ --out to-correct/`

    `chorus export annotation results/ --out to-correct/ --images 50 --by epistemic --size 512`

    `chorus export annotation results/ --out to-correct/ --decided correct-later`

    `chorus train to-correct/images --labels to-correct/labels --out better/`
    """
    from chorus.cluster.exports.annotation import export_annotation
    from chorus.cluster.exports.package import AnnotationRequest
    from chorus.console.progress import ConsoleReporter

    content = {"out": results, "to": out, "images": images, "by": by, "size": size, "overwrite": overwrite}
    request = validated(AnnotationRequest, content | {"only": _only(results, decided)}, "export annotation")
    outcome = export_annotation(request, ConsoleReporter(err, units="images", devices="cores"))
    if not as_json:
        Console().print(_package_table(outcome))
    summary = outcome.summary
    left = f", {summary.open} not yet" if summary.open else ""
    counts = f"{summary.images} images: {summary.done} done, {summary.failed} failed{left}"
    _end(outcome, counts, [f"package  {outcome.out}", f"next     read {outcome.out}/README.txt"], as_json)


def _only(results: str, decided: str | None) -> tuple[str, ...] | None:
    """Return the names of the images with this decision; None without --decided."""
    if decided is None:
        return None
    from chorus.serving.review.run import decided_images

    return tuple(decided_images(results, decided))


def _objects(content: dict[str, Any], only: tuple[str, ...] | None, as_json: bool) -> None:
    from chorus.cluster.exports.outline_files import ExportRequest
    from chorus.cluster.exports.outlines import BY_UNCERTAINTY, IMAGES, export_objects
    from chorus.console.progress import ConsoleReporter

    request = validated(ExportRequest, content, f"export {content['kind']}")
    outcome = export_objects(request, ConsoleReporter(err, units="steps", devices="cores"), only)
    lists = [f"objects  {outcome.out}/{BY_UNCERTAINTY}"] if only is None else []
    lists.append(f"images   {outcome.out}/{IMAGES}")
    summary = outcome.summary
    left = f", {summary.open} not yet" if summary.open else ""
    counts = f"{summary.images} images: {summary.done} done, {summary.empty} without objects, {summary.failed} failed"
    counts += f"{left}; {summary.objects} objects"
    _end(outcome, counts, [f"files    {outcome.out}", *lists], as_json)


def _package_table(outcome: Outcome[PackageRow, PackageSummary]) -> Table:
    """Return a table of the images of a package, and the window of each."""
    table = Table(title=f"{outcome.summary.done} images by {outcome.summary.by}", title_justify="left")
    for name in ("image", "plane (t, z)", "window (y, x)", "pixels", "labels"):
        table.add_column(name, overflow="fold")
    done = [(row, row.origin) for row in outcome.rows if row.origin is not None]
    for row, origin in done[:SHOWN]:
        places = f"{origin.t}, {origin.z}", f"{origin.y}, {origin.x}", f"{origin.height} x {origin.width}"
        table.add_row(escape(row.file), *places, escape(row.labels))
    if len(done) > SHOWN:
        table.add_row(f"and {len(done) - SHOWN} more")
    return table


def _end(
    outcome: Outcome[ExportRow, ExportSummary] | Outcome[PackageRow, PackageSummary],
    counts: str,
    places: list[str],
    as_json: bool,
) -> None:
    """Report how the export ended and where the files are, and exit with its code."""
    if as_json:
        print(json.dumps(outcome.content))
    lines = [f"{counts}; {duration(outcome.summary.seconds)}"]
    lines += failures(outcome.rows, "what --json prints")
    lines += [f"cut short: {outcome.message}"] if outcome.state == "interrupted" else places
    for line in lines:
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)
