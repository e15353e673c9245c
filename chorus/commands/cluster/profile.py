"""``chorus profile``: where the time of a run went."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from chorus.console.format import duration
from chorus.console.options import Json

if TYPE_CHECKING:
    from chorus.cluster.telemetry.profile import Profile

_MEANING = {
    "busy": "a region held the device",
    "hand": "one was ready and waited for it",
    "read": "none was ready yet: reading and preparing",
    "write": "all that an actor takes at once were being scored and written",
    "queue": "it could take another region and none had come",
    "start": "its process and its members were being loaded",
    "end": "nothing was left for it, while others were at work",
}
out_console = Console()


def profile(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict --profile`.")],
    as_json: Json = False,
) -> None:
    """Show where the time of a run went: its stages, how busy its devices were, and what they waited for.

    Writes OUT/profile/index.html, with a timeline of each actor, and OUT/profile/trace.json for ui.perfetto.dev.

    **Examples**

    `chorus predict plate.ome.zarr -e nuclei/ -o results/ --profile`, then `chorus profile results/`

    `chorus profile gs://lab/results --json`
    """
    from chorus.cluster.telemetry.profile import profile as of_timeline
    from chorus.cluster.telemetry.profile import read_timeline
    from chorus.cluster.telemetry.profile_page import write_page

    timeline = read_timeline(out)
    summary = of_timeline(timeline)
    page = write_page(out, timeline, summary)
    if as_json:
        print(json.dumps(summary.model_dump(by_alias=True) | {"states": summary.states, "page": page}))
        return
    for table in tables(summary):
        out_console.print(table)
    out_console.print(f"page  {page}", highlight=False, soft_wrap=True)


def tables(summary: Profile) -> Iterator[Table]:
    """Yield tables of the devices, then of the stages of regions, images and the run."""
    sessions = f"{summary.sessions} session{'s' if summary.sessions > 1 else ''}"
    devices = Table(title=f"Devices in {duration(summary.seconds)} of regions ({sessions})", title_justify="left")
    for name in ("devices were", "share", ""):
        devices.add_column(name, justify="right" if name == "share" else "left")
    for state, share in summary.states.items():
        devices.add_row(state, f"{share:.1%}", _MEANING[state])
    yield devices
    stages = Table(title="Stages", title_justify="left")
    for name in ("of", "stage"):
        stages.add_column(name)
    for name in ("count", "seconds", "share", "median", "95 %"):
        stages.add_column(name, justify="right")
    unit = ""
    for row in summary.stages:
        if unit and row.unit != unit:
            stages.add_section()
        unit = row.unit
        numbers = (f"{row.seconds:.2f}", f"{row.share:.1%}", f"{row.median:.3f}", f"{row.p95:.3f}")
        stages.add_row(row.unit, row.stage, f"{row.count}", *numbers)
    yield stages
