"""The output of a command: its ``run.json``, whether a further call resumes it, and what may be removed from it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import TypeVar

import psutil

from chorus.pipeline.core.run_document import Machine, RunDocument, SavedSettings, Surroundings
from chorus.pipeline.errors import DamagedError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import failure_sentence, storage_errors
from chorus.pipeline.members.registry import plug_in_versions

RUN = "run.json"
MAKE_AGAIN, RESTORE = (
    "run the command that made it again, with --overwrite",
    "restore it, or choose another --out",
)
Kind = TypeVar("Kind", bound=RunDocument)
# Results of a run below its output; --overwrite removes these and nothing else.
# The ledger goes first: what it names must exist, even if removal is interrupted.
ENTRIES = (
    "ledger",
    "images",
    "attempts",
    "plan",
    "report",
    "scores.parquet",
    "features.parquet",
    "evaluation.parquet",
    "evaluation.json",
    "reliability.svg",
    "flags.parquet",
    "shift.json",
    "sentinels",
    "sentinels.json",
    "work",
    "objects.parquet",
    "objects.json",
    "profile",
    RUN,
)
_LIBRARIES = ("chorus-bioimage", "torch", "ray", "zarr", "numpy", "segmentation-models-pytorch")


@cache
def surroundings() -> Surroundings:
    """Return the versions and the machine of this process."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return Surroundings(
        chorus=version("chorus-bioimage"),
        versions={"python": platform.python_version()} | libraries | plug_in_versions(),
        machine=Machine(system=platform.platform(), cores=psutil.cpu_count()),
    )


def read_run(out: str, kind: type[Kind], mend: str = MAKE_AGAIN) -> Kind:
    """Return ``run.json`` of an output.

    Parameters
    ----------
    kind : what is needed of it: `RunDocument` of any command, `PredictDocument` of `chorus predict`
    mend : what to do where it is damaged, for the sentence

    Raises
    ------
    DamagedError
        If it is cut, or does not hold what it should.
    RefusedError
        If there is none.
    """
    url = storage.join(storage.normalise(out), RUN)
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"{out}: no results of Chorus ({failure_sentence(error, url)})") from error
    return parsed(data, kind, url, mend)


def earlier_run(
    out: str, kind: type[Kind], differences: Callable[[Kind], list[str]], *, overwrite: bool, mend: str = MAKE_AGAIN
) -> Kind | None:
    """Return ``run.json`` of the run to resume in `out`; None if `out` is new or to be cleared.

    Parameters
    ----------
    kind, mend : see `read_run`
    differences : takes an earlier ``run.json`` and describes what defines its results and differs now

    Raises
    ------
    RefusedError
        If it holds other results; the message says what differs, and the two ways out.
    """
    with storage_errors(out):
        present = set(storage.entries(out)) - {"run.lock"}
    if RUN in present:
        try:
            known = read_run(out, kind, RESTORE if overwrite else mend)
        except DamagedError:
            # It does not say whose the output is: only its names do.
            if overwrite and present.issubset(ENTRIES):
                return None
            raise
        changes = differences(known)
        if not changes:
            return known
        if not overwrite:
            raise RefusedError(
                f"{out}: holds results of another run ({'; '.join(changes)}); use --overwrite to replace them, or "
                f"another --out"
            )
    elif present:  # --overwrite never removes files of others
        raise RefusedError(f"{out}: is not empty and holds no run of Chorus; choose another --out")
    return None


def clear_output(out: str) -> None:
    """Remove what an earlier run made in `out`, and nothing else."""
    with storage_errors(out):
        present = storage.entries(out)
        for entry in ENTRIES:
            if entry in present:
                remove_folder(storage.join(out, entry))
        storage.remove_partial_files(out)


def setting_differences(settings: SavedSettings, earlier: SavedSettings) -> list[str]:
    """Describe the settings that differ from those of an earlier ``run.json``."""
    known = earlier.content
    return [f"{k} was {known.get(k)}, now {value}" for k, value in settings.content.items() if known.get(k) != value]
