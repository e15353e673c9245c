"""One image in memory, region by region as in a run: posterior, labels, scores, objects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chorus.cluster.arrays.sources import ArraySource
from chorus.cluster.planning.image_statistics import measured
from chorus.cluster.planning.plan import layout_of
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.regions.maps import saved_maps
from chorus.cluster.regions.work import region_result, region_work
from chorus.cluster.runs.finish_image import image_record
from chorus.cluster.state.ledger import ImageRecord
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.inference.engine import Engine
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import posterior_axes, semantic_labels
from chorus.pipeline.preprocessing.preparation import Measure, Statistics

Labels = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Computed:
    """What a run would have stored of an image.

    Attributes
    ----------
    layout : axes, channels, classes
    maps : what is kept of the posterior, of the axes of `posterior_axes(layout)`
    labels : classes, of the axes of `layout`
    record : its scores and features
    """

    layout: ImageLayout
    maps: NDArray[np.floating[Any]]
    labels: Labels
    record: ImageRecord


def of_one_image(measures: frozenset[Measure], measure: Callable[[frozenset[Measure]], Statistics]) -> Statistics:
    """Return the statistics of an image, and of a data set that consists of this image alone.

    Parameters
    ----------
    measure : gives those of the image
    """
    if not measures:
        return {}
    known = measure(frozenset(replace(one, per="image") for one in measures))
    return {one: known[replace(one, per="image")] for one in measures}


def compute(
    source: ArraySource,
    image: PlannedImage,
    ensemble: Ensemble,
    engine: Engine,
    settings: ResolvedSettings,
    answered: Callable[[int], None],
) -> Computed:
    """Compute posterior, labels and scores of an image.

    Parameters
    ----------
    engine : has all members of the ensemble
    answered : is told of how many more tiles

    Raises
    ------
    ImageError : a pixel is not a number, or members do not answer with numbers
    """
    inputs = ensemble.inputs(range(len(ensemble.spec.members)), settings.tile)
    pixels = partial(source.read, image)
    statistics = of_one_image(inputs.measures, lambda measures: measured(image, measures, pixels))
    layout = layout_of(image, ensemble, settings, "")
    lengths = dict(zip(layout.axes, layout.shape, strict=True)) | {"c": len(layout.channels)}
    axes = posterior_axes(layout)
    maps = np.zeros([lengths[axis] for axis in axes], settings.dtype)
    labels = np.zeros(layout.shape, semantic_labels(layout).dtype)
    records = []
    for index in range(image.regions):
        where, started = image.locate(index), time.perf_counter()
        read: Callable[[Window], NDArray[Any]] = partial(pixels, where.t, where.z)
        work = region_work(image, index, where, settings, inputs, statistics, read)
        posterior = engine.posterior(work.plane, work.target, work.features, answered)
        busy = time.perf_counter() - started
        posterior, record = region_result(work, posterior, work.features.sums(), ensemble, settings, busy)
        records.append(record)
        at: dict[str, int | slice] = {"t": where.t, "z": where.z, "c": slice(None)}
        at |= {"y": where.window.y.slice, "x": where.window.x.slice}
        kept = saved_maps(posterior, settings.save, settings.dtype)
        if kept is not None:
            maps[tuple(at[axis] for axis in axes)] = kept
        labels[tuple(at[axis] for axis in layout.axes)] = posterior.labels
    return Computed(layout, maps, labels, image_record(image, ensemble, statistics, records))


@contextmanager
def torch_threads(settings: ResolvedSettings) -> Iterator[None]:
    """Give torch as many threads as in a run inside the context, and restore the number afterwards."""
    before = torch.get_num_threads()
    device_of(settings.device).use_threads(settings.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
