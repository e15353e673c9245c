"""What one group of members passes on to the next, where members are spread over several groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.pipeline.core.outputs import Role
from chorus.pipeline.core.role_sums import SUMS
from chorus.pipeline.core.sample_sums import SampleSums

Sums = tuple[NDArray[np.float32], NDArray[np.float32]]
"""`total` and `spread` of `chorus.pipeline.core.role_sums.RoleSums`, tiles on the first axis."""


@dataclass(frozen=True)
class StageState:
    """State passed from one group of members to the next: sums per tile, including the padding of batches.

    Attributes
    ----------
    sums : by role, over the members so far
    samples : members so far times augmentations
    member_masks : (members so far, *target) unsigned
    features : (features of the members so far,) int64, summed over the tiles that count for the target
    """

    sums: Mapping[Role, Sums]
    samples: int
    member_masks: NDArray[np.unsignedinteger]
    features: NDArray[np.int64]

    @classmethod
    def of(
        cls, batches: Sequence[SampleSums], member_masks: NDArray[np.unsignedinteger], features: NDArray[np.int64]
    ) -> StageState:
        """Return the state after all batches of a region, in their order; see `StageState`."""
        sums = {
            role: (
                torch.cat([batch.of[role].total for batch in batches]).cpu().numpy(),
                torch.cat([batch.of[role].spread for batch in batches]).cpu().numpy(),
            )
            for role in batches[0].of
        }
        return cls(sums, batches[0].samples, member_masks, features)

    def batch(self, index: int, size: int, device: torch.device) -> SampleSums:
        """Return a copy of the sums of one batch, to be added to.

        Parameters
        ----------
        index : of the batch
        size : tiles per batch
        device : where the sums are copied
        """
        part = slice(index * size, (index + 1) * size)
        copies = {
            role: SUMS[role](torch.tensor(total[part], device=device), torch.tensor(spread[part], device=device))
            for role, (total, spread) in self.sums.items()
        }
        return SampleSums(copies, self.samples)

    def plus(self, other: StageState) -> StageState:
        """Return the state of the members of both, each of which began anew on the same region."""
        tiles, cpu = len(next(iter(self.sums.values()))[0]), torch.device("cpu")
        together = self.batch(0, tiles, cpu).plus(other.batch(0, tiles, cpu))
        return StageState.of(
            [together],
            np.concatenate([self.member_masks, other.member_masks]),
            np.concatenate([self.features, other.features]),
        )
