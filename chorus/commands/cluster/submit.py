"""Parses a command line for a cluster here, where a mistake costs a second, and allows only paths that it can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chorus.cluster.runtime.job_command import SubmittedCommand
from chorus.console.lazy import resolved
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage

if TYPE_CHECKING:
    import typer

# Parameters of commands that hold paths; outputs first.
OUTPUTS = ("out", "results", "outs")
PLACES = (
    *OUTPUTS,
    "sources",
    "ensemble",
    "images",
    "labels",
    "test",
    "test_labels",
    "start",
    "experts",
    "truth",
    "tune",
    "flows_from",
    "calibration",
    "cluster",
)
# Those that may also be names: of built-in ensembles, or of label images in an OME-Zarr.
_ENSEMBLES, _LABELS = ("ensemble", "start", "flows_from"), ("labels", "test_labels")


def read_command(context: typer.Context, words: Sequence[str], *, shared: bool) -> SubmittedCommand:
    """Parse `words` as a command; raise RefusedError, or what the command line raises, where it cannot run as a job.

    Parameters
    ----------
    context : of ``chorus submit``, which knows all commands
    shared : whether paths on this machine are the same on every node
    """
    command: Any = context.find_root().command
    names = 0
    while hasattr(command := resolved(command), "commands"):
        name = words[names] if names < len(words) else ""
        if name not in command.commands:
            known = ", ".join(command.commands)
            raise RefusedError(f"{' '.join(words[: names + 1])}: no command of Chorus; choose out of {known}")
        command, names = command.commands[name], names + 1
    called = " ".join(words[:names])
    options = {param.name: next((o for o in param.opts if o.startswith("--")), "") for param in command.params}
    if "executor" not in options:
        raise RefusedError(f"chorus {called}: needs no cluster; run it on this machine")
    with command.make_context(called, list(words[names:]), parent=context.parent) as parsed:
        given: Mapping[str, Any] = parsed.params
    if given["address"] is not None:
        raise RefusedError(
            f"--address {given['address']}: goes before the command, `chorus submit --address URL {called} ...`; the "
            f"command itself joins the cluster that it runs on"
        )
    folder = _check_places(given, options, shared=shared)
    out = next((_values(given[name])[0] for name in OUTPUTS if given.get(name)), "")
    ensemble = given.get("ensemble") or given.get("start") or ""
    told = ensemble if _is_name("ensemble", ensemble) else storage.normalise(ensemble)
    return SubmittedCommand(tuple(words), names, storage.normalise(out), told, folder)


def _check_places(given: Mapping[str, Any], options: Mapping[str, str], *, shared: bool) -> str | None:
    """Raise RefusedError for paths that the cluster cannot see; return the base of relative paths, None for no base."""
    relative = False
    for name in PLACES:
        for value in _values(given.get(name)):
            if storage.scheme(value) == "memory":
                raise RefusedError(f"{value}: is in the memory of one process; give a gs://, s3:// or az:// URL")
            if storage.scheme(value) != "file" or _is_name(name, value):
                continue
            if not shared:
                raise RefusedError(
                    f"{options[name]} {value}: is on this machine, where the cluster does not see it; give a gs:// or "
                    f"s3:// URL, or --shared before the command if all nodes mount it at the same place".lstrip()
                )
            relative |= not Path(value.removeprefix("file://")).is_absolute()
    return str(Path.cwd()) if relative else None


def _values(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _is_name(parameter: str, value: str) -> bool:
    """Return whether `value` is a name, not a path: no slash or suffix, and no such file or folder here."""
    if not value:
        return True
    if parameter not in _ENSEMBLES + _LABELS or "/" in value or Path(value).suffix or Path(value).exists():
        return False
    if parameter in _ENSEMBLES:
        named_ensemble(value)  # it is the same there, where Chorus is of the same version
    return True
