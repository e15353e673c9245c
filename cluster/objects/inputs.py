"""The results of ``chorus predict`` of which ``chorus objects`` makes objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, replace
from functools import cached_property, partial

import numpy as np

from chorus.cluster.objects.job import (
    MapJob,
    ObjectJob,
    VolumeJob,
    VolumeMapJob,
    VolumePiecesJob,
    uncertainties_of,
)
from chorus.cluster.objects.records import ObjectsAsked, ObjectsRecord, PredictedRun
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.second_ensemble import SecondEnsemble
from chorus.cluster.objects.tasks.stars import StarJob
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import layout_of
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.volume_views import anisotropy
from chorus.cluster.runs.run import PlannedRun
from chorus.cluster.state.command import Execution
from chorus.cluster.state.ledger import Ledger
from chorus.cluster.state.results import finished_run, planned_images, settings_of
from chorus.pipeline.core.fields import FLOW, PROBABILITY, RAY, in_order
from chorus.pipeline.core.outputs import FLOWS, RAYS
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble, require_planes
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.instances.maps.stored import MapSources, fields_of
from chorus.pipeline.instances.methods import MAP_METHODS, VOLUME_METHODS, MapMethod, Method
from chorus.pipeline.instances.regions import ObjectSettings
from chorus.pipeline.instances.stars.candidates import StarSettings
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ImageLayout
from chorus.pipeline.io.outputs.arrays import LABEL_NAME
from chorus.pipeline.members.outputs import StarThresholds

WORK = ("work", "objects")


class Results:
    """The results of a run, as far as objects are made from them.

    Raises
    ------
    RefusedError
        If they do not allow objects; the message says what to do.
    """

    def __init__(self, request: ObjectsRequest) -> None:
        self.request, out = request, request.out
        self.run = finished_run(out)
        self.settings = settings_of(self.run, out)
        self.ensemble: Ensemble = read_ensemble(self.run.ensemble.url)
        if self.ensemble.hash != self.run.ensemble.hash:
            raise RefusedError(f"{self.ensemble.url}: changed since {out} was made with it; restore it")
        if request.flows_from is not None:
            require_planes(self.ensemble, "--flows-from")
        if request.method not in ("auto", *VOLUME_METHODS):
            require_planes(self.ensemble, f"--method {request.method}")
        self.second = self._second()
        self.sources = MapSources.of(self.ensemble.outputs)
        self._require_maps()
        request.check(self.method)
        self._check_thresholds()
        if request.flow_error is not None and self.method != "flows":
            raise RefusedError(f"--flow-error: objects by {self.method} have no flows; leave it out")
        if request.flow_error is not None and self.of_volumes:
            raise RefusedError("--flow-error: is of flows in a plane, and these objects are of volumes; leave it out")
        if self.settings.in_place:
            raise RefusedError(
                f"{out}: its labels were written into the source images; run chorus predict without --in-place to "
                f"another --out"
            )
        check_class_names(self.ensemble)

    def _check_thresholds(self) -> None:
        """Raise RefusedError for thresholds that the method does not know."""
        request = self.request
        given = [name for name in ("foreground_threshold", "cellprob_threshold") if getattr(request, name) is not None]
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        if given and self.method == "stars":
            raise RefusedError(f"{options}: objects by stars have --prob-threshold; leave it out")
        if given and self.map_method is not None and not self.sources.foreground:
            raise RefusedError(f"{options}: members do not say where the foreground is; leave it out")
        if len(given) > 1:
            raise RefusedError(f"{options}: are two forms of the same number; give one of them")
        if self.method != "stars" and (request.prob_threshold, request.nms_threshold) != (None, None):
            raise RefusedError(
                f"--prob-threshold, --nms-threshold: are of objects by stars, not by {self.method}; leave them out"
            )

    @property
    def method(self) -> Method | MapMethod:
        """The method that was asked for, or the one that the run allows."""
        if self.request.method != "auto":
            return self.request.method
        if self.ensemble.spec.input.axes == "zyx":
            return self._by_maps or "components"
        if self.second or FLOW.name in self.settings.save:
            return "flows"
        if RAY.name in self.settings.save and not self.ensemble.multilabel:
            return "stars"
        return self._by_maps or "watershed"

    @property
    def _by_maps(self) -> MapMethod | None:
        """The method that the saved maps of objects allow, if any."""
        method = self.sources.method
        return method if method is not None and fields_of(method) <= set(self.settings.save) else None

    @property
    def map_method(self) -> MapMethod | None:
        """The method, if it makes objects of maps."""
        return next((method for method in MAP_METHODS if method == self.method), None)

    def _second(self) -> SecondEnsemble | None:
        """Return the ensemble that predicts the flows, if not the run's; raise RefusedError if it is unsuitable."""
        request = self.request
        if request.flows_from is None:
            return None
        if request.method not in ("auto", "flows"):
            raise RefusedError(f"--flows-from: objects by {request.method} take no flows; leave --method out")
        diameter = request.diameter or self.settings.diameter_px
        return SecondEnsemble.read(
            request.flows_from, request.out, self.settings, diameter, trust_code=request.trust_code
        )

    @property
    def of_volumes(self) -> bool:
        """Whether objects extend through planes: members take volumes, or flows lead from one plane to the next."""
        return self.ensemble.spec.input.axes == "zyx" or self._of_flows_in_volumes

    @property
    def _of_flows_in_volumes(self) -> bool:
        return self.settings.volumes == "all" and self.method == "flows" and self.second is None

    def _require_maps(self) -> None:
        """Raise RefusedError if the run did not save what the method needs."""
        needed = {FLOW.name} if self.method == "flows" and self.second is None else set()
        needed |= {RAY.name} if self.method == "stars" else set()
        if self.map_method is not None:
            if lacks := self.sources.lacks(self.map_method):
                raise RefusedError(f"{self.ensemble.url}: its members give no {lacks}; choose another --method")
            needed |= fields_of(self.map_method)
        of_probability = self.least is not None or self.second or self.method == "stars"
        needed |= {PROBABILITY.name} if of_probability else set()
        missing = needed - set(self.settings.save)
        if not missing:
            return
        if RAY.name in missing and RAYS not in self.ensemble.outputs:
            raise RefusedError(f"{self.request.out}: holds no rays; choose --method watershed or components")
        out, what = self.request.out, " and no ".join(sorted(missing))
        if missing == {FLOW.name}:
            gives = FLOWS in self.ensemble.outputs
            mend = "run chorus predict with --objects flows to another --out, or " if gives else ""
            raise RefusedError(f"{out}: holds no flows; {mend}choose --method watershed or components")
        raise RefusedError(
            f"{out}: holds no {what}, of which objects are made; run chorus predict with "
            f"--save {','.join(in_order({*self.settings.save, *missing}))}"
        )

    @property
    def least(self) -> float | None:
        """Probability from which a pixel is of a class; None where the label decides."""
        asked = self.request.least
        return 0.5 if asked is None and self.ensemble.multilabel else asked

    @cached_property
    def table(self) -> ImageTable:
        """The images of the run that could be planned."""
        return planned_images(self.request.out)

    @cached_property
    def finished(self) -> np.ndarray:
        """Whether the run has finished each image of the table.

        Returns
        -------
        (images,) bool
        """
        return Ledger(self.request.out).scan(self.table).images

    @property
    def classes(self) -> list[str]:
        """Classes that have objects: all but the background."""
        return [entry.name for entry in self.ensemble.spec.classes[1:]]

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """Names of the uncertainty columns of objects."""
        return uncertainties_of(self.settings.save, second_flows=self.second is not None)

    @property
    def diameter(self) -> float:
        """Typical diameter of objects, in pixels of the ensemble that predicts the flows."""
        return typical_diameter((self.second or self).ensemble)

    @property
    def stars(self) -> StarThresholds | None:
        """How objects are made by stars, as asked for or as the ensemble has it; None by other methods."""
        if self.method != "stars":
            return None
        asked = {"prob_threshold": self.request.prob_threshold, "nms_threshold": self.request.nms_threshold}
        given = {name: value for name, value in asked.items() if value is not None}
        return self.ensemble.spec.rays.objects.model_copy(update=given)

    @property
    def record(self) -> ObjectsRecord:
        """The record of the objects when their making begins; its `settings` and `of` and the images define them."""
        request = self.request
        asked = ObjectsAsked(
            method=self.method,
            diameter=request.diameter,
            minimum_size=request.minimum_size,
            flow_error=request.flow_error,
            foreground_threshold=request.least,
            ensemble_diameter=self.diameter,
            flows_from=None if self.second is None else self.second.defining,
            prob_threshold=None if self.stars is None else self.stars.prob_threshold,
            nms_threshold=None if self.stars is None else self.stars.nms_threshold,
            options=request.chosen,
        )
        predicted_run = PredictedRun(
            started=self.run.started, settings=self.run.settings.content, ensemble=self.ensemble.hash
        )
        run = Execution(executor=request.executor, address=request.address)
        return ObjectsRecord(settings=asked, of=predicted_run, run=run)

    def work(self, image: str) -> str:
        """Return the folder of the work on an image."""
        return storage.join(self.request.out, *WORK, image)

    def layout(self, index: int) -> ImageLayout:
        """Return where the run's results of an image are."""
        return layout_of(self.table.image(index), self.ensemble, self.settings, self.request.out)

    def flow_jobs(self, todo: Collection[int]) -> list[PlannedRun]:
        """Return the runs of the second ensemble, one per class, over the images `todo`; none if the run has flows."""
        if self.second is None or not todo:
            return []
        names, executor = self.table.names, (self.request.executor, self.request.address)
        now = sorted(todo)
        later = [names[index] for index in sorted(set(range(len(names))) - set(now))]

        def images() -> Iterator[tuple[str, ImageLayout]]:
            return ((names[index], self.layout(index)) for index in now)

        return [self.second.job(images(), later, name, *executor) for name in self.classes]

    def job(self, index: int) -> ObjectJob:
        """Return the job of an image for a worker."""
        image, layout = self.table.image(index), self.layout(index)
        seen, flows = image, []
        if self.second is not None:
            seen = self.second.planned(layout, image.name, self.classes[0])
            flows = [self.second.layout(layout, image.name, name) for name in self.classes]
        diameter = self.request.diameter or self.settings.diameter_px or diameter_in(seen, self.diameter)
        lengths = (self.second or self).ensemble.spec.flow_lengths
        settings = ObjectSettings(max(1.0, diameter), self.request.minimum_size, self.request.flow_error, lengths)
        kind: Callable[..., ObjectJob] = VolumeJob if self._of_flows_in_volumes else ObjectJob
        if self.ensemble.spec.input.axes == "zyx":
            kind = VolumePiecesJob
        if self.map_method is not None:
            maps = self.request.settings(self.map_method, settings, self.sources)
            if self.ensemble.spec.input.axes == "zyx":
                apart = replace(maps, anisotropy=anisotropy(image))
                kind = partial(VolumeMapJob, maps=apart, sources=self.sources)
            else:
                kind = partial(MapJob, maps=maps, sources=self.sources)
        job = kind(
            image=image,
            layout=layout,
            work=self.work(image.name),
            record=Ledger(self.request.out).objects_url(image.name),
            scratch=self.work(image.name),
            classes=tuple(enumerate(self.classes, 1)),
            method=self.method,
            least=self.least,
            settings=settings,
            strict=self.settings.strict,
            flows=tuple(flows),
        )
        if self.stars is None:
            return job
        stars = star_settings(image, self.ensemble.spec.ray_grid, self.stars, self.request.minimum_size)
        return StarJob(**{one.name: getattr(job, one.name) for one in fields(job)}, stars=stars)


def typical_diameter(ensemble: Ensemble) -> float:
    """Return the diameter of objects, in pixels of the ensemble: declared, or of its training data, or 30."""
    training = ensemble.spec.about.training
    trained_on = training.object_diameter_px.get("median") if training else None
    return ensemble.spec.input.diameter_px or trained_on or 30.0


def diameter_in(image: PlannedImage, diameter: float) -> float:
    """Convert a diameter from pixels of the ensemble to pixels of the image."""
    return diameter * math.sqrt(image.height * image.width / (image.model_height * image.model_width))


def star_settings(
    image: PlannedImage, grid: tuple[int, ...], thresholds: StarThresholds, minimum_size: int
) -> StarSettings:
    """Return the settings of objects by stars in an image, whose pixels may not be those of the members.

    Parameters
    ----------
    grid : distance of points in pixels of the members, see `chorus.pipeline.ensembles.spec.EnsembleSpec.ray_grid`
    """
    scale = diameter_in(image, 1.0)
    y, x = (max(1, round(step * scale)) for step in grid)
    return StarSettings(thresholds.prob_threshold, thresholds.nms_threshold, minimum_size, (y, x), scale)


def check_class_names(ensemble: Ensemble) -> None:
    """Raise RefusedError if the name of a class cannot be the name of a label image."""
    for entry in ensemble.spec.classes[1:]:
        if "/" in entry.name or entry.name == LABEL_NAME:
            raise RefusedError(
                f"{ensemble.url}: class {entry.name!r} cannot be the name of a label image; rename it, and run "
                f"chorus predict again"
            )
