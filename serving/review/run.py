"""The tables of a run in memory, reloaded when their files change."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from chorus.pipeline.core.run_document import PredictDocument, SavedEnsemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ClassInfo
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.report.documents import classes_of, read_run
from chorus.pipeline.report.rows import read_images
from chorus.serving.contract.problems import said
from chorus.serving.review.cache import Cache
from chorus.serving.review.decisions import DecisionLog
from chorus.serving.review.gallery import Gallery

# Minimum of seconds between two checks whether files changed.
_PAUSE = 5.0
_TABLES = ("run.json", "scores.parquet", "flags.parquet", "evaluation.parquet", "objects.parquet")

Found = TypeVar("Found")


class ReviewedDocument:
    """What the review needs of ``run.json``.

    Attributes
    ----------
    run : the document; its ensemble is known
    """

    def __init__(self, run: PredictDocument, ensemble: SavedEnsemble) -> None:
        self.run, self.ensemble = run, ensemble

    @property
    def identity(self) -> str:
        """Identity of the results: changes with the ensemble and with a new run, not when a run is resumed."""
        made = f"{self.ensemble.hash or ''} {self.run.started}"
        return hashlib.sha256(made.encode()).hexdigest()[:12]

    @property
    def samples(self) -> int:
        """Maximum of samples per pixel, members times augmentations; 1 if the run does not state it."""
        return max(1, (self.ensemble.members or 1) * len(self.run.settings.augmentations))

    @property
    def classes(self) -> list[ClassInfo]:
        """Classes, background first; an invalid colour is replaced."""
        return classes_of(self.run)


class Snapshot:
    """A run at one time: its document, its images in order, and notes on what was left out."""

    def __init__(self, out: str, version: str) -> None:
        self.out, self.version = out, version
        self.notes: list[str] = []
        self.document = _read_document(out)
        self.classes = self.document.classes
        images = read_images(out, self.notes)
        if (judging := self.document.run.judging) and images.judged == (self.document.run.reference is not None):
            self.notes.append(judging)
        self.gallery = Gallery(images, [info.name for info in self.classes[1:]])
        self._made: Cache[Any] = Cache(1000)

    @cached_property
    def has_objects(self) -> bool:
        """Whether `chorus objects` has made any."""
        with storage_errors(self.out):
            return storage.exists(storage.join(self.out, "objects.parquet"))

    def once(self, key: str, make: Callable[[], Found]) -> Found:
        """Return the result of `make`, computed at the first call and kept with the snapshot."""
        made: Found = self._made.get(key, make)
        return made


class ReviewedRun:
    """The newest snapshot of the run at `out`, and the log of decisions on it.

    Parameters
    ----------
    places : whether messages may contain paths on this machine and URLs of buckets

    Raises
    ------
    RefusedError
        If there is no run.
    """

    def __init__(self, out: str, *, places: bool = False) -> None:
        self.out, self.places = storage.normalise(out), places
        self._lock = threading.Lock()
        self._snapshot = Snapshot(self.out, self._version())
        self.log = DecisionLog(self.out, self._snapshot.document.identity)
        self._looked = time.monotonic()

    def snapshot(self) -> Snapshot:
        """Return the tables; one request at a time reloads them when one of their files has changed."""
        if time.monotonic() - self._looked < _PAUSE or not self._lock.acquire(blocking=False):
            return self._snapshot
        try:
            version = self._version()
            if version != self._snapshot.version:
                self._snapshot = Snapshot(self.out, version)
                if self.log.run != self._snapshot.document.identity:
                    self.log = DecisionLog(self.out, self._snapshot.document.identity)
            self._looked = time.monotonic()
            return self._snapshot
        finally:
            self._lock.release()

    def said(self, sentence: str, *names: str) -> str:
        """Return a message for reviewers: results by their relative paths, other places only if `places` allows them.

        Parameters
        ----------
        names : of images, which are kept whatever they look like
        """
        sentence = sentence.replace(f"{self.out}/", "")
        if self.places:
            return sentence
        for name in filter(None, names):  # without the path before it
            sentence = re.sub(rf"[^\s'\"`(]*/(?={re.escape(name)})", "", sentence)
        return said(sentence.replace(self.out, "OUT"), *names)

    def _version(self) -> str:
        """Return a digest that changes with the tables, from the file metadata of storage alone."""
        stamps = []
        with storage_errors(self.out):
            for name in _TABLES:
                fs, path = storage.filesystem(storage.join(self.out, name))
                stamps.append(fs.ukey(path) if storage.exists(storage.join(self.out, name)) else "")
        return hashlib.sha256("|".join(map(str, stamps)).encode()).hexdigest()[:16]


def decided_images(out_url: str, decision: str) -> list[str]:
    """Return the names of the images of a run whose current decision is `decision`, sorted.

    Raises
    ------
    RefusedError
        If there is no run, or no such image.
    """
    out = storage.normalise(out_url)
    log = DecisionLog(out, _read_document(out).identity)
    log.refresh()
    names = sorted(name for name, state in log.states().items() if state.decision == decision)
    if not names:
        raise RefusedError(f"{out}: no image is decided {decision!r}; decide some with `chorus review {out}`")
    return names


def _read_document(out: str) -> ReviewedDocument:
    run = read_run(out, needed_by="a review")
    if run.ensemble is None:
        raise RefusedError(f"{out}: holds no predictions; a review needs the --out of a `chorus predict` run")
    return ReviewedDocument(run, run.ensemble)
