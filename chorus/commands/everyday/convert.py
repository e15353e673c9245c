"""``chorus convert``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from chorus.console.format import duration, failures, some
from chorus.console.options import Address, Executor, Json, validated

if TYPE_CHECKING:
    from chorus.cluster.commands.convert import ConvertRow, ConvertSummary
    from chorus.cluster.state.outcome import Outcome


def convert(
    sources: Annotated[
        list[str], typer.Argument(help="Files of formats as in docs/formats.md, folders, globs, or a .txt of URLs.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Gets an OME-Zarr per file: a folder or a URL.")],
    pixel_size: Annotated[
        float | None, typer.Option(help="Micrometers of a pixel; by default what the file says.")
    ] = None,
    channel_name: Annotated[
        list[str] | None, typer.Option(help="Name of a channel, once per channel; by default those of the file.")
    ] = None,
    region: Annotated[int, typer.Option(help="Edge of a shard (one object) in pixels.")] = 2048,
    chunk: Annotated[int, typer.Option(help="Edge of a chunk in pixels; a region is a multiple of it.")] = 512,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of other settings.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Read each finished image back by ome-zarr.")] = False,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Make OME-Zarr 0.5 (sharded, with pyramid) from images in other formats; the same command again resumes.

    A file becomes `OUT/<path below its folder>.ome.zarr`, one of several series a collection of images. Exit code 0:
    all done, 1: finished with failed files, 2: refused, 3: interrupted, resumable.

    **Examples**

    `chorus convert images/ --out zarr/ --pixel-size 0.65 --channel-name DNA`

    `chorus convert 'scans/*.ome.tif' --out gs://bucket/scans --region 4096`
    """
    from chorus.cluster.commands import convert as run
    from chorus.console.progress import ConsoleReporter

    err = Console(stderr=True)
    settings = {"pixel_size": pixel_size, "channel_name": channel_name or [], "region": region, "chunk": chunk}
    content = {"sources": sources, "out": out, "executor": executor, "address": address, "overwrite": overwrite}
    content |= {"strict": strict}
    request = validated(run.ConvertRequest, content | {"settings": settings}, "convert")
    outcome = run.convert(request, ConsoleReporter(err, units="files", devices="cores"))
    if as_json:
        print(json.dumps(outcome.content))
    for line in _lines(outcome):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


def _lines(outcome: Outcome[ConvertRow, ConvertSummary]) -> list[str]:
    """Return how the command ended, where the results are, and what to do next."""
    summary = outcome.summary
    parts = f", {summary.part} parts of others" if summary.part else ""
    left = f", {summary.open} not yet" if summary.open else ""
    lines = [
        f"{summary.files} files: {summary.done} done ({summary.images} images, "
        f"{summary.pixels / 1e6:.1f} megapixels){parts}, {summary.failed} failed{left}; "
        f"{duration(summary.seconds)} since the run was first begun"
    ]
    lines += failures(outcome.rows, "run.json")
    notes = [row.message for row in outcome.rows if row.status == "done" and row.message]
    lines += some("note", notes, "what --json prints")
    if outcome.state == "interrupted":
        return [*lines, f"cut short: {outcome.message}"]
    return [*lines, f"results  {outcome.out}", f"next     chorus predict {outcome.out} --ensemble ... --out ..."]
