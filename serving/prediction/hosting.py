"""An ensemble on a device, ready to answer; members are loaded once for all ways of asking."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import torch

from chorus.cluster.objects.after_predict import with_objects
from chorus.cluster.planning.plan import ResolvedSettings, inference_settings, outputs_of, resolve
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.state.scores import scores_frame
from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.fields import CHOICES, DEFAULTS, FIELDS
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.inference.encoder_features import ImageFeatures
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.posterior_builder import Precision, tiles_per_call
from chorus.pipeline.io import storage
from chorus.pipeline.members.contract import Member
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.reference.storage import read_reference, reference_url
from chorus.pipeline.scores.registry import STATED
from chorus.serving.contract.schemas import EnsembleInfo, EnsembleName, PredictOptions
from chorus.serving.contract.settings import ServeSettings


@dataclass(frozen=True)
class Hosted:
    """An ensemble whose members are on a device.

    Attributes
    ----------
    name : by which clients call it
    members : on the backend that carries out their networks
    reference : its reference set, where it was calibrated
    precision, backend, effort, threads : as a run would have them
    """

    name: str
    ensemble: Ensemble
    device: torch.device
    members: tuple[Member, ...]
    reference: Reference | None
    precision: Precision = "fp32"
    backend: Backend = "eager"
    effort: Literal["full", "adaptive"] = "full"
    threads: int = 1
    _engines: dict[tuple[str, ...], Engine] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, url: str, settings: ServeSettings) -> Hosted:
        """Read an ensemble and try all of its members; raises RefusedError where one does not load or answer."""
        device = device_of(settings.device).torch_device
        ensemble = read_ensemble(url, trust_code=settings.trust_code)
        wanted = ResultSettings(
            device=settings.device,
            precision=settings.precision,
            backend=settings.backend,
            effort=settings.effort,
            # The fastest for a long run may be more tiles than an image has, which would be filled up with zeros.
            batch=tiles_per_call(settings.device, ensemble.spec.tile, len(ensemble.spec.augmentations)),
        )
        chosen = resolve(wanted, ensemble)
        count, tile = range(len(ensemble.spec.members)), ensemble.spec.tile
        members = load_members(ensemble, count, device, tile, chosen.backend, chosen.precision, check=True)
        reference = read_reference(ensemble.url) if storage.exists(reference_url(ensemble.url)) else None
        hosted = cls(
            name=name,
            ensemble=ensemble,
            device=device,
            members=tuple(members),
            reference=reference,
            precision=chosen.precision,
            backend=chosen.backend,
            effort=chosen.effort,
            threads=settings.threads,
        )
        hosted._warm_up(chosen.batch * len(chosen.augmentations))
        return hosted

    def _warm_up(self, samples: int) -> None:
        """Have the members' networks converted before the first client waits for it."""
        tile = self.ensemble.spec.tile
        with torch.inference_mode():
            for member, channels in zip(self.members, self.ensemble.all_inputs.channels, strict=True):
                member(torch.zeros((samples, channels.stop - channels.start, tile, tile), device=self.device))

    @property
    def identity(self) -> EnsembleName:
        return EnsembleName(name=self.name, hash=self.ensemble.hash)

    @cached_property
    def info(self) -> EnsembleInfo:
        """What clients may know of it."""
        spec = self.ensemble.spec
        given = outputs_of(ResultSettings(effort=self.effort), self.ensemble)
        outputs = ["labels", *(["objects"] if spec.flows else [])]
        outputs += [name for name, field in FIELDS.items() if field.given(given)]
        return EnsembleInfo(
            name=self.name,
            hash=self.ensemble.hash,
            title=spec.name,
            classes=[entry.name for entry in spec.classes],
            channels=spec.input.channels,
            pixel_size_um=spec.input.pixel_size_um,
            members=len(spec.members),
            tile=spec.tile,
            augmentations=spec.augmentations,
            flows=spec.flows,
            calibrated=self.reference is not None,
            outputs=outputs,
        )

    def settings(self, options: PredictOptions) -> ResolvedSettings:
        """Those of `chorus predict` with these options, objects included; raises RefusedError as it does.

        Other augmentations than the ensemble's get full effort: its bound holds for its own.
        """
        own = options.augmentations in (None, self.ensemble.spec.augmentations)
        asked = set(options.outputs) & set(self.info.outputs) & set(CHOICES)
        wanted = ResultSettings(
            channel=list(options.channels),
            level=options.level,
            diameter=options.diameter,
            augmentations=None if options.augmentations is None else list(options.augmentations),
            precision=self.precision,
            backend=self.backend,
            effort=self.effort if own else "full",
            threads=self.threads,
            save=[*DEFAULTS, *asked],
            device=device_of(self.device).kind,
        )
        request = PredictRequest(sources=[], ensemble=self.ensemble.url, out="", settings=wanted, objects="auto")
        return resolve(with_objects(request, self.ensemble).settings, self.ensemble)

    def engine(self, settings: ResolvedSettings) -> Engine:
        """For these augmentations, which decide on the effort; made once."""
        key = tuple(settings.augmentations)
        if key not in self._engines:
            inference = inference_settings(settings, self.ensemble)
            made = Engine(self.members, inference, self.device, self.ensemble.all_inputs.channels)
            return self._engines.setdefault(key, made)
        return self._engines[key]

    def judged(self, row: dict[str, Any], features: ImageFeatures) -> dict[str, Any]:
        """Flags, reasons and what Dice to expect, as `chorus flag` gives them; nothing without a reference set."""
        if self.reference is None:
            return {}
        known = pd.DataFrame({"name": [row["name"]], "features": [features.mean]})
        found = flag_images(scores_frame([row]), self.reference, known).iloc[0]
        said = {one.name: None if pd.isna(found[one.name]) else float(found[one.name]) for one in STATED}
        return {"flags": list(found["flags"]), "reasons": list(found["reasons"]), **said}
