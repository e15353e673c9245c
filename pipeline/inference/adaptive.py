"""Adaptive effort in the engine: tiles are sampled in rounds, in waves, until each tile is done.

::

    wave        tile tile tile tile tile tile tile tile       (as many as fill two calls with all their views)
    round 1     every member, the tile without augmentation   full calls
    judged      done  -   done done  -   done done done       each tile by itself, by
                                                              `chorus.pipeline.inference.adaptive_bound`
    round 2          ...            ...                       every member, one more augmentation
    judged           done            -
    round 3                         ...                       every member, all other augmentations

Every call has the same shape as with full effort (batch times augmentations), and samples are added in the same order
as with full effort. A tile that gets all samples therefore has the same bits as with full effort, and a tile that is
done early has the bits of a run with fewer augmentations in calls of that shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from chorus.pipeline.core.augmentation import AUGMENTATIONS, plain_augmentation, sample_of
from chorus.pipeline.core.class_labels import class_masks
from chorus.pipeline.core.field import Field
from chorus.pipeline.core.fields import ALEATORIC, EPISTEMIC, PROBABILITY, SAMPLES
from chorus.pipeline.core.outputs import CLASSES, Role
from chorus.pipeline.core.sample_sums import Sample, SampleSums, stacked
from chorus.pipeline.inference.adaptive_bound import TileEffort, difference, doubtful_pixels, looks_of, spread_within
from chorus.pipeline.inference.posterior_builder import InferenceSettings

if TYPE_CHECKING:
    from chorus.pipeline.inference.members import MemberGroup

# Calls of the first round in a wave: more calls fill those of the later rounds better, but hold more samples in memory.
_CALLS = 2
Held = dict[int, Sample]
"""A member's samples of some tiles, by the index of the augmentation."""
Maps = dict[Field, torch.Tensor]
"""Statistics of some tiles, (tiles, channels, tile, tile) float32 of each field, see `SampleSums.statistics`."""


def tiles_in_wave(settings: InferenceSettings) -> int:
    """Return the number of tiles that are answered together when effort is adaptive."""
    return _CALLS * settings.batch * len(settings.augmentations)


@dataclass(frozen=True)
class WaveAnswers:
    """Posterior statistics of the tiles of a wave.

    Attributes
    ----------
    maps : (tiles, maps, tile, tile) float32, channels in the order of `InferenceSettings.layout`
    means : one tensor per member with its mean probability, (tiles, classes, tile, tile) float32
    features : (tiles, features) int64 in units of 2^-32
    samples : number of samples (members times augmentations) per tile
    """

    maps: torch.Tensor
    means: list[torch.Tensor]
    features: torch.Tensor
    samples: list[int]


class AdaptiveSampler:
    """Answer waves of tiles with no more samples than each tile needs.

    Parameters
    ----------
    group : the members, set up for a single augmentation (`plain_augmentation`) and calls of batch times augmentations
        tiles
    settings : of the run
    device : that computes
    """

    def __init__(self, group: MemberGroup, settings: InferenceSettings, device: torch.device) -> None:
        self._group, self._settings, self._device = group, settings, device
        self._augmentations = [AUGMENTATIONS[name] for name in settings.augmentations]
        plain = plain_augmentation(settings.augmentations)
        others = [index for index in range(len(self._augmentations)) if index != plain]
        # Augmentations drawn in each round; no judgement follows the last one.
        self._draws = [draw for draw in ([plain], others[:1], others[1:]) if draw]
        shares = settings.effort.doubtful if settings.effort else []
        self._most = [int(share * math.prod(settings.covered)) if share >= 0 else -1 for share in shares]

    def answer(self, wave: torch.Tensor) -> WaveAnswers:
        """Return the posterior statistics of a wave of tiles.

        Parameters
        ----------
        wave : (tiles, channels, tile, tile) float32 on the device; at most `tiles_in_wave` tiles

        Returns
        -------
        WaveAnswers
            Statistics, member means, encoder features and sample counts per tile.
        """
        held, features = self._drawn(wave, self._draws[0], [{} for _ in range(self._group.count)])
        sums, means = self._sums(held)
        maps, samples = sums.statistics(), torch.full((len(wave),), float(sums.samples), device=self._device)
        at, answer = torch.arange(len(wave), device=self._device), maps
        for step, draw in enumerate(self._draws[1:]):
            on = torch.nonzero(self._doubtful(step, answer, held) > self._most[step])[:, 0]
            if not len(on):
                break
            at = at[on]
            held = [{index: _of_tiles(sample, on) for index, sample in of_member.items()} for of_member in held]
            held, _ = self._drawn(wave[at], draw, held)
            sums, of_members = self._sums(held)
            answer, samples[at] = sums.statistics(), float(sums.samples)
            for field, values in answer.items():
                maps[field][at] = values
            for mean, anew in zip(means, of_members, strict=True):
                mean[at] = anew
        spatial = maps[PROBABILITY].shape[2:]
        maps[SAMPLES] = samples.reshape(-1, 1, *[1] * len(spatial)).expand(-1, 1, *spatial)
        return WaveAnswers(stacked(maps), means, features, [int(n) for n in samples.tolist()])

    def measure(self, wave: torch.Tensor) -> list[TileEffort]:
        """Measure what full effort changes in each tile, compared with stopping at each step.

        Parameters
        ----------
        wave : (tiles, channels, tile, tile) float32 on the device

        Returns
        -------
        list of TileEffort
            One per tile.
        """
        held: list[Held] = [{} for _ in range(self._group.count)]
        looks, shares = [], []
        for step, draw in enumerate(self._draws):
            held, _ = self._drawn(wave, draw, held)
            looks.append(self._sums(held)[0].statistics())
            if step < looks_of(len(self._augmentations)):
                shares.append((self._doubtful(step, looks[-1], held) / math.prod(self._settings.covered)).tolist())
        efforts = []
        for tile in range(len(wave)):
            *early, full = (self._judged(maps, tile) for maps in looks)
            changed, shift, empty = zip(*(difference(one, full) for one in early), strict=True)
            efforts.append(TileEffort(tuple(share[tile] for share in shares), changed, shift, empty[0]))
        return efforts

    def _judged(self, maps: Maps, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predictive variance, (y, x) float32, and class masks, (y, x) int32, of a tile."""
        masks = class_masks(maps[PROBABILITY][tile], multilabel=self._settings.multilabel)
        return maps[EPISTEMIC][tile, 0] + maps[ALEATORIC][tile, 0], masks

    def _doubtful(self, step: int, maps: Maps, held: list[Held]) -> torch.Tensor:
        """Count the pixels in doubt of each tile, (tiles,) int64.

        The first look uses the variance between members, the second one the variance within each member.
        """
        settings = self._settings
        if step == 0:
            variance = maps[EPISTEMIC][:, 0] / self._group.count
        else:
            drawn = [self._draws[0][0], self._draws[1][0]]
            first, second = ([of_member[index][CLASSES] for of_member in held] for index in drawn)
            variance = spread_within(first, second, len(self._augmentations))
        return doubtful_pixels(maps[PROBABILITY], variance, settings.classes, multilabel=settings.multilabel)

    def _drawn(self, tiles: torch.Tensor, draw: list[int], held: list[Held]) -> tuple[list[Held], torch.Tensor]:
        """Draw every member's samples of these augmentations.

        Returns `held` extended by these samples, and the encoder features of the first augmentation drawn,
        (tiles, features) int64.
        """
        views = torch.cat([self._augmentations[index].forward(tiles) for index in draw])
        known, features = [], []
        for member, before in enumerate(held):
            values, encoded = self._ask(member, views)
            features.append(encoded[: len(tiles)])
            parts = {role: of_role.chunk(len(draw)) for role, of_role in values.items()}
            drawn = {
                index: sample_of(
                    self._augmentations[index],
                    {role: chunks[turn] for role, chunks in parts.items()},
                    self._settings.outputs,
                )
                for turn, index in enumerate(draw)
            }
            known.append(before | drawn)
        return known, torch.cat(features, dim=1)

    def _sums(self, held: list[Held]) -> tuple[SampleSums, list[torch.Tensor]]:
        """Sum the held samples in the order of the augmentations; return the sums and each member's mean."""
        tiles, _, *spatial = next(iter(held[0].values()))[CLASSES].shape
        sums = SampleSums.zeros(self._settings.outputs, tiles, spatial, self._device)
        return sums, [sums.add_member(of_member[index] for index in sorted(of_member)) for of_member in held]

    def _ask(self, index: int, views: torch.Tensor) -> tuple[dict[Role, torch.Tensor], torch.Tensor]:
        """Return a member's values for any number of views, in calls of one shape; the last is padded with zeros."""
        size = self._settings.batch * len(self._augmentations)
        answers = []
        for start in range(0, len(views), size):
            part = views[start : start + size]
            if (missing := size - len(part)) > 0:
                part = torch.cat([part, part.new_zeros((missing, *part.shape[1:]))])
            answers.append(self._group.ask(index, part))
        of_calls, features = zip(*answers, strict=True)
        joined = {role: torch.cat([values[role] for values in of_calls])[: len(views)] for role in of_calls[0]}
        return joined, torch.cat(features)[: len(views)]


def _of_tiles(sample: Sample, tiles: torch.Tensor) -> Sample:
    """Return the values of some tiles, (tiles,) int64 indices."""
    return {role: values[tiles] for role, values in sample.items()}
