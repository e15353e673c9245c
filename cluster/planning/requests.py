"""The request for a run, and the forecast and progress that it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.runtime.reporting import Reporter
from chorus.pipeline.instances.methods import ObjectsMethod

if TYPE_CHECKING:  # they need torch; commands that run no network do without
    from chorus.cluster.planning.cost import Cost
    from chorus.cluster.planning.devices.device_probe import DeviceProbe
    from chorus.cluster.planning.devices.placement import Memory, Placement


class PredictRequest(BaseModel):
    """One run of an ensemble over sources.

    Attributes
    ----------
    sources : paths and URLs as typed
    ensemble, out : URLs
    overwrite : start over where `out` holds the results of other settings
    objects : method that segments objects in the finished results; see `chorus.cluster.objects.after_predict`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: list[str]
    ensemble: str
    out: str
    settings: ResultSettings = ResultSettings()
    run: RunSettings = RunSettings()
    overwrite: bool = False
    objects: ObjectsMethod = "none"


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of a run on the available resources.

    Attributes
    ----------
    seconds : expected, from the calibration; start-up and reading not counted
    failures : images that cannot be processed, name and reason
    advice : how the run could cost less; usually empty
    executor : ``serial`` in this process, or ``ray``
    notes : images with a remark for the user, such as an unknown pixel size
    unjudged : why no image will be flagged; None if the ensemble has a reference set
    """

    cost: Cost
    calibration: DeviceProbe
    memory: Memory
    placement: Placement
    seconds: float
    failures: list[tuple[str, str]]
    advice: str = ""
    executor: Literal["ray", "serial"] = "ray"
    notes: list[tuple[str, str]] = field(default_factory=list)
    unjudged: str | None = None


class PlanReporter(Reporter, Protocol):
    """A `Reporter` that also receives the forecast."""

    def forecast(self, forecast: Forecast) -> None:
        """Report the forecast, once the plan is made."""
