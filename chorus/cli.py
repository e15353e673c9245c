"""The command line: the tree of commands, each imported when it is called."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from chorus.console.lazy import MARKUP, CommandEntry, commands_of
from chorus.pipeline.errors import ChorusError, CutShortError

_EVERYDAY, _TRUST = "chorus.commands.everyday", "chorus.commands.trust"
_ENSEMBLES, _CLUSTER = "chorus.commands.ensembles", "chorus.commands.cluster"

COMMANDS: dict[str | None, tuple[CommandEntry, ...]] = {
    "Everyday": (
        CommandEntry("convert", f"{_EVERYDAY}.convert:convert", "Make OME-Zarr of files in other formats."),
        CommandEntry("predict", f"{_EVERYDAY}.predict:predict", "Segment images with an ensemble."),
        CommandEntry("plan", f"{_EVERYDAY}.plan:plan", "Print what predict would do and cost."),
        CommandEntry("rank", f"{_EVERYDAY}.rank:rank", "List images, the most uncertain first."),
        CommandEntry("objects", f"{_EVERYDAY}.objects:objects", "Make objects anew, or by another method."),
        CommandEntry("review", f"{_EVERYDAY}.review:review", "Look at results in the browser and decide."),
        CommandEntry("report", f"{_EVERYDAY}.report:report", "Write the report of results anew."),
        CommandEntry(
            "export",
            "",
            "Write results for ImageJ, QuPath, as tables, to correct.",
            (
                CommandEntry("rois", f"{_EVERYDAY}.export:rois", "Objects as sets of ImageJ ROIs."),
                CommandEntry("geojson", f"{_EVERYDAY}.export:geojson", "Objects as GeoJSON for QuPath."),
                CommandEntry("tables", f"{_EVERYDAY}.export:tables", "All that is known of images and objects."),
                CommandEntry("annotation", f"{_EVERYDAY}.export:annotation", "The worst images with draft labels."),
            ),
        ),
    ),
    "How far to trust results": (
        CommandEntry("evaluate", f"{_TRUST}.evaluate:evaluate", "Measure results against annotations."),
        CommandEntry("compare", f"{_TRUST}.evaluate:compare", "Say whether one of several ensembles is better."),
        CommandEntry("calibrate", f"{_TRUST}.calibrate:calibrate", "Measure an ensemble on images with a truth."),
        CommandEntry("flag", f"{_TRUST}.flag:flag", "Flag images that are not to be trusted."),
        CommandEntry("stress", f"{_TRUST}.stress:stress", "Try an ensemble on images that are spoilt."),
        CommandEntry("shift", f"{_TRUST}.shift:shift", "Compare a run with the reference images."),
        CommandEntry("truth", f"{_TRUST}.truth:truth", "Make one truth of several experts' drawings."),
    ),
    "Ensembles": (
        CommandEntry("train", f"{_ENSEMBLES}.train:train", "Train an ensemble on labelled images."),
        CommandEntry(
            "ensemble",
            "",
            "Look at ensembles, check, make and edit them.",
            (
                CommandEntry("list", f"{_ENSEMBLES}.builtin:list_builtin", "The ensembles that Chorus brings."),
                CommandEntry("show", f"{_ENSEMBLES}.ensemble:show", "What an ensemble says of itself."),
                CommandEntry("check", f"{_ENSEMBLES}.ensemble:check", "Load and try every member."),
                CommandEntry("add", f"{_ENSEMBLES}.ensemble:add", "Make an ensemble, or add members."),
                CommandEntry("remove", f"{_ENSEMBLES}.ensemble:remove", "Take members out."),
                CommandEntry("pack", f"{_ENSEMBLES}.models:pack", "Write members as BioImage.IO packages."),
                CommandEntry("sentinel", f"{_TRUST}.sentinels:sentinel", "Add an image on which runs are tried."),
                CommandEntry("effort", f"{_TRUST}.effort:effort", "Measure what adaptive effort may leave out."),
                CommandEntry("schema", f"{_ENSEMBLES}.ensemble:schema", "The JSON schema of ensemble.yaml."),
            ),
        ),
        CommandEntry(
            "models",
            "",
            "Test packages of trained networks.",
            (CommandEntry("test", f"{_ENSEMBLES}.models:run_test", "Run a package's own test tensors."),),
        ),
        CommandEntry(
            "bench",
            "",
            "Measure which backend is fastest here.",
            (CommandEntry("engine", f"{_ENSEMBLES}.bench:engine", "Try each backend with an ensemble."),),
        ),
    ),
    "Clusters and servers": (
        CommandEntry("submit", f"{_CLUSTER}.jobs:submit", "Run a command on a Ray cluster.", options_first=True),
        CommandEntry(
            "jobs",
            "",
            "Look at submitted jobs, stop and resume them.",
            (
                CommandEntry("list", f"{_CLUSTER}.jobs:list_jobs", "The cluster's jobs, the latest first."),
                CommandEntry("status", f"{_CLUSTER}.jobs:status", "How a job is and how far it has come."),
                CommandEntry("logs", f"{_CLUSTER}.jobs:logs", "What a job has said."),
                CommandEntry("stop", f"{_CLUSTER}.jobs:stop", "Stop a job; what is recorded stays."),
                CommandEntry("resume", f"{_CLUSTER}.jobs:resume", "Resume a job that was cut short."),
            ),
        ),
        CommandEntry("profile", f"{_CLUSTER}.profile:profile", "Show where the time of a run went."),
        CommandEntry("unlock", f"{_CLUSTER}.unlock:unlock", "Free an output whose run was killed."),
        CommandEntry("serve", f"{_CLUSTER}.serve:app", "Answer images one by one over HTTP."),
    ),
}  # fmt: skip


class _Tree(TyperGroup):
    """The group of all commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update(commands_of(COMMANDS))


app = typer.Typer(
    cls=_Tree,
    invoke_without_command=True,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        import chorus

        print(f"chorus {chorus.__version__}")
        raise typer.Exit


@app.callback()
def chorus(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Segment microscopy images with an ensemble of networks, and say how far to trust the result.

    **Example**

    `chorus predict images/ --ensemble nuclei-fluo --out results/`

    `chorus rank results/`
    """


def main() -> None:
    """Run the command line: a `ChorusError` becomes one sentence and an exit code, anything else is a bug."""
    from chorus.cluster.runtime.signals import resumable
    from chorus.cluster.runtime.versions import require_submitter
    from chorus.cluster.telemetry.logs import structured

    # Of what torch and torchvision call inside; whoever runs a network can do nothing about it.
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    with _errors_as_sentences(), structured(), _errors_as_sentences(), resumable():
        require_submitter()
        app()


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    """Print a `ChorusError` raised inside as a sentence, and end the process with its exit code."""
    try:
        yield
    except CutShortError as error:
        _say(error)
        sys.exit(3)
    except ChorusError as error:
        _say(error)
        sys.exit(2)


def _say(error: Exception) -> None:
    from rich.console import Console

    from chorus.cluster.telemetry.logs import is_structured, log

    if is_structured():
        log.error("%s", error)
        return
    console = Console(stderr=True)
    console.print(f"chorus: {error}", style="bold red", highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
