"""Adaptive effort at the engine: waves of tiles, of which all get a first round and some of them the rest.

::

    wave        tile tile tile tile tile tile tile tile       (as many as two calls have views)
    first       every member, the tile as it is               calls full of tiles
    judged      done done  on  done done  on  done done       by `pipeline.effort`, each tile by itself
    rest                   ...            ...                 every member, the other augmentations of these

Every call has the shape of full effort's, batch times augmentations, and samples are added up in full effort's order.
So a tile that goes on has the bits of full effort, and one that is done those of a run without augmentation in calls of
that shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.augmentation import AUGMENTATIONS, Augmentation
from pipeline.canvas import InferenceSettings
from pipeline.effort import TileEffort, doubtful_pixels, most_doubtful, tile_effort
from pipeline.posterior import SampleSums, class_masks

if TYPE_CHECKING:
    from pipeline.inference import MemberGroup

# Calls of the first round in a wave: the more, the fuller are those of the rest, and the more samples are held.
_CALLS = 2
Sample = tuple[torch.Tensor, torch.Tensor]
"""Probability, (tiles, classes, y, x), and flows, (tiles, 2 or 0, y, x), in the plane."""


def sample_of(augmentation: Augmentation, probability: torch.Tensor, flows: torch.Tensor) -> Sample:
    """What a member said of augmented tiles, in the plane."""
    return augmentation.backward(probability), augmentation.vectors_backward(flows) if flows.shape[1] else flows


def plain_augmentation(augmentations: tuple[str, ...]) -> int:
    """Which one tells a tile's features, and is drawn first: the tile as it is, or the first where that is not used."""
    return augmentations.index("identity") if "identity" in augmentations else 0


def tiles_in_wave(settings: InferenceSettings) -> int:
    """Tiles that are answered together where effort is adaptive."""
    return _CALLS * settings.batch * len(settings.augmentations)


@dataclass(frozen=True)
class WaveAnswers:
    """What is said of the tiles of a wave.

    Attributes
    ----------
    maps : (tiles, maps, tile, tile) float32, as of `SampleSums.maps`, then how many samples the tile got
    means : each member's own mean probability, (tiles, classes, tile, tile) float32
    features : (tiles, features) int64
    samples : of each tile
    """

    maps: torch.Tensor
    means: list[torch.Tensor]
    features: torch.Tensor
    samples: list[int]


class Rounds:
    """Answers waves of tiles with no more samples than they need.

    Parameters
    ----------
    group : the members, told of one augmentation (`plain_augmentation`) and of calls of batch times augmentations tiles
    settings : of the run
    """

    def __init__(self, group: MemberGroup, settings: InferenceSettings, device: torch.device) -> None:
        self._group, self._settings, self._device = group, settings, device
        self._augmentations = [AUGMENTATIONS[name] for name in settings.augmentations]
        self._plain = plain_augmentation(settings.augmentations)
        self._most = most_doubtful(settings.effort, settings.tile) if settings.effort else -1

    def answer(self, wave: torch.Tensor) -> WaveAnswers:
        """Of (tiles, channels, tile, tile), at most `tiles_in_wave` of them."""
        first, features = self._first(wave)
        sums = self._zeros(len(wave))
        means = [sums.add_member([sample]) for sample in first]
        maps, samples = sums.maps(), [sums.samples] * len(wave)
        on = torch.nonzero(self._doubtful(maps, sums.samples) > self._most)[:, 0]
        if len(on):
            rest, members = self._rest(wave[on], [(p[on], f[on]) for p, f in first])
            maps[on] = rest.maps()
            for mean, all_of_it in zip(means, members, strict=True):
                mean[on] = all_of_it
            for index in on.tolist():
                samples[index] = rest.samples
        drawn = torch.tensor(samples, dtype=torch.float32, device=self._device)
        counts = drawn[:, None, None, None].expand(-1, 1, *maps.shape[2:])
        return WaveAnswers(torch.cat([maps, counts], dim=1), means, features, samples)

    def measure(self, wave: torch.Tensor) -> list[TileEffort]:
        """What full effort changes of each tile of (tiles, channels, tile, tile)."""
        first, _ = self._first(wave)
        early = self._zeros(len(wave))
        for sample in first:
            early.add_member([sample])
        late, _ = self._rest(wave, first)
        maps = early.maps(), late.maps()
        shares = (self._doubtful(maps[0], early.samples) / self._settings.tile**2).tolist()
        return [tile_effort(*(self._judged(one[index]) for one in maps), share) for index, share in enumerate(shares)]

    def _judged(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictive variance and classes of a tile's maps, (y, x) each."""
        classes = self._settings.classes
        masks = class_masks(maps[:classes], multilabel=self._settings.multilabel)
        return maps[classes] + maps[classes + 1], masks

    def _doubtful(self, maps: torch.Tensor, samples: int) -> torch.Tensor:
        return doubtful_pixels(maps, self._settings.classes, samples, multilabel=self._settings.multilabel)

    def _zeros(self, tiles: int) -> SampleSums:
        settings = self._settings
        return SampleSums.zeros(tiles, settings.classes, settings.tile, self._device, flows=settings.flows)

    def _first(self, wave: torch.Tensor) -> tuple[list[Sample], torch.Tensor]:
        """Every member's sample of the tiles as they are, and the tiles' features."""
        plain = self._augmentations[self._plain]
        samples, features = [], []
        for index in range(self._group.count):
            probability, flows, encoded = self._ask(index, plain.forward(wave))
            samples.append(sample_of(plain, probability, flows))
            features.append(encoded)
        return samples, torch.cat(features, dim=1)

    def _rest(self, tiles: torch.Tensor, first: list[Sample]) -> tuple[SampleSums, list[torch.Tensor]]:
        """The sums of all samples of `tiles`, with those that they have, and each member's mean."""
        sums = self._zeros(len(tiles))
        others = [a for index, a in enumerate(self._augmentations) if index != self._plain]
        views = torch.cat([a.forward(tiles) for a in others])
        means = []
        for index, sample in enumerate(first):
            probability, flows, _ = self._ask(index, views)
            means.append(sums.add_member(self._in_order(sample, probability, flows, len(tiles))))
        return sums, means

    def _in_order(self, first: Sample, probability: torch.Tensor, flows: torch.Tensor, size: int) -> Iterator[Sample]:
        """A member's samples in the order of the augmentations, of which the views but the first one are given."""
        at = 0
        for index, augmentation in enumerate(self._augmentations):
            if index == self._plain:
                yield first
                continue
            yield sample_of(augmentation, probability[at : at + size], flows[at : at + size])
            at += size

    def _ask(self, index: int, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What a member says of any number of views, in calls of one shape; the last is filled up with zeros."""
        size = self._settings.batch * len(self._augmentations)
        answers = []
        for start in range(0, len(views), size):
            part = views[start : start + size]
            if (missing := size - len(part)) > 0:
                part = torch.cat([part, part.new_zeros((missing, *part.shape[1:]))])
            answers.append(self._group.ask(index, part))
        joined = [torch.cat(list(column))[: len(views)] for column in zip(*answers, strict=True)]
        return joined[0], joined[1], joined[2]
