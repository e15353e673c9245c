"""The record of a command other than ``chorus predict``, from which the same call resumes an earlier one.

::

    OUT/run.json             settings and outcome (`CommandRecord`)
    OUT/plan/files.json      names of all results that this call and earlier ones may leave
    OUT/ledger/<name>.json   one per finished item, written after its results

Convert, truth and train write one to an output of their own. Each defines what its items are, when an earlier result
is stale, and which files it makes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import BaseModel, JsonValue

from chorus.cluster.runtime.output_lock import output_lock
from chorus.cluster.state.run_record import (
    clear_output,
    earlier_run,
    read_run,
    setting_differences,
    surroundings,
    write_run,
)
from chorus.pipeline.core.run_document import RunDocument, SavedSettings
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder, storage_errors

PLAN = ("plan", "files.json")
_SHOWN = 5
Stale = Callable[[Mapping[str, JsonValue]], Iterable[str]]


@dataclass(frozen=True)
class Command:
    """A call of a command.

    Attributes
    ----------
    name : as typed, ``convert``
    out : URL of its output
    settings : that define the results
    run : how it is executed; changes no result
    sources : as typed
    inputs : what was found in the sources
    also : further entries of its record
    of_sources : word for the sources in messages
    """

    name: str
    out: str
    settings: BaseModel
    run: Mapping[str, JsonValue]
    sources: Sequence[str]
    inputs: Mapping[str, JsonValue]
    also: Mapping[str, JsonValue] = field(default_factory=dict)
    of_sources: str = "sources"


@dataclass
class CommandRecord:
    """``run.json`` of a command while it runs; `close` completes it.

    Attributes
    ----------
    content : as it is written
    """

    command: Command
    content: dict[str, JsonValue]

    @property
    def seconds(self) -> float:
        """Seconds since the first call began."""
        began = datetime.fromisoformat(str(self.content["started"]))
        return round((datetime.now(UTC) - began).total_seconds(), 1)

    def close(self, state: str, summary: Mapping[str, JsonValue], **more: JsonValue) -> None:
        """Write how the command ended; the record of an interrupted command stays as it is, so that it is resumed."""
        self.content |= {"finished": datetime.now(UTC).isoformat(), "outcome": state, **more}
        self.content["summary"] = dict(summary)
        if state != "interrupted":
            write_run(self.content, self.command.out)


@contextmanager
def resumable(
    command: Command,
    *,
    overwrite: bool,
    stale: Stale = lambda known: (),
    made: Callable[[], Sequence[str]] = tuple,
    owns_output: bool = False,
) -> Iterator[CommandRecord]:
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
    content: dict[str, JsonValue] = {
        "command": command.name,
        "started": datetime.now(UTC).isoformat(),
        "finished": None,
        "outcome": "running",
        "settings": command.settings.model_dump(mode="json"),
        "run": dict(command.run),
        "sources": list(command.sources),
        "inputs": dict(command.inputs),
    }
    content |= surroundings().model_dump(mode="json") | dict(command.also)
    record = CommandRecord(command, content)
    with output_lock(command.out, uuid.uuid4().hex[:12]):
        known = earlier_run(
            command.out, RunDocument, lambda known: _differences(record, known.content, stale), overwrite=overwrite
        )
        if known is None:
            _clear(command, made, owns_output=owns_output)
        else:
            content["started"] = known.started
        # The record first: it marks an output with anything in it as ours, however early the command ends.
        write_run(content, command.out)
        yield record


def planned_files(out: str) -> list[str]:
    """Return the names of all results that calls so far may have left in `out`."""
    url = storage.join(out, *PLAN)
    with storage_errors(url):
        names: list[str] = json.loads(storage.read_bytes(url)) if storage.exists(url) else []
    return names


def plan_files(out: str, names: Iterable[str]) -> None:
    """Add names to `planned_files`, before any of these results is made."""
    url = storage.join(out, *PLAN)
    with storage_errors(url):
        storage.write_bytes(url, json.dumps(sorted({*planned_files(out), *names}), indent=2).encode())


def _differences(record: CommandRecord, known: Mapping[str, JsonValue], stale: Stale) -> list[str]:
    """Describe what makes the results of an earlier call wrong; items may be added, corrected or removed."""
    command, content = record.command, record.content
    if known.get("command") != command.name:
        return [f"it is not of `chorus {command.name}`"]
    settings = (command.settings.model_dump(mode="json"), known.get("settings", {}))
    found = setting_differences(*map(SavedSettings.model_validate, settings))
    if known.get("sources") != content["sources"]:
        earlier = known.get("sources")
        words = " ".join(map(str, earlier)) if isinstance(earlier, list) else "others"
        found.append(f"{command.of_sources} were {words}, now {' '.join(command.sources)}")
    found += stale(known)
    return found[:_SHOWN] + [f"and {len(found) - _SHOWN} more"] * (len(found) > _SHOWN)


def _clear(command: Command, made: Callable[[], Sequence[str]], *, owns_output: bool) -> None:
    """Remove what an earlier call made and nothing else; ``run.json``, which marks an output as ours, goes last."""
    out = command.out
    with storage_errors(out):
        if not storage.exists(storage.join(out, "run.json")):
            return
        if read_run(out, RunDocument).command != command.name:
            if owns_output:
                raise RefusedError(f"{out}: holds results of another command; choose another --out")
            clear_output(out)
            return
        # The ledger goes first: what it names must exist, even if removal is interrupted.
        for name in ("ledger", *planned_files(out), *made(), PLAN[0]):
            remove_folder(storage.join(out, name))
        storage.remove_file(storage.join(out, "run.json"))
