"""Members from their weights to the backend that carries them out: one way for runs, trials and serving."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.backends.member import on_backend
from chorus.pipeline.ensembles.ensemble import Ensemble, check_answer
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.members.contract import Member


def load_members(
    ensemble: Ensemble,
    indices: Iterable[int],
    device: torch.device,
    tile: int,
    backend: Backend,
    precision: Precision,
    *,
    check: bool = False,
) -> list[Member]:
    """Members on `device`, carried out by `backend`.

    Parameters
    ----------
    indices : of the ensemble's members
    tile : edge in pixels
    check : whether each is tried first, and shown an empty tile (`chorus.pipeline.ensembles.ensemble.check_answer`);
        without it, the run has done so

    Raises
    ------
    RefusedError
        Weights are missing, wrong or do not fit, or what a member answers does not.
    """
    found = []
    for index in indices:
        member = ensemble.load_member(index, device, tile, tried=not check)
        if check:
            check_answer(ensemble, index, member, tile, device)
        found.append(on_backend(member, backend, precision, device))
    return found
