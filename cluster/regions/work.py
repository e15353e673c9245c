"""The work on a region between reading its pixels and storing its results: the same in a run and in serving."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.planning.plan import model_centres, model_grid
from chorus.cluster.planning.planned_image import PlannedImage, RegionPlace
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.regions.maps import axis_maps, is_resampled, on_image
from chorus.cluster.state.ledger import RegionRecord
from chorus.cluster.telemetry.timeline import span
from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.ensembles.ensemble import Ensemble, Inputs
from chorus.pipeline.errors import ImageError
from chorus.pipeline.inference.encoder_features import TileFeatures
from chorus.pipeline.inference.feature_records import FeatureSums
from chorus.pipeline.inference.tile_stream import PlaneWindow
from chorus.pipeline.preprocessing.preparation import Statistics
from chorus.pipeline.preprocessing.resampling import AxisMap, resample
from chorus.pipeline.scores.image_quality import appearance
from chorus.pipeline.scores.image_scores import patch_edge, region_sums


@dataclass(frozen=True)
class RegionWork:
    """A region that is being worked on.

    Attributes
    ----------
    region_in_image : its number in the image
    where : its plane and window
    target : the window of the model's grid to compute
    pixels : its own, (channels, *window) as stored
    plane : the normalised pixels of all tiles that touch it
    features : collects those of its tiles
    """

    region_in_image: int
    image: PlannedImage
    where: RegionPlace
    target: Window
    pixels: NDArray[Any]
    plane: PlaneWindow
    features: TileFeatures


def region_work(
    image: PlannedImage,
    region_in_image: int,
    where: RegionPlace,
    settings: ResolvedSettings,
    inputs: Inputs,
    statistics: Statistics,
    read: Callable[[Window], NDArray[Any]],
) -> RegionWork:
    """Return a region with its pixels.

    Parameters
    ----------
    region_in_image, where : its number, and where it lies in the image
    statistics : of the image and the data set, see `chorus.cluster.planning.image_statistics.image_statistics`
    read : gives (channels, *window) as stored of a window of the region's plane or volume
    """
    target = _needed(axis_maps(image), where.window) if is_resampled(image) else where.window
    grid = model_grid(image, settings)
    needed = source = grid.needed(target)
    to_model = [AxisMap.make(*lengths) for lengths in zip(image.layer_shape, image.model_shape, strict=True)]
    if is_resampled(image):
        source = _needed(to_model, needed)
    with span("read"):
        raw = read(source)
    with span("prepare"):
        rows = raw.reshape(len(raw), -1, raw.shape[-1])  # a preparation acts on each pixel alone
        prepared = np.concatenate([preparation.apply(rows, statistics) for preparation in inputs.preparations])
        prepared = prepared.reshape(len(prepared), *raw.shape[1:])
        if is_resampled(image):
            prepared = resample(prepared, source, needed, *to_model)
    own = raw[:, *where.window.within(source)].copy()  # not a view, which would keep all that was read
    features = TileFeatures(grid, model_centres(image, where.window))
    plane = PlaneWindow(prepared, needed, grid, inputs.padding)
    return RegionWork(region_in_image, image, where, target, own, plane, features)


def _needed(axes: Sequence[AxisMap], window: Window) -> Window:
    """Return the source pixels that contribute to a window of the resampled grid."""
    return Window(*(axis.needed(span) for axis, span in zip(axes, window.spans, strict=True)))


def _planes(posterior: Posterior, pixels: NDArray[Any]) -> Iterator[tuple[Posterior, NDArray[Any]]]:
    """Yield the planes of a region with their pixels: scores are sums over planes, also of volumes."""
    if posterior.labels.ndim == 2:
        yield posterior, pixels
        return
    for z in range(len(posterior.labels)):
        fields = {name: maps[:, z] for name, maps in posterior.fields.items()}
        plane = Posterior(fields, posterior.labels[z], posterior.masks[z], posterior.member_masks[:, z])
        yield plane, pixels[:, z]


def region_result(
    work: RegionWork,
    posterior: Posterior,
    features: NDArray[np.int64],
    ensemble: Ensemble,
    settings: ResolvedSettings,
    busy: float,
) -> tuple[Posterior, RegionRecord]:
    """Return the posterior on the region's own pixels, and the region's record for the ledger.

    Parameters
    ----------
    posterior : of `work.target`
    features : sums of the members' features
    busy : seconds that the device was held

    Raises
    ------
    ImageError : a member predicts values that are not finite
    """
    # Flows that are no numbers are taken as no flows.
    judged = (maps for name, maps in posterior.fields.items() if FIELDS[name].role != FLOWS)
    if not all(np.isfinite(maps).all() for maps in judged):
        # Its labels would be background everywhere, like those of an empty image, although there is no prediction.
        raise ImageError(
            f"{work.image.url}: region {work.region_in_image}: members answer with NaN; look for pixels far beyond "
            f"what they were trained on, check the normalisation, or use --precision fp32"
        )
    if is_resampled(work.image):
        posterior = on_image(posterior, work.image, work.target, work.where.window)
    classes, multilabel, patch = len(ensemble.spec.classes), ensemble.multilabel, patch_edge(settings.chunk)
    parts = list(_planes(posterior, work.pixels))
    record = RegionRecord(
        region=work.region_in_image,
        sums=functools.reduce(
            operator.add, (region_sums(plane, classes, multilabel=multilabel, patch=patch) for plane, _ in parts)
        ),
        appearance=functools.reduce(
            operator.add,
            (appearance(pixels, plane.masks, classes, multilabel=multilabel, patch=patch) for plane, pixels in parts),
        ),
        features=FeatureSums.of(work.features.tiles, features),
        tiles=work.plane.grid.tile_count(work.target),
        seconds=round(busy, 3),
        samples=None if settings.bound is None else work.features.samples,
    )
    return posterior, record
