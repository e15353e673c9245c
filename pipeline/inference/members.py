"""Members on one device, and their outputs for batches of tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from chorus.pipeline.core.augmentation import augmentations_of, plain_augmentation, sample_of
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import axes_of
from chorus.pipeline.core.outputs import CLASSES, Activation, Role
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.inference.encoder_features import pooled
from chorus.pipeline.inference.oom_splitting import Answer, OomSplitter
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.members.contract import Encoding, Member, channels_last

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Answers:
    """Outputs of all members for a batch of tiles.

    Attributes
    ----------
    means : one tensor per member with its mean probability, (batch, classes, *tile) float32
    features : (batch, features) int64 of the members' encoders, one after the other, see
        `chorus.pipeline.inference.encoder_features.pooled`
    """

    means: list[torch.Tensor]
    features: torch.Tensor


class MemberGroup:
    """Members on one device, in the ensemble's order: all of them, or one stage of several.

    Features are computed on the tile without augmentation, or on the first augmentation if `identity` is not among
    them. A call that runs out of memory is repeated in smaller parts (`chorus.pipeline.inference.oom_splitting`).

    Parameters
    ----------
    members : in the ensemble's order
    settings : of the run
    device : that computes
    inputs : channels of a tile that each member sees; all by default
    short_of_memory : called whenever a call runs out of memory
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: InferenceSettings,
        device: torch.device,
        inputs: Sequence[slice] | None = None,
        short_of_memory: Callable[[], None] | None = None,
    ) -> None:
        self.calls = OomSplitter(settings.batch, len(settings.augmentations), short_of_memory)
        self._members = list(zip(members, inputs or [slice(None)] * len(members), strict=True))
        self._settings = settings
        known = augmentations_of(axes_of(settings.tile))
        self._augmentations = [known[name] for name in settings.augmentations]
        self._plain = plain_augmentation(settings.augmentations)
        self._device = device

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self._members)

    def add_samples(self, batch: torch.Tensor, sums: SampleSums) -> Answers:
        """Add every member's samples of a batch of tiles to `sums`.

        Parameters
        ----------
        batch : (batch, channels, *tile) float32
        sums : changed in place

        Returns
        -------
        Answers
            Mean probability of each member, and encoder features.
        """
        views = torch.cat([a.forward(batch) for a in self._augmentations])
        size, means, features = batch.shape[0], [], []
        for index in range(self.count):
            values, encoded = self.ask(index, views)
            features.append(encoded)
            samples = (
                sample_of(augmentation, _part(values, turn * size, (turn + 1) * size), self._settings.outputs)
                for turn, augmentation in enumerate(self._augmentations)
            )
            means.append(sums.add_member(samples))
        return Answers(means, torch.cat(features, dim=1))

    def _features(self, member: Member) -> torch.Tensor:
        """Return the features of the last call, (tiles, features) int64; no columns if the member has no encoder."""
        size = self.calls.tiles
        if isinstance(member, Encoding) and member.features:
            return pooled(member.encoded()[self._plain * size : (self._plain + 1) * size])
        return torch.zeros((size, 0), dtype=torch.int64, device=self._device)

    def ask(self, index: int, views: torch.Tensor) -> tuple[dict[Role, torch.Tensor], torch.Tensor]:
        """Return a member's values for all views of a batch.

        Parameters
        ----------
        index : of the member
        views : (views x batch, channels, *tile) float32, all tiles of one view after those of another

        Returns
        -------
        values : (views x batch, channels, *covered) float32 of each role that members answer with
        features : (batch, features) int64
        """
        member, channels = self._members[index]

        def ask(part: torch.Tensor) -> Answer:
            dtype = AUTOCAST.get(self._settings.precision)
            with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
                outputs = member(part.contiguous(memory_format=channels_last(part.ndim - 2)))
            return outputs.to(torch.float32).contiguous(), self._features(member)

        outputs, features = self.calls.answer(ask, views[:, channels])
        declared, values = self._settings.outputs, {}
        for role, part in declared.slices(outputs.shape[1]).items():
            activation = declared[role].activation
            if role == CLASSES:
                own = self._probability(outputs[:, part], member.activation or activation)
            else:
                own = _activated(outputs[:, part], activation)
            values[role] = self._settings.answer.spread(own)
        return values, features

    def _probability(self, outputs: torch.Tensor, activation: Activation) -> torch.Tensor:
        outputs = _activated(outputs, activation)
        if outputs.shape[1] == self._settings.classes:
            return outputs
        return torch.cat([1 - outputs.sum(dim=1, keepdim=True), outputs], dim=1)


def _activated(outputs: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Apply an activation to outputs (batch, channels, *spatial)."""
    if activation == "softmax":
        return outputs.softmax(dim=1)
    if activation == "none":
        return outputs
    if device_of(outputs.device).accelerated:
        return outputs.sigmoid()
    # Sample by sample: on a CPU the last few numbers of an array are computed by another routine than the rest, which
    # differs in the last bit, so that a sample would depend on its position in the batch.
    return torch.stack([sample.sigmoid() for sample in outputs])


def _part(values: Mapping[Role, torch.Tensor], start: int, stop: int) -> dict[Role, torch.Tensor]:
    """Return the values of some of the views."""
    return {role: of_role[start:stop] for role, of_role in values.items()}
