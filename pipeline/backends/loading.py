"""Load members from their weights onto a backend: the same way for runs, trials and serving."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.backends.member import on_backend
from chorus.pipeline.core.geometry import TileSize
from chorus.pipeline.ensembles.ensemble import Ensemble, check_answer
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.members.contract import Member


def load_members(
    ensemble: Ensemble,
    indices: Iterable[int],
    device: torch.device,
    tile: TileSize,
    backend: Backend,
    precision: Precision,
    *,
    check: bool = False,
) -> list[Member]:
    """Load members on `device`, computed by `backend`.

    Parameters
    ----------
    ensemble : that has them
    indices : of the ensemble's members
    device : that computes
    tile : its size
    backend : runtime of the networks
    precision : of the networks
    check : whether each is tried first on an empty tile (`chorus.pipeline.ensembles.ensemble.check_answer`); set it to
        False if the run has done so already

    Raises
    ------
    RefusedError
        If weights are missing, wrong or do not fit, or a member's answer does not fit.
    """
    members = []
    for index in indices:
        member = ensemble.load_member(index, device, tile, tried=not check)
        if check:
            check_answer(ensemble, index, member, tile, device)
        members.append(on_backend(member, backend, precision, device))
    return members
