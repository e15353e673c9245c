"""Sums over the samples of members and augmentations, of every role that members answer with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from chorus.pipeline.core.field import Field
from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.outputs import CLASSES, Outputs, Role
from chorus.pipeline.core.role_sums import SUMS, RoleSums

Sample = Mapping[Role, torch.Tensor]
"""A member's values for an augmentation, in the original orientation: (tiles, channels, *spatial) float32 by role."""


@dataclass
class SampleSums:
    """Running sums of a batch of tiles over members m and augmentations t, in the order of the members.

    Attributes
    ----------
    of : by role
    samples : number of samples added
    """

    of: dict[Role, RoleSums]
    samples: int = 0

    @classmethod
    def zeros(cls, outputs: Outputs, batch: int, spatial: Sequence[int], device: torch.device) -> SampleSums:
        """Return empty sums.

        Parameters
        ----------
        outputs : of the members
        batch : number of tiles
        spatial : shape of an answer along the axes of the image
        device : that holds the sums
        """
        kept = [output for output in outputs if output.role in SUMS]
        return cls({one.role: SUMS[one.role].zeros(batch, len(one.names), spatial, device) for one in kept})

    def add_member(self, samples: Iterable[Sample]) -> torch.Tensor:
        """Add a member's samples, in the order of the augmentations.

        Returns
        -------
        torch.Tensor
            The member's own mean probability, (batch, classes, *spatial) float32.
        """
        classes, count = self.of[CLASSES], 0
        total = torch.zeros_like(classes.total)
        for sample in samples:
            total += sample[CLASSES]
            for role, sums in self.of.items():
                sums.add(sample[role], self.samples + count)
            count += 1
        classes.total += total
        self.samples += count
        return total / count

    def plus(self, other: SampleSums) -> SampleSums:
        """Return the sums of these samples and of those of `other`."""
        counts = self.samples, other.samples
        return SampleSums({role: own.plus(other.of[role], counts) for role, own in self.of.items()}, sum(counts))

    def statistics(self) -> dict[Field, torch.Tensor]:
        """Return each field that is blended and follows from the sums, (batch, channels, *spatial) float32."""
        maps: dict[Field, torch.Tensor] = {}
        for sums in self.of.values():
            maps |= sums.statistics(self.samples)
        return maps

    def maps(self) -> torch.Tensor:
        """Return `statistics` as one tensor.

        Returns
        -------
        torch.Tensor
            (batch, channels, *spatial) float32, see `chorus.pipeline.core.fields.FieldLayout`.
        """
        return stacked(self.statistics())


def stacked(maps: Mapping[Field, torch.Tensor]) -> torch.Tensor:
    """Concatenate the maps of some fields, in the order of the fields.

    Parameters
    ----------
    maps : (batch, channels, *spatial) per field, of one dtype

    Returns
    -------
    torch.Tensor
        (batch, all channels, *spatial).
    """
    return torch.cat([maps[field] for field in FIELDS.values() if field in maps], dim=1)
