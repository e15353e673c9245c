"""Records of a fold: lines of its log, and its result."""

from __future__ import annotations

import logging
from typing import Literal

from chorus.pipeline.core.strict import Strict
from chorus.pipeline.errors import DamagedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed

log = logging.getLogger("chorus")


class Step(Strict):
    """A line of a fold's ``log.jsonl``.

    Attributes
    ----------
    step, steps : done so far, and in total
    loss : mean since the previous line
    learning_rate : of this step
    dice : per foreground class over all validation images, if this step was validated
    images_per_second : patches per second of wall time since the previous line
    """

    fold: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    dice: dict[str, float] | None = None
    images_per_second: float

    @property
    def mean_dice(self) -> float | None:
        """Mean over the foreground classes; None if this step was not validated."""
        return None if self.dice is None else sum(self.dice.values()) / len(self.dice)


class FoldResult(Strict):
    """Result of a finished fold, the content of ``folds/<fold>/result.json``.

    Attributes
    ----------
    identity : hash of the settings and images that it belongs to
    begun_with : source of the initial weights: ``imagenet``, ``random``, or the URL of a member
    learning_rate : the largest of the cycle, given or found
    best_step : whose weights were kept
    weights, sha256 : the member's file in the ensemble's folder
    train, validation : names of the images
    dice : per foreground class over all validation images, of the weights as they are written
    ap50 : average precision at IoU 0.5, mean over all validation images; None without flows
    seconds : wall time of all attempts
    """

    fold: int
    identity: str
    begun_with: str
    learning_rate: float
    steps: int
    best_step: int
    weights: str
    sha256: str
    weights_dtype: Literal["float32", "float16"]
    train: list[str]
    validation: list[str]
    dice: dict[str, float]
    ap50: float | None = None
    seconds: float

    @property
    def mean_dice(self) -> float:
        """Mean over the foreground classes."""
        return sum(self.dice.values()) / len(self.dice)


def fold_folder(folder: str, fold: int) -> str:
    """Return the folder of a fold's ``checkpoint.pt``, ``log.jsonl``, ``kept.safetensors`` and ``result.json``."""
    return storage.join(folder, "folds", str(fold))


def read_result(folder: str, fold: int) -> FoldResult | None:
    """Return the result of a finished fold, else None; raise DamagedError if it is damaged."""
    url = storage.join(fold_folder(folder, fold), "result.json")
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        return None
    return parsed(data, FoldResult, url, "restore it, or remove it to train this fold again")


def read_log(folder: str, fold: int) -> list[Step]:
    """Return the lines of a fold's log so far; empty if it has not begun. Damaged lines are left out."""
    url = storage.join(fold_folder(folder, fold), "log.jsonl")
    try:
        lines = storage.read_bytes(url).splitlines()
    except FileNotFoundError:
        return []
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            steps.append(parsed(line, Step, f"{url}: line {number}", "it is left out"))
        except DamagedError as error:
            log.warning("%s", error)
    return steps
