"""The profile for people: a page with the states of all devices and the stages of each actor over time, and a trace.

::

    OUT/profile/index.html    self-contained
    OUT/profile/trace.json    all stages, for https://ui.perfetto.dev or chrome://tracing
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from chorus.cluster.telemetry.profile import NANOSECONDS, REGION_STAGES, STATES, Profile, device_changes, window
from chorus.cluster.telemetry.timeline import FOLDER
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Time bins in the plot of states; and the limits of the plot of actors: threads and stages.
_BINS, _MOST_LANES, _MOST_DRAWN = 300, 24, 3_000
# Safe for colour-blind readers: after Okabe and Ito.
_COLORS = {
    "busy": "#009e73", "hand": "#56b4e9", "read": "#e69f00", "write": "#cc79a7", "queue": "#d55e00", "start": "#999999",
    "end": "#cccccc",
    "look up": "#f0c36d", "prepare": "#f5d58a", "wait": "#56b4e9", "infer": "#009e73", "score": "#cc79a7",
    "prepare output": "#e3b5cf", "record": "#e8c9dc",
    "image scores": "#7a6bb3", "pyramid": "#0072b2", "thumbnail": "#5fa8d3", "image record": "#a7cbe5",
}  # fmt: skip


class TraceEvent(TypedDict, total=False):
    """An event of the Trace Event Format; `ts` and `dur` are microseconds."""

    ph: Required[Literal["M", "X"]]
    name: Required[str]
    cat: Literal["region", "image", "run"]
    pid: Required[int]
    tid: int
    ts: float
    dur: float
    args: Required[dict[str, int | str]]


class Trace(TypedDict):
    """A file of the Trace Event Format."""

    traceEvents: list[TraceEvent]
    displayTimeUnit: Literal["ms"]


def write_page(out: str, timeline: pd.DataFrame, profile: Profile) -> str:
    """Write the page and the trace of the run `out`; return the page's URL.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    folder = storage.join(storage.normalise(out), FOLDER)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chorus.cluster.telemetry", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    css = Markup((resources.files("chorus.pipeline.report") / "report.css").read_text())
    sessions = [
        {"states": Markup(draw_states(part)), "actors": Markup(picture), "shown": shown}
        for _, part in timeline.groupby("session", sort=False)
        if (part.region >= 0).any()
        for picture, shown in [draw_actors(part)]
    ]
    content = {"out": out, "css": css, "profile": profile, "sessions": sessions}
    page = environment.get_template("profile.html.j2").render(content)
    with storage_errors(folder):
        storage.write_bytes(storage.join(folder, "trace.json"), json.dumps(trace(timeline)).encode())
        storage.write_bytes(storage.join(folder, "index.html"), page.encode())
    return storage.join(folder, "index.html")


def trace(timeline: pd.DataFrame) -> Trace:
    """Return all stages as complete events ("ph": "X") of the Trace Event Format, in microseconds since the first one.

    References
    ----------
    Trace Event Format, Google, 2016: "Complete Events" and "Metadata Events".
    """
    first = int(timeline.begin.min())
    processes = {name: index for index, name in enumerate(timeline.actor.unique(), start=1)}
    events: list[TraceEvent] = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for name, pid in processes.items()
    ]
    threads: dict[tuple[str, int], int] = {}
    rows: Any = timeline.itertuples(index=False)
    for row in rows:
        thread = threads.setdefault((row.actor, row.thread), len(threads) + 1)
        about: dict[str, int | str] = {
            key: int(value) for key, value in (("region", row.region), ("image", row.image)) if value >= 0
        }
        events.append(
            {
                "ph": "X",
                "name": row.stage,
                "cat": "region" if row.region >= 0 else "image" if row.image >= 0 else "run",
                "pid": processes[row.actor],
                "tid": thread,
                "ts": (row.begin - first) / 1e3,
                "dur": (row.end - row.begin) / 1e3,
                "args": about,
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def binned_states(part: pd.DataFrame, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bin the states of a session's devices over time.

    Parameters
    ----------
    part : stages of one session
    bins : number of bins

    Returns
    -------
    edges : (bins + 1,) float64, seconds since the stream began
    devices : (states, bins) float64, mean number of devices in each of `STATES` within each bin
    """
    begin, end = window(part)
    edges = np.linspace(0, end - begin, bins + 1)
    devices = np.zeros((len(STATES), bins))
    for _, own in part[part.region >= 0].groupby("actor"):
        times, chosen = device_changes(own, begin, end)
        for state in range(len(STATES)):
            spent = np.concatenate([[0], np.cumsum(np.diff(times) * (chosen == state))])
            devices[state] += np.diff(np.interp(edges, times - begin, spent)) / np.diff(edges)
    return edges / NANOSECONDS, devices


def draw_states(part: pd.DataFrame) -> str:
    """Draw the number of devices in each state over the time of a session's stream, as inline SVG."""
    edges, devices = binned_states(part, _BINS)

    def draw(axes: Axes) -> None:
        middle = (edges[:-1] + edges[1:]) / 2
        axes.stackplot(middle, devices, colors=[_COLORS[state] for state in STATES], labels=STATES, linewidth=0)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, max(1.0, devices.sum(axis=0).max())), ylabel="devices")

    return _svg(draw, 2.9)


def draw_actors(part: pd.DataFrame) -> tuple[str, str]:
    """Draw the stages of regions and images, one line per thread of an actor.

    Returns
    -------
    The inline SVG, and a sentence part that says how many threads and stages it shows.
    """
    begin, _ = window(part)
    work = part[(part.region >= 0) | (part.image >= 0)]
    lanes = list(dict.fromkeys(zip(work.actor, work.thread, strict=True)))
    lanes.sort(key=lambda lane: lane[0])
    some = lanes[:_MOST_LANES]
    kept = work[pd.MultiIndex.from_frame(work[["actor", "thread"]]).isin(some)]
    drawn = kept.head(_MOST_DRAWN)
    shown = f"{len(some)} of {len(lanes)} threads, the first {len(drawn)} of {len(kept)} stages"

    def draw(axes: Axes) -> None:
        lane_index = {lane: index for index, lane in enumerate(some)}
        height = [lane_index[lane] for lane in zip(drawn.actor, drawn.thread, strict=True)]
        left, width = (drawn.begin - begin) / NANOSECONDS, (drawn.end - drawn.begin) / NANOSECONDS
        for stage in drawn.stage.unique():
            selected = (drawn.stage == stage).to_numpy()
            rows = np.asarray(height)[selected]
            axes.barh(
                rows, width[selected], left=left[selected], height=0.8, color=_color(stage), label=stage, linewidth=0
            )
        axes.set_yticks(range(len(some)), [actor if thread == own else "" for actor, thread, own in _named(some)])
        axes.invert_yaxis()

    return _svg(draw, max(2.9, 0.8 + 0.22 * len(some))), shown


def _named(lanes: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Add to each lane the first thread of its actor."""
    first: dict[str, int] = {}
    return [(actor, thread, first.setdefault(actor, thread)) for actor, thread in lanes]


def _color(stage: str) -> str:
    return _COLORS.get(stage, "#444444")


def _svg(draw: Any, height: float) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "chorus", "font.size": 8}):
        figure = Figure(figsize=(11, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel("seconds of the stream")
        axes.spines[["top", "right"]].set_visible(False)
        order = [*REGION_STAGES, *STATES]
        handles, labels = axes.get_legend_handles_labels()
        ranks = [order.index(label) if label in order else len(order) for label in labels]
        chosen = np.argsort(ranks, kind="stable")
        axes.legend(
            [handles[i] for i in chosen], [labels[i] for i in chosen], loc="upper left", bbox_to_anchor=(1, 1),
            frameon=False,
        )  # fmt: skip
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
