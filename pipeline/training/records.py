"""What a fold says while it is trained and when it is done."""

from __future__ import annotations

from typing import Literal

from chorus.pipeline.core.strict import Strict
from chorus.pipeline.io import storage


class Step(Strict):
    """A line of a fold's ``log.jsonl``.

    Attributes
    ----------
    step, steps : taken so far, and in all
    loss : mean since the line before
    learning_rate : of this step
    dice : per foreground class over all validation images, where they were looked at
    images_per_second : patches that were learnt from per second of wall time since the line before
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
        return None if self.dice is None else sum(self.dice.values()) / len(self.dice)


class FoldResult(Strict):
    """A fold that is done, as ``folds/<fold>/result.json`` has it.

    Attributes
    ----------
    identity : hash of the settings and images that it belongs to
    begun_with : where the first weights came from: ``imagenet``, ``random``, or the URL of a member
    learning_rate : the largest of the cycle, given or found
    best_step : whose weights were kept
    weights, sha256 : the member's file in the ensemble's folder
    train, validation : names of the images
    dice : per foreground class over all validation images, of the weights as they are written
    ap50 : average precision at IoU 0.5, mean over the validation images that have or were given objects, with flows
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
        return sum(self.dice.values()) / len(self.dice)


def fold_folder(folder: str, fold: int) -> str:
    """Where a fold keeps ``checkpoint.pt``, ``log.jsonl``, ``kept.safetensors`` and ``result.json``."""
    return storage.join(folder, "folds", str(fold))


def read_result(folder: str, fold: int) -> FoldResult | None:
    """The result of a fold that is done, else None."""
    try:
        return FoldResult.model_validate_json(
            storage.read_bytes(storage.join(fold_folder(folder, fold), "result.json"))
        )
    except FileNotFoundError:
        return None


def read_log(folder: str, fold: int) -> list[Step]:
    """What a fold has said so far; empty where it has not begun."""
    try:
        text = storage.read_bytes(storage.join(fold_folder(folder, fold), "log.jsonl")).decode()
    except FileNotFoundError:
        return []
    return [Step.model_validate_json(line) for line in text.splitlines()]
