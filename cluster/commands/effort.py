"""``chorus ensemble effort``: the effect of augmentations on reference images, and the bound derived from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.cluster.planning.image_statistics import measured, measures_of, stored_pixels
from chorus.cluster.planning.plan import plan_images
from chorus.cluster.planning.planned_image import PlannedImage, RegionPlace
from chorus.cluster.planning.resolved_settings import ResolvedSettings, inference_settings, resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.regions.work import region_work
from chorus.pipeline.backends.loading import load_members
from chorus.pipeline.core.device import DeviceKind
from chorus.pipeline.core.geometry import Window, of_each
from chorus.pipeline.ensembles.editing import set_effort
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble, require_planes
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.inference.adaptive_bound import EffortBound, TileEffort, find_factors, looks_of, stopped_at
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import FailedImage
from chorus.pipeline.io.sources.reading import open_level, read_window


def add_effort(
    ensemble_url: str,
    sources: Sequence[str],
    *,
    changed: float = 0.01,
    shift: float = 0.005,
    risk: float = 0.05,
    confidence: float = 0.95,
    reference: str = "",
    device: DeviceKind = "cpu",
    trust_code: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Ensemble, EffortBound]:
    """Process reference images with full effort, and write the resulting bound to ``ensemble.yaml``.

    Parameters
    ----------
    sources : OME-Zarr images that represent those to be processed later
    changed, shift, risk, confidence : see `chorus.pipeline.inference.adaptive_bound.EffortBound`
    reference : description of the images, for people
    note : receives messages on the progress

    Raises
    ------
    RefusedError
        If an image cannot be processed, the ensemble has no passes to save, or no bound meets the request.
    """
    ensemble = read_ensemble(ensemble_url, trust_code=trust_code)
    storage.check_writable(ensemble.url)
    settings = resolve(ResultSettings(device=device), ensemble)
    asked = {"changed": changed, "shift": shift, "risk": risk, "confidence": confidence}
    of_images = list(tile_efforts(ensemble, settings, sources, note))
    tiles = [tile for image in of_images for tile in image]
    factors = find_factors(tiles, **asked)
    bound = EffortBound(
        factors=factors,
        ensemble=ensemble.hash,
        tile=settings.tile_shape[0],
        overlap=of_each(settings.overlap, 2)[0],
        augmentations=settings.augmentations,
        images=len(of_images),
        tiles=len(tiles),
        stopped=stopped_at(tiles, factors, changed),
        reference=reference,
        **asked,
    )
    return set_effort(ensemble.url, bound).ensemble, bound


def tile_efforts(
    ensemble: Ensemble, settings: ResolvedSettings, sources: Sequence[str], note: Callable[[str], None]
) -> Iterator[list[TileEffort]]:
    """Yield for each image what full effort changes in each of its tiles, each tile once.

    Parameters
    ----------
    settings : of full effort

    Raises
    ------
    RefusedError
        If an image cannot be processed, or the ensemble has no passes to save.
    """
    _check(ensemble, settings)
    images = tiles = 0
    with torch.inference_mode():
        engine = _engine(ensemble, settings)
        for image in plan_images(sources, ensemble, settings):
            if isinstance(image, FailedImage):
                raise RefusedError(f"{image.message}; leave it out of the reference images")
            try:
                efforts = [effort for part in _efforts(engine, ensemble, settings, image) for effort in part]
            except ImageError as error:
                raise RefusedError(f"{error}; leave it out of the reference images") from error
            images, tiles = images + 1, tiles + len(efforts)
            note(f"{images} images, {tiles} tiles")
            yield efforts


def _check(ensemble: Ensemble, settings: ResolvedSettings) -> None:
    """Raise RefusedError if there is nothing to leave out, or nothing to decide by."""
    require_planes(ensemble, "adaptive effort")
    if len(ensemble.spec.members) < 2 or len(settings.augmentations) < 2:
        raise RefusedError(
            f"{ensemble.url}: has {len(ensemble.spec.members)} members and {len(settings.augmentations)} "
            f"augmentations; adaptive effort needs two of both, to judge by the former and leave out the latter"
        )
    if measures_of(ensemble, settings.tile, "dataset"):
        raise RefusedError(
            f"{ensemble.url}: a member normalises by statistics of all images of a run, so that what it says of one "
            f"image depends on the others; such an ensemble cannot have a bound"
        )


def _engine(ensemble: Ensemble, settings: ResolvedSettings) -> Engine:
    """Return an engine of adaptive effort, so that it has a first round; its bound is never used."""
    device = torch.device(settings.device)
    count = range(len(ensemble.spec.members))
    members = load_members(ensemble, count, device, settings.tile, settings.backend, settings.precision, check=True)
    bound = EffortBound(
        factors=[1.0] * looks_of(len(settings.augmentations)),
        ensemble=ensemble.hash,
        tile=settings.tile_shape[0],
        overlap=of_each(settings.overlap, 2)[0],
        augmentations=settings.augmentations,
        images=1,
        tiles=1,
        stopped=[],
    )
    inference = replace(inference_settings(settings, ensemble), effort=bound)
    return Engine(members, inference, device, ensemble.all_inputs.channels)


def _efforts(
    engine: Engine, ensemble: Ensemble, settings: ResolvedSettings, image: PlannedImage
) -> Iterator[list[TileEffort]]:
    """Yield the effort of every tile of an image, region by region, each tile once."""
    known = measured(image, measures_of(ensemble, settings.tile, "image"), stored_pixels(image, strict=settings.strict))
    array = open_level(image.url, image.level_path, image.ngff)
    for region in range(image.regions):
        where = image.locate(region)

        def read(window: Window, where: RegionPlace = where) -> NDArray[np.generic]:
            return read_window(array, image.axes, where.t, where.z, image.channels, window)

        work = region_work(image, region, where, settings, ensemble.all_inputs, known, read)
        yield engine.efforts(work.plane, work.target, work.features)
