"""The reviewers' decisions: an append-only log of small objects beside the results, safe with many writers.

::

    OUT/review/decisions/<day>/<time>-<random>.json

One object per decision, with a unique name that sorts by time: object stores cannot append, and two reviewers never
write the same object. Nothing is changed or removed: undoing is an entry that refers to another one. The current state
follows from all entries, in whatever order they are read: for each reviewer the last decision on an image that was not
undone, and for the image the decision of the reviewer who decided last.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors

Decision = Literal["accept", "reject", "correct-later"]
DECISIONS: tuple[Decision, ...] = ("accept", "reject", "correct-later")

_SUFFIX = ".json"
_STAMP = "%Y%m%dT%H%M%S.%fZ"
# Minimum of seconds between listings, however many pages are open.
_PAUSE = 1.0
# Clocks of reviewers differ, and a page may be open past midnight.
_LATE = timedelta(days=1)


class Entry(BaseModel):
    """One object of the log.

    Attributes
    ----------
    id : its time and random digits, unique; entries sort by it
    run : identity of its results (`ReviewedDocument.identity`): results that replace others are to be reviewed anew
    image : name
    decision : None in an entry that undoes
    undoes : id of the reviewer's own entry that is undone
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    run: str
    reviewer: str = Field(min_length=1, max_length=80)
    image: str
    decision: Decision | None = None
    note: str = Field(default="", max_length=2000)
    undoes: str | None = None

    @field_validator("id")
    @classmethod
    def _has_time(cls, value: str) -> str:
        datetime.strptime(value.partition("-")[0], _STAMP)
        return value

    @property
    def stamp(self) -> str:
        """The time part of `id`."""
        return self.id.partition("-")[0]

    @property
    def time(self) -> str:
        """ISO date and time, UTC."""
        return datetime.strptime(self.stamp, _STAMP).replace(tzinfo=UTC).isoformat()


class Verdict(BaseModel):
    """The current decision of one reviewer on an image."""

    model_config = ConfigDict(frozen=True)

    id: str
    reviewer: str
    decision: Decision
    note: str
    time: str


class State(BaseModel):
    """The current state of an image.

    Attributes
    ----------
    decision : of the reviewer who decided last; None if all was undone
    verdicts : of each reviewer, the latest first
    conflict : whether reviewers disagree
    """

    model_config = ConfigDict(frozen=True)

    decision: Decision | None
    verdicts: tuple[Verdict, ...]
    conflict: bool


class DecisionLog:
    """The log of a run; reads entries of others when `refresh` is called.

    Parameters
    ----------
    out : URL of the results
    run : identity of the run; entries of other runs, whose results were in the same place, are left out
    """

    def __init__(self, out: str, run: str) -> None:
        self.run = run
        self.url = storage.join(storage.normalise(out), "review", "decisions")
        self._damaged: set[str] = set()
        self._earlier: set[str] = set()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._looked = -math.inf
        self._last = ""
        self._entries: dict[str, Entry] = {}
        self._of: dict[str, list[Entry]] = defaultdict(list)
        self._states: dict[str, State] = {}
        self._seen: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Messages on entries that were left out."""
        with self._reading:
            damaged, earlier = sorted(self._damaged), len(self._earlier)
        notes = [
            f"review/decisions/.../{name}{_SUFFIX} is damaged and left out; mend it or remove it" for name in damaged
        ]
        return [*notes, f"{earlier} decisions on earlier results in this place are left out"] if earlier else notes

    @property
    def version(self) -> int:
        """Number of entries read so far; grows with each."""
        return len(self._seen)

    def states(self) -> dict[str, State]:
        """Return the states by image, of all images that were ever decided, including undone ones."""
        with self._lock:
            return dict(self._states)

    def state(self, image: str) -> State | None:
        """Return the state of an image; None if nobody has decided on it."""
        with self._lock:
            return self._states.get(image)

    def since(self, version: int) -> dict[str, State]:
        """Return the states of images whose entries were read after `version`; all if `version` is unknown."""
        with self._lock:
            start = version if 0 <= version <= len(self._seen) else 0
            return {image: self._states[image] for image in dict.fromkeys(self._seen[start:])}

    def refresh(self, *, now: bool = False) -> None:
        """Read new entries, at most once a second unless `now`; after the first call only those of the last days.

        Raises
        ------
        OutputError
            If they cannot be read.
        """
        with self._reading:
            if not now and time.monotonic() - self._looked < _PAUSE:
                return
            first = self._looked < 0
            with storage_errors(self.url):
                days = storage.entries(self.url)
                known = self._entries.keys() | self._damaged | self._earlier
                oldest = "" if first else (datetime.now(UTC) - _LATE).strftime("%Y-%m-%d")
                new = [
                    storage.join(self.url, day, name)
                    for day in days
                    if day >= oldest
                    for name in storage.entries(storage.join(self.url, day))
                    if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) not in known
                ]
                with ThreadPoolExecutor(16) as pool:
                    decisions = list(pool.map(self._read, new))
            self._looked = time.monotonic()
        self._add(entry for entry in decisions if entry is not None)

    def decide(self, reviewer: str, image: str, decision: Decision, note: str = "") -> Entry:
        """Write a decision; raise OutputError if it cannot be written."""
        return self._write(reviewer, image, decision, note, None)

    def undo(self, reviewer: str, entry_id: str) -> Entry:
        """Undo one's own decision: one's previous decision on the image is valid again.

        Raises
        ------
        RefusedError
            If it is of another reviewer, or unknown.
        OutputError
            If it cannot be written.
        """
        with self._lock:
            entry = self._entries.get(entry_id)
        if entry is None or entry.decision is None:
            raise RefusedError(f"decision {entry_id}: is not known here; reload the page to see what holds")
        if entry.reviewer != reviewer:
            raise RefusedError(
                f"decision {entry_id}: is {entry.reviewer}'s, and only {entry.reviewer} can undo it; decide otherwise"
            )
        return self._write(reviewer, entry.image, None, "", entry_id)

    def _write(self, reviewer: str, image: str, decision: Decision | None, note: str, undoes: str | None) -> Entry:
        with self._lock:
            # After all entries read so far, even if another clock is ahead: a later decision must sort last.
            stamp = max(datetime.now(UTC).strftime(_STAMP), _after(self._last))
            self._last = stamp
        content = {"reviewer": reviewer, "image": image, "decision": decision, "note": note, "undoes": undoes}
        entry = Entry.model_validate(content | {"id": f"{stamp}-{os.urandom(4).hex()}", "run": self.run})
        day = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}"
        url = storage.join(self.url, day, entry.id + _SUFFIX)
        with storage_errors(url):
            storage.write_record(url, entry.model_dump_json(indent=1, exclude_none=True).encode())
        self._add([entry])
        return entry

    def _read(self, url: str) -> Entry | None:
        name = storage.basename(url)
        try:
            entry = Entry.model_validate_json(storage.read_bytes(url))
        except ValidationError:
            entry = None
        if entry is None or entry.id != name.removesuffix(_SUFFIX):
            self._damaged.add(name.removesuffix(_SUFFIX))
            return None
        if entry.run != self.run:
            self._earlier.add(entry.id)
            return None
        return entry

    def _add(self, entries: Iterable[Entry]) -> None:
        with self._lock:
            changed: dict[str, None] = {}
            for entry in entries:
                if entry.id in self._entries:
                    continue
                self._entries[entry.id] = entry
                self._of[entry.image].append(entry)
                self._last = max(self._last, entry.stamp)
                changed[entry.image] = None
                self._seen.append(entry.image)
            for image in changed:
                self._states[image] = state_of(self._of[image])


def state_of(entries: Iterable[Entry]) -> State:
    """Return the state that follows from the entries of one image, in any order."""
    ordered = sorted(entries, key=lambda entry: entry.id)
    undone = {(entry.reviewer, entry.undoes) for entry in ordered if entry.undoes}
    current: dict[str, Entry] = {}
    for entry in ordered:
        if entry.decision is not None and (entry.reviewer, entry.id) not in undone:
            current[entry.reviewer] = entry
    latest = sorted(current.values(), key=lambda entry: entry.id, reverse=True)
    verdicts = tuple(
        Verdict(id=entry.id, reviewer=entry.reviewer, decision=entry.decision, note=entry.note, time=entry.time)
        for entry in latest
        if entry.decision is not None
    )
    opinions = {verdict.decision for verdict in verdicts}
    return State(decision=verdicts[0].decision if verdicts else None, verdicts=verdicts, conflict=len(opinions) > 1)


def _after(stamp: str) -> str:
    """Return the stamp a microsecond later; empty for an empty one."""
    if not stamp:
        return ""
    return (datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC) + timedelta(microseconds=1)).strftime(_STAMP)
