"""Find a learning rate: it is raised from step to step until the loss rises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

_SMALLEST, _LARGEST = 1e-6, 1.0
_STEPS = 50
_SMOOTHING = 0.8
_DIVERGED = 4.0  # times the smallest loss so far
_FALLBACK = 1e-3


@dataclass(frozen=True)
class Found:
    """Result of a range test: smoothed losses by learning rate, and the rate that follows."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_learning_rate(
    network: torch.nn.Module,
    loss_of: Callable[[torch.nn.Module, int], torch.Tensor],
    weight_decay: float,
) -> Found:
    """Train a copy of `network` for 50 steps with rates from 1e-6 to 1; `network` itself is not changed.

    Parameters
    ----------
    network : to be trained
    loss_of : loss of a network on the batch of a step; equal batches give an equal result
    weight_decay : of the optimiser

    References
    ----------
    Smith, WACV 2017 (range test). The suggestion is the rate of the steepest descent of the smoothed loss, but at
    most a tenth of the rate with the smallest one.
    """
    trial = copy.deepcopy(network).train()
    rates = np.geomspace(_SMALLEST, _LARGEST, _STEPS)
    optimizer = torch.optim.AdamW(trial.parameters(), lr=_SMALLEST, weight_decay=weight_decay)
    losses: list[float] = []
    average = 0.0
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        loss = loss_of(trial, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss.item()
        smooth = average / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > _DIVERGED * min(losses)):
            break
        losses.append(smooth)
    return Found(tuple(rates[: len(losses)].tolist()), tuple(losses), suggested(rates[: len(losses)], losses))


def suggested(rates: np.ndarray, losses: list[float]) -> float:
    """Return the learning rate that follows from smoothed losses.

    Parameters
    ----------
    rates : (steps,) float64, growing exponentially
    losses : one per rate
    """
    if len(losses) < 3:
        return _FALLBACK
    lowest = int(np.argmin(losses))
    if lowest < 2:
        return float(rates[lowest]) / 10
    steepest = int(np.argmin(np.gradient(np.asarray(losses[: lowest + 1]))))
    return float(min(rates[steepest], rates[lowest] / 10))
