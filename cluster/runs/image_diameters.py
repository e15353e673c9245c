"""The typical diameter of an image's objects, estimated before its first region: ``--diameter auto``.

Two passes over a part of the image, as in Cellpose: the first says roughly how large objects are, by the style of the
image where a member has a size model, else by objects at the scale of the plan; the second makes objects at the scale
that follows, whose median counts. Both run on cores, in fp32 and without augmentations, whatever the run takes: the
result depends on image and ensemble alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from chorus.cluster.planning.image_statistics import image_statistics, stored_pixels
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.planning.planned_image import PlannedImage, RegionPlace
from chorus.cluster.planning.resolved_settings import ResolvedSettings, inference_settings
from chorus.cluster.regions.work import region_work
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.fields import FLOW, PROBABILITY
from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.ensembles.ensemble import Ensemble, Inputs, read_ensemble
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.instances.methods import Method
from chorus.pipeline.instances.plane_objects import PlaneInMemory, plane_objects
from chorus.pipeline.instances.regions import ObjectSettings
from chorus.pipeline.instances.shapes import SQUARE
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.members.contract import Encoding, Member, SizeRegression
from chorus.pipeline.preprocessing.resampling import shape_of
from chorus.pipeline.scores.image_scores import FIXED_POINT

# Edge of the windows that are looked at, in pixels at the ensemble's scale, and how many of a large plane.
_WINDOW, _MOST_WINDOWS = 1024, 4
# Images are scaled by this at most, and by one over it at least.
_MOST_SCALE = 8.0
_MINIMUM_SIZE = 15
_NO_STYLE = 1e-12
_CPU = torch.device("cpu")


class Estimate(BaseModel):
    """The diameter of an image's objects.

    Attributes
    ----------
    diameter_px : in pixels of the image's level
    first_px : after the first pass
    by : what the first pass went by; ``ensemble`` where no object was found in either pass
    """

    diameter_px: float
    first_px: float
    by: Literal["style", "objects", "ensemble"]


@dataclass(frozen=True)
class _Loaded:
    """Members on cores, with what feeds them; `sizes` by member, those that have a size model."""

    ensemble: Ensemble
    settings: ResolvedSettings
    members: Sequence[Member]
    inputs: Inputs
    engine: Engine
    sizes: dict[int, SizeRegression]


@dataclass(frozen=True)
class _Pass:
    """One pass over the windows of an image at one scale: areas of objects in its pixels, and sums of features."""

    areas: NDArray[np.float64]
    features: NDArray[np.float64]


def measure_diameter(context: RunContext, image: PlannedImage) -> Estimate:
    """Estimate the diameter of an image's objects and store it, unless a session has done so.

    Raises
    ------
    ImageError
        If the image cannot be read.
    """
    url = context.diameter_url(image.name)
    if (stored := stored_estimate(url)) is not None:
        return stored
    found = _estimated(_loaded(context), context, image)
    with storage_errors(url):
        storage.write_bytes(url, found.model_dump_json().encode())
    return found


def stored_estimate(url: str) -> Estimate | None:
    """Return what a session stored; None where there is nothing, or it is damaged."""
    with storage_errors(url):
        if not storage.exists(url):
            return None
        data = storage.read_bytes(url)
    try:
        return Estimate.model_validate_json(data)
    except ValidationError:
        return None


def with_known_diameters(context: RunContext, table: ImageTable, ensemble: Ensemble) -> ImageTable:
    """Return the table with the scale of each image whose diameter is known; as it is without ``--diameter auto``."""
    if context.settings.diameter != "auto":
        return table
    found = ((index, stored_estimate(context.diameter_url(name))) for index, name in enumerate(table.names))
    trained = _trained(ensemble)
    return table.resized(
        {index: _scaled(table.image(index), trained / one.diameter_px) for index, one in found if one is not None}
    )


def _scaled(image: PlannedImage, factor: float) -> tuple[int, int]:
    height, width = shape_of((image.height, image.width), (factor, factor))
    return height, width


def _trained(ensemble: Ensemble) -> float:
    trained = ensemble.spec.input.diameter_px
    assert trained is not None  # `resolve` refuses others
    return trained


def _loaded(context: RunContext) -> _Loaded:
    return _loaded_once(context.ensemble, context.session, context.settings.model_dump_json(), context.trust_code)


@lru_cache(maxsize=1)
def _loaded_once(url: str, session: str, settings: str, trust_code: bool) -> _Loaded:
    """Load the members, once per session and process."""
    ensemble = read_ensemble(url, trust_code=trust_code)
    plain = {"augmentations": ["identity"], "device": "cpu", "precision": "fp32", "backend": "eager", "batch": 4}
    plainly = ResolvedSettings.model_validate_json(settings).model_copy(update=plain | {"bound": None})
    indices = range(len(ensemble.spec.members))
    members = load_members(ensemble, indices, _CPU, plainly.tile, "eager", "fp32")
    inputs = ensemble.inputs(indices, plainly.tile)
    engine = Engine(members, inference_settings(plainly, ensemble), _CPU, inputs.channels)
    regressions = (ensemble.spec.members[i].size_regression(ensemble.asked(i, plainly.tile)) for i in indices)
    sizes = {index: one for index, one in enumerate(regressions) if one is not None}
    return _Loaded(ensemble, plainly, members, inputs, engine, sizes)


def _estimated(loaded: _Loaded, context: RunContext, image: PlannedImage) -> Estimate:
    trained = _trained(loaded.ensemble)
    planned = math.sqrt(image.model_height * image.model_width / (image.height * image.width))
    first = _look(loaded, context, image, planned)
    said = _by_style(loaded, first.features) if loaded.sizes else _median(first.areas)
    rough = _kept(said or trained, trained) / planned
    found = _median(_look(loaded, context, image, trained / rough).areas)
    diameter = rough if found is None else _kept(found, trained) * rough / trained
    by: Literal["style", "objects"] = "style" if loaded.sizes else "objects"
    return Estimate(diameter_px=diameter, first_px=rough, by="ensemble" if said is None and found is None else by)


def _kept(diameter: float, trained: float) -> float:
    return min(max(diameter, trained / _MOST_SCALE), trained * _MOST_SCALE)


def _median(areas: NDArray[np.float64]) -> float | None:
    """Return the median diameter of discs of these areas; None where there is none.

    References
    ----------
    ``cellpose.utils.diameters``.
    """
    return float(np.median(2 * np.sqrt(areas / np.pi))) if areas.size else None


def _by_style(loaded: _Loaded, features: NDArray[np.float64]) -> float:
    """Return the geometric mean of what the size models say of the style, in pixels that the members saw."""
    said, start = [], 0
    for index, member in enumerate(loaded.members):
        length = member.features if isinstance(member, Encoding) else 0
        if index in loaded.sizes:
            style = features[start : start + length]
            norm = max(float(np.linalg.norm(style)), _NO_STYLE)
            said.append(math.log(loaded.sizes[index].diameter(style / norm)))
        start += length
    return math.exp(sum(said) / len(said))


def _look(loaded: _Loaded, context: RunContext, image: PlannedImage, factor: float) -> _Pass:
    """Run the members over windows of the middle plane at a scale, and make objects there."""
    height, width = _scaled(image, factor)
    seen = replace(image, model_height=height, model_width=width)
    statistics = image_statistics(context, image, loaded.ensemble)
    z = image.planes[1] // 2
    read = partial(stored_pixels(image, strict=context.settings.strict), 0, z)
    areas: list[NDArray[np.float64]] = []
    features: list[NDArray[np.float64]] = []
    for window in _windows(image, factor):
        where = RegionPlace(0, z, window)
        work = region_work(seen, 0, where, loaded.settings, loaded.inputs, statistics, read)
        posterior = loaded.engine.posterior(work.plane, work.target, work.features)
        features.append(work.features.sums() / FIXED_POINT)
        whole = window.shape == (image.height, image.width)
        areas += _areas(posterior, loaded.ensemble, whole=whole)
    return _Pass(np.concatenate(areas), np.sum(features, axis=0))


def _windows(image: PlannedImage, factor: float) -> Iterator[Window]:
    grid = RegionGrid.make((image.height, image.width), max(1, round(_WINDOW / factor)))
    number = min(grid.count, _MOST_WINDOWS)
    for index in range(number):
        yield grid.window((2 * index + 1) * grid.count // (2 * number))


def _areas(posterior: Posterior, ensemble: Ensemble, *, whole: bool) -> Iterator[NDArray[np.float64]]:
    """Yield areas of the objects of each class, without those that the border of a window cuts."""
    flows = posterior.maps(FLOW) if FLOWS in ensemble.outputs else None
    values = range(1, len(ensemble.spec.classes))
    probability = {}
    if ensemble.multilabel:
        probability = dict(zip(values, posterior.maps(PROBABILITY), strict=True))
    plane = PlaneInMemory(posterior.labels, probability, flows)
    shape = (posterior.labels.shape[0], posterior.labels.shape[1])
    settings = ObjectSettings(max(1.0, _trained(ensemble)), _MINIMUM_SIZE, lengths=ensemble.spec.flow_lengths)
    method: Method = "watershed" if flows is None else "flows"
    for value in values:
        rows = plane_objects(plane, shape, value, method, settings, lambda _: [], [], max(shape), SQUARE).rows
        kept = rows if whole else rows[~rows["touches_border"].astype(bool)]
        yield kept["area"].to_numpy(np.float64)
