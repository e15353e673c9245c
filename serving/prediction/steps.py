"""A prediction from its source to its result, by the functions that a run uses; nothing here waits for a device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.arrays.object_labels import object_settings, plane_in_memory
from chorus.cluster.arrays.segmenting import of_one_image
from chorus.cluster.planning.plan import layout_of, plan_image
from chorus.cluster.planning.planned_image import PlannedImage, RegionPlace
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.regions.maps import saved_maps
from chorus.cluster.regions.work import RegionWork, region_result, region_work
from chorus.cluster.runs.finish_image import image_record
from chorus.cluster.state.ledger import ImageRecord
from chorus.pipeline.core.field import Field
from chorus.pipeline.core.fields import SAMPLES
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.posterior import Posterior
from chorus.pipeline.instances.plane_objects import converging_objects
from chorus.pipeline.instances.table import numbered
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.preprocessing.preparation import Statistics
from chorus.serving.contract.problems import RequestError
from chorus.serving.contract.schemas import Prediction, PredictOptions, numbers
from chorus.serving.contract.settings import Limits
from chorus.serving.contract.sources import Source, planned_source
from chorus.serving.prediction.hosting import Hosted

Labels = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Planned:
    """The plan of a prediction, before its pixels are read.

    Attributes
    ----------
    image : as a run would plan it
    where : the plane, and the window of it
    """

    hosted: Hosted
    options: PredictOptions
    settings: ResolvedSettings
    source: Source
    image: PlannedImage
    where: RegionPlace


@dataclass(frozen=True)
class Prepared:
    """A prediction whose pixels are read, ready for the members."""

    planned: Planned
    statistics: Statistics
    work: RegionWork


@dataclass(frozen=True)
class Result:
    """The result of an image.

    Attributes
    ----------
    maps : that a run would keep, (channels, y, x) floats of its dtype, in the order of `layout`
    labels : (y, x) classes
    objects : (y, x) label image per class, where requested
    layout : of an image of the window alone
    """

    prediction: Prediction
    maps: NDArray[np.floating]
    labels: Labels
    objects: Mapping[str, Labels]
    layout: ImageLayout

    def channels(self, field: Field) -> NDArray[np.floating]:
        """Return the maps of a field.

        Returns
        -------
        (channels, y, x), of the dtype of `maps`
        """
        return self.maps[field.among(self.layout.channels)]


def plan(hosted: Hosted, source: Source, options: PredictOptions, limits: Limits) -> Planned:
    """Plan a prediction: its plane, window and grid.

    Raises
    ------
    RequestError : plane or window are outside of the image, or it is too large even for a job
    ChorusError : channels, level or diameter do not fit
    """
    settings = hosted.settings(options)
    given = [name for name in hosted.info.outputs if name != SAMPLES.name or settings.bound is not None]
    for output in options.outputs:
        if output not in given:
            raise RequestError(422, f"ensemble {hosted.name} gives no {output}; ask for {', '.join(given)}")
    image = plan_image(planned_source(source), hosted.ensemble, settings)
    if image.pixels > limits.job_pixels:
        raise RequestError(413, f"the image has {image.pixels} pixels, more than the {limits.job_pixels} done here")
    times, depths = image.planes
    if options.t >= times or options.z >= depths:
        raise RequestError(422, f"the image has {times} time points and {depths} planes, counted from 0")
    window = options.place() or Window.of(0, image.height, 0, image.width)
    inside = 0 <= window.y.start < window.y.stop <= image.height and 0 <= window.x.start < window.x.stop <= image.width
    if not inside:
        raise RequestError(422, f"the window must be within 0:{image.height},0:{image.width} and not empty")
    if max(image.model_height, image.model_width) > 1 << 24:
        raise RequestError(413, "the image is too large at the pixel size of the ensemble")
    return Planned(hosted, options, settings, source, image, RegionPlace(options.t, options.z, window))


def cost_pixels(planned: Planned) -> int:
    """Return the window's number of pixels in the image or at the ensemble's pixel size, whichever is larger."""
    image, window = planned.image, planned.where.window
    scale = image.model_height * image.model_width / (image.height * image.width)
    return int(window.pixels * max(1.0, scale))


def prepare(planned: Planned) -> Prepared:
    """Measure the image where its normalisation needs that, and read the window with the context of its tiles.

    Raises
    ------
    ChorusError, RequestError : pixels cannot be read, or are no numbers
    """
    image, settings, inputs = planned.image, planned.settings, planned.hosted.ensemble.all_inputs
    statistics = of_one_image(inputs.measures, lambda measures: planned.source.measure(image, measures))
    read = planned.source.reader(image, planned.where.t, planned.where.z)
    return Prepared(planned, statistics, region_work(image, 0, planned.where, settings, inputs, statistics, read))


def conclude(prepared: Prepared, posterior: Posterior, request_id: str, started: float) -> Result:
    """Compute scores, flags, maps and objects from the members' predictions.

    Parameters
    ----------
    started : `time.monotonic` when the request came

    Raises
    ------
    ImageError : members do not answer with numbers
    """
    planned, work = prepared.planned, prepared.work
    settings, ensemble = planned.settings, planned.hosted.ensemble
    posterior, record = region_result(work, posterior, work.features.sums(), ensemble, settings, 0.0)
    finished = image_record(planned.image, ensemble, prepared.statistics, [record])
    maps = saved_maps(posterior, settings.save)
    assert maps is not None
    layout = _layout(planned)
    stored = maps.astype(settings.dtype)
    objects: dict[str, Labels] = {}
    if "objects" in planned.options.outputs:
        objects = _objects(planned, layout, stored, posterior.labels)
    counts = {name: int(labels.max(initial=0)) for name, labels in objects.items()} if objects else None
    prediction = result_of_row(planned, finished, request_id, time.monotonic() - started, counts)
    return Result(prediction, stored, posterior.labels, objects, layout)


def result_of_row(
    planned: Planned, finished: ImageRecord, name: str, seconds: float, objects: dict[str, int] | None
) -> Prediction:
    """Return the prediction that clients receive for a finished image: its scores and what they mean.

    Parameters
    ----------
    name : of the request or job
    """
    row = finished.row
    judgement = planned.hosted.judged(row, finished.features)
    return Prediction(
        id=name,
        ensemble=planned.hosted.identity,
        status="empty" if row.status == "empty" else "done",
        message=row.message,
        shape=(len(planned.where.window.y), len(planned.where.window.x)),
        scores=numbers(row.columns),
        unjudged=planned.hosted.unjudged,
        objects=objects,
        seconds=round(seconds, 4),
        **({} if judgement is None else asdict(judgement)),
    )


def _layout(planned: Planned) -> ImageLayout:
    """Return the layout of an image that consists of the window alone."""
    window = planned.where.window
    whole = layout_of(planned.image, planned.hosted.ensemble, planned.settings, "")
    corner = (window.y.start, window.x.start)
    moved = tuple(t + s * c for t, s, c in zip(whole.translation[-2:], whole.scale[-2:], corner, strict=True))
    return replace(
        whole, axes="yx", shape=window.shape, scale=whole.scale[-2:], translation=moved, units=whole.units[-2:]
    )


def _objects(planned: Planned, layout: ImageLayout, maps: NDArray[np.floating], labels: Labels) -> dict[str, Labels]:
    """Return label images of the objects of each class, as `chorus objects` makes them from the results of a run."""
    ensemble = planned.hosted.ensemble
    settings = object_settings(planned.image, ensemble, planned.settings)
    plane, window = labels.shape, Window.of(0, labels.shape[0], 0, labels.shape[1])
    memory = plane_in_memory(maps, labels, layout, multilabel=ensemble.multilabel)
    by_class = {}
    for value, entry in enumerate(ensemble.spec.classes[1:], 1):
        names = converging_objects(memory, window, plane, value, "flows", settings).names
        known = np.unique(names)
        by_class[entry.name] = numbered(names, known[known > 0])
    return by_class
