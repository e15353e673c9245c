"""An ensemble on a device, ready to predict; its members are loaded once for all kinds of requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from chorus.cluster.arrays.judging import Judgement
from chorus.cluster.arrays.loaded import LoadedEnsemble
from chorus.cluster.planning.resolved_settings import ResolvedSettings, outputs_of
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.state.documents import ImageRow
from chorus.pipeline.core.fields import CHOICES, DEFAULTS, FIELDS
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble, require_planes
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.feature_records import ImageFeatures
from chorus.pipeline.inference.posterior_builder import tiles_per_call
from chorus.pipeline.reference.words import NO_REFERENCE
from chorus.serving.contract.schemas import EnsembleInfo, EnsembleName, PredictOptions
from chorus.serving.contract.settings import ServeSettings


def read_served(url: str, settings: ServeSettings) -> Ensemble:
    """Read an ensemble, without its weights; raise RefusedError if it cannot be, or its members take volumes."""
    ensemble = read_ensemble(url, trust_code=settings.trust_code)
    require_planes(ensemble, "`chorus serve`")
    return ensemble


@dataclass(frozen=True)
class Hosted:
    """An ensemble that clients can use.

    Attributes
    ----------
    name : by which clients call it
    loaded : the ensemble on its device
    """

    name: str
    loaded: LoadedEnsemble

    @classmethod
    def load(cls, name: str, url: str, settings: ServeSettings) -> Hosted:
        """Read an ensemble and try all of its members; raise RefusedError where one does not load or predict."""
        ensemble = read_served(url, settings)
        wanted = ResultSettings(
            device=settings.device,
            precision=settings.precision,
            backend=settings.backend,
            effort=settings.effort,
            threads=settings.threads,
            # The batch that is fastest for a long run may exceed the tiles of an image and be padded with zeros.
            batch=tiles_per_call(settings.device, ensemble.spec.tile_shape, len(ensemble.spec.augmentations)),
        )
        hosted = cls(name, LoadedEnsemble.load(url, wanted, trust_code=settings.trust_code))
        assert wanted.batch is not None
        hosted._warm_up(wanted.batch * len(ensemble.spec.augmentations))
        return hosted

    @property
    def ensemble(self) -> Ensemble:
        """Return the loaded ensemble."""
        return self.loaded.ensemble

    @property
    def device(self) -> torch.device:
        """Return the device that the members are on."""
        return self.loaded.device

    def _warm_up(self, samples: int) -> None:
        """Convert the members' networks before the first client waits for it."""
        tile = self.ensemble.spec.edge
        with torch.inference_mode():
            for member, channels in zip(self.loaded.members, self.ensemble.all_inputs.channels, strict=True):
                member(torch.zeros((samples, channels.stop - channels.start, tile, tile), device=self.device))

    @property
    def identity(self) -> EnsembleName:
        """Return the name and hash of the ensemble, as answers hold them."""
        return EnsembleName(name=self.name, hash=self.ensemble.hash)

    @cached_property
    def info(self) -> EnsembleInfo:
        """Return the public description of the ensemble."""
        spec = self.ensemble.spec
        given = outputs_of(self.loaded.base, self.ensemble)
        outputs = ["labels", *(["objects"] if FLOWS in self.ensemble.outputs else [])]
        outputs += [name for name, field in FIELDS.items() if field.given(given)]
        return EnsembleInfo(
            name=self.name,
            hash=self.ensemble.hash,
            title=spec.name,
            classes=[entry.name for entry in spec.classes],
            channels=spec.input.channels,
            pixel_size_um=spec.input.plane_pixel_um,
            members=len(spec.members),
            tile=spec.edge,
            augmentations=spec.augmentations,
            flows=FLOWS in self.ensemble.outputs,
            calibrated=self.loaded.reference is not None,
            unjudged=self.unjudged,
            outputs=outputs,
        )

    @property
    def unjudged(self) -> str | None:
        """Return why results are not judged; None with a reference set."""
        return NO_REFERENCE if self.loaded.reference is None else None

    def settings(self, options: PredictOptions) -> ResolvedSettings:
        """Return the settings of `chorus predict` with these options, objects included; raise RefusedError as it does.

        Augmentations other than the ensemble's get full effort: its bound is valid only for its own.
        """
        own = options.augmentations in (None, self.ensemble.spec.augmentations)
        asked = set(options.outputs) & set(self.info.outputs) & set(CHOICES)
        changes: dict[str, object] = {
            "channel": list(options.channels),
            "level": options.level,
            "diameter": options.diameter,
            "augmentations": None if options.augmentations is None else list(options.augmentations),
            "effort": self.loaded.base.effort if own else "full",
            "save": [*DEFAULTS, *asked],
            "batch": None,
        }
        return self.loaded.settings(changes, "auto")[0]

    def engine(self, settings: ResolvedSettings) -> Engine:
        """Return the engine for these augmentations, which decide the effort; built once."""
        return self.loaded.engine(settings)

    def judged(self, row: ImageRow, features: ImageFeatures) -> Judgement | None:
        """Return flags, reasons and expected Dice, as `chorus flag` gives them; None without a reference set."""
        return self.loaded.judged(row, features)
