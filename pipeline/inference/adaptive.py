"""Adaptive effort at the engine: waves of tiles that get samples in rounds, until each is done.

::

    wave        tile tile tile tile tile tile tile tile       (as many as two calls have views)
    first       every member, the tile as it is               calls full of tiles
    judged      done  on  done done  on  done done done       by `chorus.pipeline.inference.adaptive_bound`, each tile
    by itself second           ...            ...                       every member, one more augmentation
    judged           done            on
    rest                            ...                       every member, all other augmentations

Every call has the shape of full effort's, batch times augmentations, and samples are added up in full effort's order.
So a tile that gets all has the bits of full effort, and one that is done early those of a run with fewer augmentations
in calls of that shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from chorus.pipeline.core.augmentation import AUGMENTATIONS, Sample, plain_augmentation, sample_of
from chorus.pipeline.core.fields import ALEATORIC, EPISTEMIC, PROBABILITY, SAMPLES, Field
from chorus.pipeline.core.posterior import SampleSums, class_masks, stacked
from chorus.pipeline.inference.adaptive_bound import TileEffort, difference, doubtful_pixels, looks_of, spread_within
from chorus.pipeline.inference.posterior_builder import InferenceSettings

if TYPE_CHECKING:
    from chorus.pipeline.inference.members import MemberGroup

# Calls of the first round in a wave: the more, the fuller are those of the rest, and the more samples are held.
_CALLS = 2
Held = dict[int, Sample]
"""A member's samples of some tiles, by the index of the augmentation."""
Maps = dict[Field, torch.Tensor]
"""Of some tiles, (tiles, channels, tile, tile) float32 of each field, see `SampleSums.statistics`."""


def tiles_in_wave(settings: InferenceSettings) -> int:
    """Tiles that are answered together where effort is adaptive."""
    return _CALLS * settings.batch * len(settings.augmentations)


@dataclass(frozen=True)
class WaveAnswers:
    """What is said of the tiles of a wave.

    Attributes
    ----------
    maps : (tiles, maps, tile, tile) float32, as `InferenceSettings.layout` has them
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
        plain = plain_augmentation(settings.augmentations)
        others = [index for index in range(len(self._augmentations)) if index != plain]
        # Drawn in each round; the last is not judged.
        self._draws = [draw for draw in ([plain], others[:1], others[1:]) if draw]
        shares = settings.effort.doubtful if settings.effort else []
        self._most = [int(share * settings.tile**2) if share >= 0 else -1 for share in shares]

    def answer(self, wave: torch.Tensor) -> WaveAnswers:
        """Of (tiles, channels, tile, tile), at most `tiles_in_wave` of them."""
        held, features = self._drawn(wave, self._draws[0], [{} for _ in range(self._group.count)])
        sums, means = self._sums(held)
        maps, samples = sums.statistics(), torch.full((len(wave),), float(sums.samples), device=self._device)
        at, found = torch.arange(len(wave), device=self._device), maps
        for look, draw in enumerate(self._draws[1:]):
            on = torch.nonzero(self._doubtful(look, found, held) > self._most[look])[:, 0]
            if not len(on):
                break
            at = at[on]
            held = [{index: (p[on], f[on]) for index, (p, f) in of_member.items()} for of_member in held]
            held, _ = self._drawn(wave[at], draw, held)
            sums, of_members = self._sums(held)
            found, samples[at] = sums.statistics(), float(sums.samples)
            for field, values in found.items():
                maps[field][at] = values
            for mean, anew in zip(means, of_members, strict=True):
                mean[at] = anew
        maps[SAMPLES] = samples[:, None, None, None].expand(-1, 1, *wave.shape[2:])
        return WaveAnswers(stacked(maps), means, features, [int(n) for n in samples.tolist()])

    def measure(self, wave: torch.Tensor) -> list[TileEffort]:
        """What full effort changes of each tile of (tiles, channels, tile, tile), at each look."""
        held: list[Held] = [{} for _ in range(self._group.count)]
        looks, shares = [], []
        for look, draw in enumerate(self._draws):
            held, _ = self._drawn(wave, draw, held)
            looks.append(self._sums(held)[0].statistics())
            if look < looks_of(len(self._augmentations)):
                shares.append((self._doubtful(look, looks[-1], held) / self._settings.tile**2).tolist())
        efforts = []
        for tile in range(len(wave)):
            *early, full = (self._judged(maps, tile) for maps in looks)
            changed, shift, empty = zip(*(difference(one, full) for one in early), strict=True)
            efforts.append(TileEffort(tuple(share[tile] for share in shares), changed, shift, empty[0]))
        return efforts

    def _judged(self, maps: Maps, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictive variance and classes of a tile, (y, x) each."""
        masks = class_masks(maps[PROBABILITY][tile], multilabel=self._settings.multilabel)
        return maps[EPISTEMIC][tile, 0] + maps[ALEATORIC][tile, 0], masks

    def _doubtful(self, look: int, maps: Maps, held: list[Held]) -> torch.Tensor:
        """Pixels in doubt of each tile: by what members say apart, and from the second look on by what each does."""
        settings = self._settings
        if look == 0:
            variance = maps[EPISTEMIC][:, 0] / self._group.count
        else:
            drawn = [self._draws[0][0], self._draws[1][0]]
            first, second = ([of_member[index][0] for of_member in held] for index in drawn)
            variance = spread_within(first, second, len(self._augmentations))
        return doubtful_pixels(maps[PROBABILITY], variance, settings.classes, multilabel=settings.multilabel)

    def _drawn(self, tiles: torch.Tensor, draw: list[int], held: list[Held]) -> tuple[list[Held], torch.Tensor]:
        """What is held with every member's samples of these augmentations, and the features of the first of them."""
        views = torch.cat([self._augmentations[index].forward(tiles) for index in draw])
        known, features = [], []
        for member, before in enumerate(held):
            probability, flows, encoded = self._ask(member, views)
            features.append(encoded[: len(tiles)])
            parts = zip(draw, probability.chunk(len(draw)), flows.chunk(len(draw)), strict=True)
            known.append(before | {index: sample_of(self._augmentations[index], p, f) for index, p, f in parts})
        return known, torch.cat(features, dim=1)

    def _sums(self, held: list[Held]) -> tuple[SampleSums, list[torch.Tensor]]:
        """The sums of what is held, in the order of the augmentations, and each member's mean."""
        settings, tiles = self._settings, len(next(iter(held[0].values()))[0])
        sums = SampleSums.zeros(tiles, settings.classes, settings.tile, self._device, flows=settings.flows)
        return sums, [sums.add_member(of_member[index] for index in sorted(of_member)) for of_member in held]

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
