"""The learning rate over the steps of a fold: one cycle, or two if the encoder is pretrained."""

from __future__ import annotations

from dataclasses import dataclass

from chorus.pipeline.training.settings import TrainSettings

_FROZEN_SHARE = 0.2


@dataclass(frozen=True)
class Cycle:
    """Steps [start, stop) of a one-cycle schedule, with the encoder frozen or not."""

    start: int
    stop: int
    frozen: bool
    learning_rate: float


def cycles(settings: TrainSettings, pretrained: bool, learning_rate: float) -> list[Cycle]:
    """Return the cycle with a frozen encoder, if it is pretrained, then the full one at half its rate.

    Without a frozen cycle the full one has the whole rate. Halving is fastai's ``fine_tune``, which deepflash2 uses.
    """
    share = settings.frozen_share if settings.frozen_share is not None else _FROZEN_SHARE if pretrained else 0.0
    frozen = round(share * settings.steps)
    if not frozen:
        return [Cycle(0, settings.steps, False, learning_rate)]
    return [Cycle(0, frozen, True, learning_rate), Cycle(frozen, settings.steps, False, learning_rate / 2)]
