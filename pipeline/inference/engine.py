"""The hot loop: a window of an image and the members become a posterior. Pure torch; no reading, no writing.

Tiles of the image's grid are taken in row-major order in batches of one fixed shape (the last one is padded with
zeros). Members run one after the other, each with all augmentations in one call, so that samples are summed in the same
order however members are distributed over devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from chorus.pipeline.core.augmentation import plain_augmentation
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.core.tiling import Tile
from chorus.pipeline.inference.adaptive import AdaptiveSampler, tiles_in_wave
from chorus.pipeline.inference.adaptive_bound import TileEffort
from chorus.pipeline.inference.blending import BandBlender, gaussian_window
from chorus.pipeline.inference.device_transfer import Landing, landing
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.members import MemberGroup
from chorus.pipeline.inference.posterior_builder import InferenceSettings, PosteriorBuilder
from chorus.pipeline.inference.stages import StageState
from chorus.pipeline.inference.tile_stream import PlaneWindow, RegionInProgress, TileSource, batches_of_tiles
from chorus.pipeline.members.contract import Member


class Engine:
    """Turn windows of planes, or of volumes, into posteriors, with a group of members on one device.

    Parameters
    ----------
    members : of the ensemble, or of one stage of it, in the ensemble's order
    settings : of the run
    device : that computes
    inputs : channels of a tile that each member sees; all by default
    short_of_memory : called whenever a call of a member runs out of memory
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: InferenceSettings,
        device: torch.device,
        inputs: Sequence[slice] | None = None,
        short_of_memory: Callable[[], None] | None = None,
    ) -> None:
        self._count = len(members)
        calls = settings if settings.effort is None else _plain_calls(settings)
        self._group = MemberGroup(members, calls, device, inputs, short_of_memory)
        self._rounds = None if settings.effort is None else AdaptiveSampler(self._group, settings, device)
        self._settings = settings
        self._device = device
        self._weights = gaussian_window(settings.covered).to(device)

    @property
    def tiles_per_call(self) -> int:
        """Tiles per call of a member: a batch, or fewer after a call ran out of memory."""
        views = 1 if self._rounds is None else len(self._settings.augmentations)
        return max(1, self._group.calls.tiles // views)

    def posterior(
        self,
        plane: PlaneWindow,
        target: Window,
        features: TileFeatures | None = None,
        answered: Callable[[int], None] = lambda tiles: None,
    ) -> Posterior:
        """Compute the posterior of `target`, a window of the image, with all members of the ensemble.

        Parameters
        ----------
        features : collects those of the members' encoders
        answered : called after each batch with the number of its tiles
        """
        with torch.inference_mode():
            region = self.begin(plane, target, features)
            while waiting := region.waiting:
                self.answer([(region, self.batch)])
                answered(waiting - region.waiting)
            self._land()
            return region.posterior()

    @property
    def ahead(self) -> int:
        """How many batches may be queued while the device computes one, so that it never waits for the next."""
        return int(device_of(self._device).streams is not None)

    def landing(self) -> Landing:
        """Return the landing of all that was answered so far; see `chorus.pipeline.inference.device_transfer`."""
        return landing(self._device)

    def _land(self) -> None:
        """Wait until all that was answered so far is on the host."""
        self.landing()()

    @property
    def batch(self) -> int:
        """Tiles that are answered together: those of a call, or of a wave if effort is adaptive."""
        return self._settings.batch if self._rounds is None else tiles_in_wave(self._settings)

    def begin(self, plane: PlaneWindow, target: Window, features: TileFeatures | None = None) -> RegionInProgress:
        """Begin what `posterior` does, to be answered one batch at a time; call it within ``torch.inference_mode``."""
        return RegionInProgress(plane, target, self._settings, self._weights, self._count, features)

    def answer(self, shares: Sequence[tuple[RegionInProgress, int]]) -> None:
        """Answer the given number of next tiles of each region, at most `batch` tiles in total.

        Calls have one fixed shape, so that a tile's bits do not depend on the other tiles.
        """
        settings = self._settings
        batch = torch.zeros((self.batch, shares[0][0].channels, *settings.tile), device=self._device)
        sent: list[tuple[RegionInProgress, list[Tile], int]] = []
        filled = 0
        for region, count in shares:
            tiles = region.send(batch[filled : filled + count])
            sent.append((region, tiles, filled))
            filled += len(tiles)
        if self._rounds is not None:
            wave = self._rounds.answer(batch[:filled])
            maps, means, features, samples = wave.maps, wave.means, wave.features, wave.samples
        else:
            sums = SampleSums.zeros(settings.outputs, len(batch), settings.covered, self._device)
            answers = self._group.add_samples(batch, sums)
            maps, means, features = sums.maps(), answers.means, answers.features
            samples = [sums.samples] * len(batch)
        answer = torch.cat([maps, *means], dim=1)
        for region, tiles, first in sent:
            region.take(tiles, answer[first:], features[first:], samples[first : first + len(tiles)])

    def efforts(self, plane: PlaneWindow, target: Window, features: TileFeatures) -> list[TileEffort]:
        """Measure what full effort changes in each tile that counts for `features`.

        Raises
        ------
        ValueError
            If the engine has no adaptive effort.
        """
        if self._rounds is None:
            raise ValueError("only an engine with a bound has a first round to compare with")
        source = TileSource(plane, target, self._settings, self._device)
        tiles = [tile for tile in plane.grid.tiles(target) if features.counts(tile)]
        efforts = []
        for start in range(0, len(tiles), self.batch):
            wave = torch.stack([source.cut(tile) for tile in tiles[start : start + self.batch]])
            efforts += self._rounds.measure(wave)
        return efforts

    def stage(
        self, plane: PlaneWindow, target: Window, before: StageState | None, features: TileFeatures | None = None
    ) -> StageState:
        """Add these members' samples to the sums of earlier stages.

        Parameters
        ----------
        plane : prepared pixels that the region needs
        target : the window to compute
        before : state of the previous stage; None for the first stage
        features : if given, the encoders' features are added to it
        """
        settings = self._settings
        canvas = PosteriorBuilder(target, settings, self._count, self._device)
        blender = BandBlender(self._count * settings.classes, target, self._weights, canvas.take_members)
        batches: list[SampleSums] = []
        with torch.inference_mode():
            for index, (tiles, batch) in enumerate(TileSource(plane, target, settings, self._device).batches()):
                sums = SampleSums.zeros(settings.outputs, len(batch), settings.covered, self._device)
                if before is not None:
                    sums = before.batch(index, settings.batch, self._device)
                answers = self._group.add_samples(batch, sums)
                for tile, means in zip(tiles, torch.cat(answers.means, dim=1), strict=False):
                    blender.add(tile, means)
                if features is not None:
                    features.add(tiles, answers.features)
                batches.append(sums)
            blender.finish()
        self._land()
        masks = canvas.member_masks
        feature_sums = np.zeros(0, np.int64) if features is None else features.sums()
        if before is not None:
            masks = np.concatenate([before.member_masks, masks])
            feature_sums = np.concatenate([before.features, feature_sums])
        return StageState.of(batches, masks, feature_sums)

    def conclude(self, plane: PlaneWindow, target: Window, state: StageState) -> Posterior:
        """Return the posterior of `target` after every stage has added its samples."""
        settings = self._settings
        canvas = PosteriorBuilder(target, settings, 0, self._device)
        blender = BandBlender(settings.maps, target, self._weights, canvas.take_ensemble)
        with torch.inference_mode():
            for index, tiles in enumerate(batches_of_tiles(plane.grid, target, settings.batch)):
                maps = state.batch(index, settings.batch, self._device).maps()
                for position, tile in enumerate(tiles):
                    blender.add(tile, maps[position])
            blender.finish()
        self._land()
        return canvas.posterior(state.member_masks)


def _plain_calls(settings: InferenceSettings) -> InferenceSettings:
    """Return settings for calls of the same shape, in which each view is a tile of its own."""
    names = settings.augmentations
    plain = (names[plain_augmentation(names)],)
    return replace(settings, augmentations=plain, batch=settings.batch * len(names), effort=None)
