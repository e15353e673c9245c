"""What a process of a training does: a fold, or the evaluation of some images. Knows nothing of Ray."""

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
from chorus.pipeline.training.evaluation import Evaluator, Score
from chorus.pipeline.training.fold import train_fold
from chorus.pipeline.training.pairs import TrainingPair, class_image, load_pair
from chorus.pipeline.training.records import FoldResult, Step, read_log
from chorus.pipeline.training.settings import TrainSettings

log = logging.getLogger("chorus")

# How often a fold asks whether it is to stop.
_STOP_SECONDS = 1.0
# Of torch, per fold on cores: several processes with several threads each would wait for one another.
THREADS = 1


@dataclass(frozen=True)
class FoldJob:
    """What every fold of a training is told.

    Attributes
    ----------
    out : URL of the folder that becomes the ensemble
    """

    out: str
    settings: TrainSettings
    pairs: tuple[TrainingPair, ...]
    device: DeviceKind

    def torch_device(self) -> torch.device:
        """The device of this process; on Ray a process sees its own GPU alone."""
        device = device_of(self.device)
        device.use_threads(THREADS)
        return device.torch_device

    @property
    def stop_url(self) -> str:
        """Exists where the folds are to write a checkpoint and end."""
        return storage.join(self.out, "folds", "stop")


@dataclass(frozen=True)
class Evaluated:
    """Scores of images, and why those that have none could not be evaluated, by name."""

    scores: list[Score]
    failed: list[tuple[str, str]]


class LogTail:
    """Reads a fold's log while it grows; one that was cut back to a checkpoint is read on from there.

    Attributes
    ----------
    reached : the last step that the log tells of, 0 where there is none
    """

    def __init__(self, folder: str, fold: int) -> None:
        self._folder, self._fold = folder, fold
        # What an earlier session said is known; its last line tells where the fold goes on.
        self._seen = max(0, len(read_log(folder, fold)) - 1)
        self.reached = 0

    def news(self) -> list[Step]:
        """Lines that were not given before."""
        try:
            steps = read_log(self._folder, self._fold)
        except OSError as error:  # of a bucket; the next look may do
            log.warning("the log of fold %d could not be read (%s); trying again", self._fold, error)
            return []
        new = steps[self._seen :]
        self._seen = len(steps)
        self.reached = steps[-1].step if steps else 0
        return new


def train_until_asked_to_stop(job: FoldJob, fold: int) -> FoldResult | RefusedError:
    """The fold's result, or what is to be mended before it can go on."""
    try:
        return train_here(job, fold, lambda step: None, _asked_to_stop(job.stop_url))
    except RefusedError as error:
        return error


def train_here(job: FoldJob, fold: int, progress: Callable[[Step], None], stop: Callable[[], bool]) -> FoldResult:
    try:
        return train_fold(job.settings, job.pairs, fold, job.out, progress, stop, job.torch_device(), THREADS)
    except torch.OutOfMemoryError as error:
        raise RefusedError(
            f"fold {fold}: the device is out of memory; train with a smaller --batch or --patch, and --overwrite"
        ) from error


def _asked_to_stop(url: str) -> Callable[[], bool]:
    """Looks for `url` now and then."""
    looked = time.monotonic()

    def stop() -> bool:
        nonlocal looked
        if time.monotonic() - looked < _STOP_SECONDS:
            return False
        looked = time.monotonic()
        return storage.exists(url)

    return stop


def evaluate_here(job: FoldJob, ensemble: Ensemble, pairs: Sequence[TrainingPair]) -> Evaluated:
    evaluator = Evaluator(ensemble, job.torch_device())
    done = Evaluated([], [])
    for pair in pairs:
        try:
            image, label = load_pair(pair)
            truth = label if job.settings.flows else class_image(label, job.settings, pair.label)
            done.scores.extend(evaluator.scores(pair.name, image, truth))
        except ImageError as error:
            done.failed.append((pair.name, str(error)))
    return done
