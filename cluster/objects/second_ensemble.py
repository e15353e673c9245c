"""Flows by a second ensemble that reads the probability of a class: its runs and their outputs.

::

    OUT/work/flows/<class>/     a run of `chorus predict` over OUT/images, of one channel; removed at the end
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chorus.cluster.objects.records import FlowsFrom
from chorus.cluster.planning.image_statistics import measures_of
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import layout_of, plan_image
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.requests import PlanReporter, PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings, resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.runs.run import PlannedRun
from chorus.cluster.runs.setup import predict_jobs
from chorus.cluster.runtime.started_tasks import Executor
from chorus.pipeline.core.fields import FIELDS, PROBABILITY
from chorus.pipeline.core.outputs import FLOWS
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble, require_planes
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import FailedImage, ImageLayout, Level, SourceImage
from chorus.pipeline.io.outputs.arrays import posterior_axes, posterior_plan

WORK = ("work", "flows")


@dataclass(frozen=True)
class SecondEnsemble:
    """An ensemble that predicts flows from the probability of a class.

    Attributes
    ----------
    out : URL of the first run, whose probabilities it reads
    settings : of the runs over these, without the channel
    """

    ensemble: Ensemble
    out: str
    settings: ResultSettings

    @classmethod
    def read(
        cls, url: str, out: str, first: ResolvedSettings, diameter: float | None, *, trust_code: bool
    ) -> SecondEnsemble:
        """Read the ensemble at `url`, for the kind of device and the regions of the `first` run.

        Parameters
        ----------
        diameter : of objects in pixels of the images, if known

        Raises
        ------
        RefusedError
            If it predicts no flows, does not take exactly one channel, or normalises by all images.
        """
        ensemble = read_ensemble(url, trust_code=trust_code)
        spec = ensemble.spec
        require_planes(ensemble, "--flows-from")
        if FLOWS not in spec.answers:
            raise RefusedError(f"{ensemble.url}: its members give no flows; give --flows-from an ensemble that does")
        if len(spec.input.channels) != 1:
            raise RefusedError(
                f"{ensemble.url}: takes {len(spec.input.channels)} channels ({', '.join(spec.input.channels)}), and "
                f"the probability of a class is one; give --flows-from an ensemble of one channel"
            )
        if measures_of(ensemble, spec.edge, "dataset"):
            raise RefusedError(
                f"{ensemble.url}: a member normalises by statistics of all images of a run, and objects of an image do "
                f"not depend on the others; give --flows-from an ensemble that normalises each image by itself"
            )
        settings = ResultSettings(
            level=0,
            diameter=diameter if spec.input.diameter_px is not None else None,
            precision=first.precision,
            backend=first.backend,
            device=first.device,
            region=first.region,
            chunk=first.chunk,
            save=[name for name, field in FIELDS.items() if field.role is FLOWS],
            dtype=first.dtype,
        )
        return cls(ensemble, out, settings)

    @property
    def defining(self) -> FlowsFrom:
        """Everything on which its flows may depend."""
        settings = resolve(self.settings, self.ensemble).model_dump(mode="json")
        return FlowsFrom(ensemble=self.ensemble.spec.name, hash=self.ensemble.hash, settings=settings)

    def planned(self, first: ImageLayout, name: str, class_name: str) -> PlannedImage:
        """Return image `name` of the first run, with the layout `first`, as an image that this ensemble reads."""
        return plan_image(_probabilities(first, name), self.ensemble, self._settings(class_name))

    def layout(self, first: ImageLayout, name: str, class_name: str) -> ImageLayout:
        """Return where the flows of a class in an image are."""
        planned = self.planned(first, name, class_name)
        return layout_of(planned, self.ensemble, self._settings(class_name), self._out(class_name))

    def job(
        self,
        images: Iterable[tuple[str, ImageLayout]],
        others: list[str],
        class_name: str,
        executor: Executor,
        address: str | None,
    ) -> PlannedRun:
        """Return the run for a class.

        Parameters
        ----------
        images : of the first run, by name
        others : images of the first run that are left for later
        """
        settings, source = self._settings(class_name), storage.join(self.out, "images")
        run = RunSettings(
            executor=executor,
            address=address,
            trust_code=self.ensemble.trust_code,
            thumbnails=False,
            sentinels="skip",
        )
        request = PredictRequest(
            sources=[source],
            ensemble=self.ensemble.url,
            out=self._out(class_name),
            settings=settings,
            run=run,
            overwrite=True,
        )
        table = ImageTable.collect(self.planned(layout, name, class_name) for name, layout in images)
        later = [FailedImage(source, name, name, f"{name}: is not finished") for name in others]
        return PlannedRun(request, self.ensemble, settings, table, later)

    def _settings(self, class_name: str) -> ResolvedSettings:
        channel = {"channel": [PROBABILITY.channel(class_name)]}
        return resolve(self.settings.model_copy(update=channel), self.ensemble)

    def _out(self, class_name: str) -> str:
        return storage.join(self.out, *WORK, class_name)


def make_flows(jobs: Sequence[PlannedRun], reporter: PlanReporter) -> dict[str, str]:
    """Execute the runs of a second ensemble; return the names of images without flows, and why.

    Raises
    ------
    CutShortError
        If one was interrupted; the same call resumes it.
    """
    if not jobs:
        return {}
    reporter.phase(f"predicting flows (of probabilities, by {jobs[0].ensemble.spec.name})")
    without: dict[str, str] = {}
    for outcome in predict_jobs(jobs, reporter):
        if outcome.state == "interrupted":
            raise CutShortError(outcome.message)
        for row in outcome.rows:
            if row.status == "failed":
                without.setdefault(row.name, row.message)
    return without


def _probabilities(layout: ImageLayout, name: str) -> SourceImage:
    """Return the posterior of an image as a source, without reading its metadata."""
    axes, array = posterior_axes(layout), posterior_plan(layout, 0)
    scale = dict(zip(layout.axes, layout.scale, strict=True))
    translation = dict(zip(layout.axes, layout.translation, strict=True))
    units = dict(zip(layout.axes, layout.units, strict=True))
    level = Level(
        path=array.path,
        shape=array.shape,
        chunks=array.chunks,
        dtype=array.dtype,
        scale=tuple(scale.get(axis, 1.0) for axis in axes),
        translation=tuple(translation.get(axis, 0.0) for axis in axes),
    )
    return SourceImage(
        root=layout.url,
        kind="image",
        path="",
        name=name,
        ngff="0.5",
        axes=axes,
        units=tuple(units.get(axis) for axis in axes),
        levels=(level,),
        channels=layout.channels,
    )
