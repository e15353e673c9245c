"""The record of a command other than ``chorus predict``, from which the same call resumes an interrupted one.

::

    command                  record               records of finished items
    convert, truth, train    OUT/run.json         OUT/ledger (of train: OUT/folds)
    objects                  OUT/objects.json     OUT/work/objects
    evaluate                 OUT/evaluation.json  OUT/work/evaluation
    export                   TO/export.json       TO/ledger

Convert, truth and train have an output of their own (`resumable`): if it holds other results they are refused, unless
these may be overwritten; ``OUT/plan/files.json`` names all results that this call and earlier ones may leave. Objects
and evaluation are made inside the output of a run, exports in any folder (`begin_inside`): other results of the same
command are replaced.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, Literal, TypeGuard, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from chorus.cluster.runtime.output_lock import output_lock
from chorus.cluster.state.outcome import State
from chorus.cluster.state.output import RESTORE, clear_output, earlier_run, read_run, setting_differences, surroundings
from chorus.pipeline.core.run_document import Machine, RunDocument, SavedSettings
from chorus.pipeline.errors import DamagedError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import fault, parsed
from chorus.pipeline.io.storage import remove_folder
from chorus.pipeline.io.storage_failures import storage_errors

log = logging.getLogger("chorus")

PLAN = ("plan", "files.json")
_NAMES: TypeAdapter[list[str]] = TypeAdapter(list[str])
_SHOWN = 5
Stale = Callable[[Mapping[str, JsonValue]], Iterable[str]]


def now() -> str:
    """Return the time as it is recorded."""
    return datetime.now(UTC).isoformat()


class CommandRecord(BaseModel):
    """What every command records of itself; each adds its own.

    Attributes
    ----------
    command : as typed, ``convert``; a default of the command's model
    started : when the first call began
    outcome : ``running`` also if the command was interrupted
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    command: str
    started: str = Field(default_factory=now)
    finished: str | None = None
    outcome: Literal["running", "complete", "failures"] = "running"


class RecordWithSurroundings(CommandRecord):
    """A `CommandRecord` with the fields of `chorus.pipeline.core.run_document.Surroundings` among its own."""

    chorus: str | None = Field(default_factory=lambda: surroundings().chorus)
    versions: dict[str, str] = Field(default_factory=lambda: surroundings().versions)
    machine: Machine = Field(default_factory=lambda: surroundings().machine)


class Execution(BaseModel):
    """How a command is carried out; it changes no result."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    executor: str
    address: str | None = None


Record = TypeVar("Record", bound=CommandRecord)


@dataclass(frozen=True)
class Command(Generic[Record]):
    """A call of a command.

    Attributes
    ----------
    out : URL of the folder that holds the record
    record : as it is written when the command begins
    file : name of the record in `out`
    defining : fields of the record on which the results depend
    of_sources : word for the sources in messages
    """

    out: str
    record: Record
    file: str = "run.json"
    defining: tuple[str, ...] = ("settings", "sources")
    of_sources: str = "sources"

    @property
    def name(self) -> str:
        """As typed."""
        return self.record.command

    def held(self) -> AbstractContextManager[None]:
        """Return the lock of its folder."""
        return output_lock(self.out, uuid.uuid4().hex[:12])

    def differing(self, known: Record) -> list[str]:
        """Return the defining fields in which an earlier record differs."""
        ours, theirs = (one.model_dump(mode="json", include=set(self.defining)) for one in (self.record, known))
        return [name for name in self.defining if ours[name] != theirs[name]]

    def resumes(self, known: Record | None, outcomes: Collection[str] = ("running",)) -> TypeGuard[Record]:
        """Return whether an earlier call of such an outcome defined the same results."""
        return known is not None and known.outcome in outcomes and not self.differing(known)


@dataclass
class Running(Generic[Record]):
    """A command while it holds its output.

    Attributes
    ----------
    record : as it is stored; `close` completes it
    resumed : whether an earlier call is resumed, so that what that one finished is kept
    """

    command: Command[Record]
    record: Record
    resumed: bool

    @property
    def seconds(self) -> float:
        """Seconds since the first call began."""
        began = datetime.fromisoformat(self.record.started)
        return round((datetime.now(UTC) - began).total_seconds(), 1)

    def close(self, state: State, **more: object) -> None:
        """Write how the command ended; the record of an interrupted command stays as it is, so that it is resumed.

        Parameters
        ----------
        more : further fields of the record, of their types
        """
        if state != "interrupted":
            ended = {"finished": now(), "outcome": state}
            self.record = self.record.model_copy(update=ended | more)
            _write(self.command, self.record)


def read_record(out: str, file: str, kind: type[Record]) -> Record | None:
    """Return the record `file` of a command in `out`; None if there is none.

    Raises
    ------
    DamagedError
        If it is cut, or of another version of Chorus.
    """
    url = storage.join(out, file)
    with storage_errors(url):
        if not storage.exists(url):
            return None
        data = storage.read_bytes(url)
    return parsed(data, kind, url, f"run `chorus {kind.model_fields['command'].default}` again")


def earlier_record(command: Command[Record]) -> Record | None:
    """Return the record of an earlier call, whatever it was about; None if there is none that can be read."""
    try:
        return read_record(command.out, command.file, type(command.record))
    except DamagedError as error:
        log.warning("%s: begins anew, since the record of the earlier call cannot be read (%s)", command.out, error)
        return None


def begin_inside(
    command: Command[Record],
    known: Record | None,
    made: Callable[[], Sequence[str]],
    resumes: Collection[str] = ("running",),
) -> Running[Record]:
    """Begin a command in a folder that it shares with others, or resume it; the caller holds `Command.held`.

    An earlier call of the same definition is resumed; the results of any other are removed first.

    Parameters
    ----------
    known : the record of an earlier call, see `earlier_record`
    made : returns names below the folder of results and of records of finished items
    resumes : outcomes of an earlier call that is resumed
    """
    record, resumed = command.record, False
    if command.resumes(known, resumes):
        record, resumed = record.model_copy(update={"started": known.started}), True
    else:
        with storage_errors(command.out):
            # The record goes first: what it describes is never incomplete.
            for name in (command.file, *made()):
                remove_folder(storage.join(command.out, name))
    _write(command, record)
    return Running(command, record, resumed)


@contextmanager
def resumable(
    command: Command[Record],
    *,
    overwrite: bool,
    stale: Stale = lambda known: (),
    made: Callable[[], Sequence[str]] = tuple,
    owns_output: bool = False,
) -> Iterator[Running[Record]]:
    """Hold the output of a command inside the context: new, resumed, or cleared if `overwrite` is set.

    Parameters
    ----------
    stale : takes the earlier record and returns messages on results that are wrong now for other reasons than settings
        and sources
    made : returns names below the output that are made from all items; removed after the ledger and the planned files
    owns_output : refuse to replace results of other commands, also with `overwrite`

    Raises
    ------
    RefusedError
        Before any work: the output holds other results, or another run holds it.
    """
    with command.held():
        known = earlier_run(
            command.out,
            RunDocument,
            lambda known: _differences(command, known.content, stale),
            overwrite=overwrite,
            mend=RESTORE,
        )
        record = command.record
        if known is None:
            _clear(command, made, owns_output=owns_output)
        else:
            record = record.model_copy(update={"started": known.started or record.started})
        # The record first: it marks an output with anything in it as ours, however early the command ends.
        _write(command, record)
        yield Running(command, record, known is not None)


def planned_files(out: str) -> list[str]:
    """Return the names of all results that calls so far may have left in `out`."""
    url = storage.join(out, *PLAN)
    with storage_errors(url):
        data = storage.read_bytes(url) if storage.exists(url) else b"[]"
    try:
        return _NAMES.validate_json(data)
    except ValidationError as error:
        raise DamagedError(
            f"{url}: is damaged ({fault(data, error)}), and says which files of {out} are results; restore it, or "
            f"choose another --out"
        ) from error


def plan_files(out: str, names: Iterable[str]) -> None:
    """Add names to `planned_files`, before any of these results is made."""
    url = storage.join(out, *PLAN)
    known = planned_files(out)
    with storage_errors(url):
        storage.write_record(url, json.dumps(sorted({*known, *names}), indent=2).encode())


def _write(command: Command[Record], record: Record) -> None:
    url = storage.join(command.out, command.file)
    with storage_errors(url):
        storage.write_record(url, json.dumps(record.model_dump(mode="json"), indent=2).encode())


def _differences(command: Command[Record], known: Mapping[str, JsonValue], stale: Stale) -> list[str]:
    """Describe what makes the results of an earlier call wrong; items may be added, corrected or removed."""
    if known.get("command") != command.name:
        return [f"it is not of `chorus {command.name}`"]
    content = command.record.model_dump(mode="json")
    settings = (content["settings"], known.get("settings", {}))
    differences = setting_differences(*map(SavedSettings.model_validate, settings))
    if known.get("sources") != content["sources"]:
        earlier = known.get("sources")
        words = " ".join(map(str, earlier)) if isinstance(earlier, list) else "others"
        differences.append(f"{command.of_sources} were {words}, now {' '.join(content['sources'])}")
    differences += stale(known)
    return differences[:_SHOWN] + [f"and {len(differences) - _SHOWN} more"] * (len(differences) > _SHOWN)


def _clear(command: Command[Record], made: Callable[[], Sequence[str]], *, owns_output: bool) -> None:
    """Remove what an earlier call made and nothing else; ``run.json``, which marks an output as ours, goes last."""
    out = command.out
    with storage_errors(out):
        if not storage.exists(storage.join(out, command.file)):
            return
        if read_run(out, RunDocument, RESTORE).command != command.name:
            if owns_output:
                raise RefusedError(f"{out}: holds results of another command; choose another --out")
            clear_output(out)
            return
        # The ledger goes first: what it names must exist, even if removal is interrupted.
        for name in ("ledger", *planned_files(out), *made(), PLAN[0], command.file):
            remove_folder(storage.join(out, name))
