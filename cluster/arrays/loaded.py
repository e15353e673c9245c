"""An ensemble whose members are on a device; loaded once for all images, in a notebook or in a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, cast

import torch

from chorus.cluster.arrays.judging import Judgement, judged
from chorus.cluster.arrays.object_labels import make_objects
from chorus.cluster.arrays.segmentation import Segmentation
from chorus.cluster.arrays.segmenting import compute, torch_threads
from chorus.cluster.arrays.sources import ArraySource
from chorus.cluster.objects.after_predict import with_objects
from chorus.cluster.planning.cost import tile_counts
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import plan_image
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings, inference_settings, resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.runtime.progress_bar import tile_bar
from chorus.cluster.state.documents import ImageRow
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.fields import DEFAULTS
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble, require_planes
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.inference.feature_records import ImageFeatures
from chorus.pipeline.instances.methods import MAP_METHODS, Method, ObjectsMethod
from chorus.pipeline.io import storage
from chorus.pipeline.members.contract import Member
from chorus.pipeline.reference.reference import Reference
from chorus.pipeline.reference.storage import read_reference, reference_url
from chorus.pipeline.reference.words import NO_REFERENCE

OfPlanes = Literal["none", Method]
"""Methods of objects of planes in memory."""


@dataclass(frozen=True, eq=False, repr=False)
class LoadedEnsemble:
    """An ensemble whose members are on a device.

    Made by `chorus.load`; `segment` is what it is for.

    Attributes
    ----------
    ensemble : what `ensemble.yaml` says
    members : on the backend that carries out their networks
    reference : its reference set, where it was calibrated
    base : settings of all images: device, backend, tiles, augmentations
    """

    ensemble: Ensemble
    device: torch.device
    members: tuple[Member, ...]
    reference: Reference | None
    base: ResultSettings
    _engines: dict[tuple[str, ...], Engine] = field(default_factory=dict)

    @classmethod
    def load(cls, url: str, base: ResultSettings, *, trust_code: bool = False) -> LoadedEnsemble:
        """Read an ensemble and try all of its members.

        Raises
        ------
        RefusedError
            where one does not load or answer, or the device is not there
        """
        known = device_of(base.device)
        known.require()
        device = known.torch_device
        ensemble = read_ensemble(url, trust_code=trust_code)
        require_planes(ensemble, "`segment`")
        chosen = resolve(base, ensemble)
        count = range(len(ensemble.spec.members))
        members = load_members(ensemble, count, device, chosen.tile, chosen.backend, chosen.precision, check=True)
        return cls(
            ensemble=ensemble,
            device=device,
            members=tuple(members),
            reference=read_reference(ensemble.url) if storage.exists(reference_url(ensemble.url)) else None,
            # What is measured from here on changes nothing.
            base=base.model_copy(update={"backend": chosen.backend, "batch": chosen.batch}),
        )

    def settings(self, changes: dict[str, object], objects: ObjectsMethod) -> tuple[ResolvedSettings, OfPlanes]:
        """Return `base` with `changes`, and the object method; raise RefusedError as `chorus predict` does.

        Objects of distances, boundaries and affinities are made of stored results alone: ``auto`` makes none of them.
        """
        wanted = ResultSettings.model_validate(self.base.model_dump() | changes)
        request = PredictRequest(sources=[], ensemble=self.ensemble.url, out="", settings=wanted, objects=objects)
        request = with_objects(request, self.ensemble)
        if request.objects in MAP_METHODS:
            if objects != "auto":
                raise RefusedError(
                    f"objects={objects!r}: are made of results on disk; run chorus predict with --objects {objects}"
                )
            request = with_objects(request.model_copy(update={"objects": "none", "settings": wanted}), self.ensemble)
        return resolve(request.settings, self.ensemble), cast(OfPlanes, request.objects)

    def engine(self, settings: ResolvedSettings) -> Engine:
        """Return the engine for the augmentations of `settings`, which decide the effort; built once."""
        key = tuple(settings.augmentations)
        if key not in self._engines:
            inputs = self.ensemble.inputs(range(len(self.members)), settings.tile)
            inference = inference_settings(settings, self.ensemble)
            return self._engines.setdefault(key, Engine(self.members, inference, self.device, inputs.channels))
        return self._engines[key]

    def judged(self, row: ImageRow, features: ImageFeatures) -> Judgement | None:
        """Return flags, reasons and expected Dice, as `chorus flag` gives them; None without a reference set."""
        return None if self.reference is None else judged(row, features, self.reference)

    def segment(
        self,
        array: Any,
        pixel_size: float | tuple[float, float] | None = None,
        channel_axis: int | None = None,
        *,
        axes: str | None = None,
        channel: Sequence[str | int] = (),
        channel_names: Sequence[str] | None = None,
        diameter: float | None = None,
        objects: ObjectsMethod = "auto",
        save: Sequence[str] = DEFAULTS,
        dtype: Literal["float16", "float32"] = "float16",
        name: str = "array",
        progress: bool = True,
    ) -> Segmentation:
        """Segment an image that is in memory, or that an array gives piece by piece.

        The result has the bytes that `chorus predict` writes of the same image. Time points and z planes are segmented
        one by one, as there.

        Parameters
        ----------
        array : NumPy, xarray, dask or zarr array of pixels, integers of 8 to 32 bits or floats; of dask and zarr a
            region is read at a time
        pixel_size : in micrometres, one number or (y, x); the image is resampled to what the members were trained on.
            None takes it as it is
        channel_axis : where the channels are, in an array of one plane
        axes : a letter of t, c, z, y and x for each axis, such as ``"cyx"``; needed for more than two axes, unless
            `channel_axis` or the array itself says which they are, or it is (y, x, 3 or 4): red, green, blue (, alpha)
        channel : names or indices of the channels that the members take, in their order; needed where it is not clear
        channel_names : of all channels
        diameter : of the objects in pixels; then `pixel_size` is not used
        objects : by ``flows``, ``watershed`` or ``components``, or ``none``; ``auto`` is by flows where there are any
        save : maps to keep: probability, uncertainty, epistemic, aleatoric, flow_variance, flows
        dtype : of the maps
        name : of the image in scores and table
        progress : whether a bar is shown

        Raises
        ------
        ChorusError
            in one sentence: axes, channels or pixels do not fit

        Examples
        --------
        >>> result = ensemble.segment(image, pixel_size=0.65)
        >>> result.labels.shape == image.shape
        True
        >>> result.objects["nucleus"].max(), result.scores["uncertainty"]  # doctest: +SKIP
        (83, 0.0213)
        >>> result = ensemble.segment(stack, axes="czyx", channel=["dna"])  # doctest: +SKIP
        """
        source = ArraySource.of(array, axes, channel_axis, pixel_size, channel_names, name)
        changes: dict[str, object] = {"channel": [str(one) for one in channel], "diameter": diameter}
        settings, method = self.settings(changes | {"save": list(save), "dtype": dtype}, objects)
        image = plan_image(source.image, self.ensemble, settings)
        tiles, _, _ = tile_counts(ImageTable.collect([image]), settings)
        with torch_threads(settings), tile_bar(tiles, name, shown=progress) as answered:
            computed = compute(source, image, self.ensemble, self.engine(settings), settings, answered)
        object_labels = None
        if method != "none":
            object_labels = make_objects(computed, image, source, self.ensemble, settings, method)
        judgement = self.judged(computed.record.row, computed.record.features)
        return Segmentation(name, object_labels, judgement, computed, source, image.channels[0])

    def __repr__(self) -> str:
        return f"<LoadedEnsemble {'; '.join(self._sentences())}>"

    def _repr_html_(self) -> str:
        title, *others = self._sentences()
        return f"<div><b>{escape(title)}</b>: {escape('; '.join(others))}</div>"

    def _sentences(self) -> list[str]:
        spec = self.ensemble.spec
        size = spec.input.plane_pixel_um
        return [
            spec.name,
            f"{len(spec.members)} members for {', '.join(entry.name for entry in spec.classes[1:])}",
            f"channels: {', '.join(spec.input.channels)}" + (f" at {size:g} um a pixel" if size else ""),
            f"on {self.device.type} by {self.base.backend}",
            "with a reference set" if self.reference is not None else NO_REFERENCE,
        ]
