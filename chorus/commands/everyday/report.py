"""``chorus report``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from chorus.console.format import print_json
from chorus.console.options import Json


def report(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    top: Annotated[
        int, typer.Option(min=0, help="Images to show large of those to look at first; half of the last.")
    ] = 8,
    as_json: Json = False,
) -> None:
    """Write OUT/report/index.html again, with the results of `chorus flag`, `evaluate` and `shift` since.

    Up to 60 images it is one file; of more, the list of all images loads from `report/data` and `report/thumbnails`
    beside it.

    **Examples**

    `chorus report results/`

    `chorus report gs://bucket/results --top 20`
    """
    from chorus.pipeline.report.page import write_report

    page = write_report(out, top=top)
    if as_json:
        print_json({"page": page})
    else:
        Console().print(page, highlight=False, soft_wrap=True)
