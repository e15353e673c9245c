"""Split of images into those that a fold is trained on, and those that it is validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chorus.pipeline.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Split:
    """Names of the groups of pairs that a fold is trained and validated on, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def split(names: Sequence[str], folds: int, seed: int) -> list[Split]:
    """Return folds whose validation shares are disjoint and together everything; the same for any order of `names`.

    A single fold uses a fifth for validation.

    Raises
    ------
    RefusedError
        For fewer names than folds.
    """
    from sklearn.model_selection import KFold  # takes a second to import

    ordered = sorted(set(names))
    parts = folds if folds > 1 else max(2, min(5, len(ordered)))
    if len(ordered) < parts:
        raise RefusedError(f"training: {len(ordered)} images are fewer than {parts} folds; ask for fewer folds")
    shuffled = KFold(n_splits=parts, shuffle=True, random_state=seed).split(ordered)
    splits = [Split(*(tuple(ordered[i] for i in sorted(part)) for part in parts_of)) for parts_of in shuffled]
    return splits[:folds]
