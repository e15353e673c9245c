"""The work of a training process: a fold, or the evaluation of some images. Independent of Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from chorus.pipeline.core.device import DeviceKind
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.training.data.pairs import TrainingPair, class_image, load_pair
from chorus.pipeline.training.evaluation import Evaluator, FoldScore
from chorus.pipeline.training.fitting.fold import train_fold
from chorus.pipeline.training.records import FoldResult, Step, read_log
from chorus.pipeline.training.settings import TrainSettings

log = logging.getLogger("chorus")

# Interval at which a fold checks whether it is to stop.
_STOP_SECONDS = 1.0
# Torch threads per fold on a CPU: several processes with several threads each would wait for one another.
THREADS = 1


@dataclass(frozen=True)
class FoldJob:
    """The settings that all folds of a training share.

    Attributes
    ----------
    out : URL of the folder that becomes the ensemble
    """

    out: str
    settings: TrainSettings
    pairs: tuple[TrainingPair, ...]
    device: DeviceKind

    def torch_device(self) -> torch.device:
        """Return the device of this process and set torch's threads; on Ray a process sees only its own GPU."""
        device = device_of(self.device)
        device.use_threads(THREADS)
        return device.torch_device

    @property
    def stop_url(self) -> str:
        """Exists if the folds are to write a checkpoint and end."""
        return storage.join(self.out, "folds", "stop")


@dataclass(frozen=True)
class Evaluated:
    """Scores of images, and by name why others could not be evaluated."""

    scores: list[FoldScore]
    failed: list[tuple[str, str]]


class LogTail:
    """Reads a fold's log while it grows; if the log was truncated to a checkpoint, reading continues from there.

    Attributes
    ----------
    reached : the last step in the log, 0 if there is none
    """

    def __init__(self, folder: str, fold: int) -> None:
        self._folder, self._fold = folder, fold
        # The lines of an earlier session are known; its last line tells where the fold resumes.
        self._seen = max(0, len(read_log(folder, fold)) - 1)
        self.reached = 0

    def news(self) -> list[Step]:
        """Return the lines that were not returned before."""
        try:
            steps = read_log(self._folder, self._fold)
        except OSError as error:  # of a bucket; the next attempt may succeed
            log.warning("the log of fold %d could not be read (%s); trying again", self._fold, error)
            return []
        new = steps[self._seen :]
        self._seen = len(steps)
        self.reached = steps[-1].step if steps else 0
        return new


def train_until_asked_to_stop(job: FoldJob, fold: int) -> FoldResult | RefusedError:
    """Return the fold's result, or the error to fix before it can continue."""
    try:
        return train_here(job, fold, lambda step: None, _asked_to_stop(job.stop_url))
    except RefusedError as error:
        return error


def train_here(job: FoldJob, fold: int, progress: Callable[[Step], None], stop: Callable[[], bool]) -> FoldResult:
    """Train a fold in this process; raise RefusedError if the device is out of memory."""
    try:
        return train_fold(job.settings, job.pairs, fold, job.out, progress, stop, job.torch_device(), THREADS)
    except torch.OutOfMemoryError as error:
        raise RefusedError(
            f"fold {fold}: the device is out of memory; train with a smaller --batch or --patch, and --overwrite"
        ) from error


def _asked_to_stop(url: str) -> Callable[[], bool]:
    """Return a function that checks now and then whether `url` exists."""
    looked = time.monotonic()

    def stop() -> bool:
        nonlocal looked
        if time.monotonic() - looked < _STOP_SECONDS:
            return False
        looked = time.monotonic()
        return storage.exists(url)

    return stop


def evaluate_here(job: FoldJob, ensemble: Ensemble, pairs: Sequence[TrainingPair]) -> Evaluated:
    """Score every member and the ensemble on `pairs` in this process."""
    evaluator = Evaluator(ensemble, job.torch_device())
    done = Evaluated([], [])
    for pair in pairs:
        try:
            image, label = load_pair(pair)
            truth = label if job.settings.instances else class_image(label, job.settings, pair.label)
            done.scores.extend(evaluator.scores(pair.name, image, truth))
        except ImageError as error:
            done.failed.append((pair.name, str(error)))
    return done
