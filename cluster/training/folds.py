"""Runs the folds of a training and its evaluation: on Ray, one fold per device in parallel, or one by one here.

A fold's process writes its progress to its own ``log.jsonl``, which is read while it grows, so no progress is lost when
a process dies. A fold whose process dies is restarted and resumes from its last checkpoint; the others are unaffected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from chorus.cluster.runtime.cancellation import cancel_running
from chorus.cluster.runtime.tasks import TaskResult, attempt_fenced
from chorus.cluster.training.fold_work import (
    Evaluated,
    FoldJob,
    LogTail,
    evaluate_here,
    train_here,
    train_until_asked_to_stop,
)
from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import ChorusError, CutShortError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.fences import passes
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.training.data.pairs import TrainingPair
from chorus.pipeline.training.records import FoldResult, Step

# Interval at which logs are read: in a local folder, and in a bucket.
_POLL_SECONDS, _REMOTE_POLL_SECONDS = 0.5, 5.0
# Time for folds to write their checkpoints and end (Kubernetes waits for 30 s).
_PATIENCE_SECONDS = 20.0


class FoldReporter(Protocol):
    """Receives the progress of folds."""

    def phase(self, text: str) -> None:
        """Report that something begins that takes a while."""

    def note(self, text: str) -> None:
        """Report an event that a person should know."""

    def begin(self, folds: Sequence[int], steps: int, devices: int) -> None:
        """Report that training begins: the folds that are left, steps per fold, and devices."""

    def step(self, step: Step) -> None:
        """Report that a fold wrote a line of its log."""

    def fold(self, result: FoldResult) -> None:
        """Report that a fold is done."""

    def end(self) -> None:
        """Report that training ended."""


class FoldRunner(Protocol):
    """Runs folds and evaluations."""

    def folds(self, job: FoldJob, folds: Sequence[int], reporter: FoldReporter) -> list[FoldResult]:
        """Train `folds`; raise CutShortError or RefusedError if one of them cannot be trained."""
        ...

    def evaluate(self, job: FoldJob, ensemble: Ensemble, pairs: Sequence[TrainingPair]) -> Evaluated:
        """Score every member and the ensemble on `pairs`."""
        ...


class SerialFolds:
    """Implements `FoldRunner`: one fold after the other in this process."""

    def folds(self, job: FoldJob, folds: Sequence[int], reporter: FoldReporter) -> list[FoldResult]:
        """Train `folds`; raise RefusedError if one of them cannot be trained."""
        reporter.begin(folds, job.settings.steps, 1)
        results = []
        for fold in folds:
            results.append(train_here(job, fold, reporter.step, lambda: False))
            reporter.fold(results[-1])
        return results

    def evaluate(self, job: FoldJob, ensemble: Ensemble, pairs: Sequence[TrainingPair]) -> Evaluated:
        """Score every member and the ensemble on `pairs`."""
        return evaluate_here(job, ensemble, pairs)


class RayFolds:
    """Implements `FoldRunner` on Ray, which must have been started (`chorus.cluster.runtime.session`).

    Parameters
    ----------
    workers : folds at a time
    reserved : resources of each fold, see `chorus.pipeline.core.device.Device.ray_options`
    logs : folder of Ray's logs, named in messages when processes die
    """

    def __init__(self, workers: int, reserved: dict[str, int], logs: str) -> None:
        self._workers = workers
        self._logs = logs
        # Chorus itself retries: a death must be reported, and counted only if the fold made no progress.
        self._options = reserved | {"max_retries": 0}
        self._attempt = ray.remote(attempt_fenced)

    def folds(self, job: FoldJob, folds: Sequence[int], reporter: FoldReporter) -> list[FoldResult]:
        """Train `folds`; raise CutShortError or RefusedError if one of them cannot be trained."""
        reporter.begin(folds, job.settings.steps, self._workers)
        return _RayTraining(self._submit, job, folds, reporter, self._workers, self._logs).carry_out()

    def evaluate(self, job: FoldJob, ensemble: Ensemble, pairs: Sequence[TrainingPair]) -> Evaluated:
        """Score every member and the ensemble on `pairs`; raise CutShortError if a process dies."""
        count = min(self._workers, len(pairs))
        shares = [pairs[start::count] for start in range(count)]
        running = [self._submit("evaluate", i, evaluate_here, job, ensemble, share) for i, share in enumerate(shares)]
        try:
            parts = [_value(ray.get(task)) for task in running]
        except RayError as error:
            raise CutShortError(
                f"{job.out}: a process that evaluated the ensemble died ({_last_line(error)}); look into {self._logs}, "
                f"then run the same command again"
            ) from error
        finally:
            cancel_running(running)
        return Evaluated([s for part in parts for s in part.scores], [f for part in parts for f in part.failed])

    def _submit(self, name: str, key: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit a task on a device of its own; its process has the name `name`."""
        return self._attempt.options(name=name, **self._options).remote(passes(), key, function, *arguments)


class _RayTraining:
    """The folds of one training, from the first task to the last result."""

    def __init__(
        self,
        submit: Callable[..., Any],
        job: FoldJob,
        folds: Sequence[int],
        reporter: FoldReporter,
        workers: int,
        logs: str,
    ) -> None:
        self._submit, self._job, self._reporter, self._logs = submit, job, reporter, logs
        self._workers = workers
        self._waiting = list(folds)
        self._running: dict[Any, int] = {}
        self._tails = {fold: LogTail(job.out, fold) for fold in folds}
        self._deaths = dict.fromkeys(folds, 0)
        self._reached = dict.fromkeys(folds, -1)
        self._results: list[FoldResult] = []
        self._errors: dict[int, ChorusError] = {}

    def carry_out(self) -> list[FoldResult]:
        """Return the results; raise the error of a failed fold only when all others have ended."""
        self._allow()
        local = storage.scheme(self._job.out) == "file"
        poll = _POLL_SECONDS if local else _REMOTE_POLL_SECONDS
        try:
            while self._waiting or self._running:
                self._begin()
                ended, _ = ray.wait(list(self._running), num_returns=1, timeout=poll)
                self._read_logs()
                for task in ended:
                    self._take(task)
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            cancel_running(self._running)
        if self._errors:
            raise self._errors[min(self._errors)]
        return self._results

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._workers:
            fold = self._waiting.pop(0)
            self._running[self._submit(f"fold {fold}", fold, train_until_asked_to_stop, self._job, fold)] = fold

    def _take(self, task: Any) -> None:
        fold = self._running.pop(task)
        try:
            ended: TaskResult = ray.get(task)
        except RayError as error:
            self._bury(fold, error)
            return
        if ended.error is not None:
            self._fail(fold, CutShortError(f"fold {fold}: {ended.error}"))
        elif isinstance(ended.value, RefusedError):
            self._fail(fold, ended.value)
        else:
            self._results.append(ended.value)
            self._reporter.fold(ended.value)

    def _fail(self, fold: int, error: ChorusError) -> None:
        """Record that a fold cannot continue; the others may, and their results are kept."""
        self._errors[fold] = error
        if self._running or self._waiting:
            self._reporter.note(f"fold {fold} cannot go on, the others do: {error}")

    def _bury(self, fold: int, error: RayError) -> None:
        """Restart a fold whose process died, unless it dies repeatedly at the same step."""
        reached = self._tails[fold].reached
        self._deaths[fold] = 1 if reached > self._reached[fold] else self._deaths[fold] + 1
        self._reached[fold] = max(reached, self._reached[fold])
        if self._deaths[fold] >= RETRIES.fold_deaths:
            sentence = (
                f"fold {fold}: its process died {self._deaths[fold]} times after step {reached} ({_last_line(error)}), "
                f"as of too little memory; look into {self._logs}, then run the same command again with fewer --workers"
            )
            self._fail(fold, CutShortError(sentence))
            return
        self._reporter.note(f"fold {fold}: its process died after step {reached}; it goes on from its last checkpoint")
        self._waiting.insert(0, fold)

    def _read_logs(self) -> None:
        for fold in self._running.values():
            for step in self._tails[fold].news():
                self._reporter.step(step)

    def _allow(self) -> None:
        """Remove the stop request of an earlier session."""
        with storage_errors(self._job.stop_url):
            storage.remove_file(self._job.stop_url)

    def _stop(self) -> None:
        """Ask the folds to write their checkpoints and end, and wait for that a limited time."""
        self._reporter.phase("stopping, folds write their checkpoints")
        with storage_errors(self._job.stop_url):
            storage.write_bytes(self._job.stop_url, b"")
        ray.wait(list(self._running), num_returns=max(1, len(self._running)), timeout=_PATIENCE_SECONDS)


def _value(result: TaskResult) -> Evaluated:
    if result.error is not None:
        raise CutShortError(result.error)
    value: Evaluated = result.value
    return value


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
