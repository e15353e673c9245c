"""Time and cost of a session of a run, compared with the forecast."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from chorus.cluster.planning.devices.cluster_file import ClusterFile
from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.planning.requests import Forecast, PlanReporter
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.runtime.status import RegionStatus
from chorus.cluster.state.documents import Calibration, PredictRecord
from chorus.cluster.state.results import finished_run, settings_of
from chorus.cluster.telemetry.metrics import COST, Recorder
from chorus.pipeline.core.device import KINDS, DeviceKind
from chorus.pipeline.core.run_document import Price, SessionAccount
from chorus.pipeline.errors import RefusedError

# Settings on which seconds per tile depend, in addition to ensemble and device.
_DECIDES = ("tile", "augmentations", "precision", "backend", "threads")


def calibration_device(out: str) -> DeviceKind:
    """Return the kind of device on which the run in `out` was calibrated; raise RefusedError if it keeps none."""
    kept = _kept(finished_run(out), out).kind
    known = [kind for kind in KINDS if kind == kept]
    if not known:
        raise RefusedError(f"--calibration {out}: was measured on {kept}, which this Chorus does not know; update it")
    return known[0]


def earlier_calibration(out: str, ensemble: str, settings: ResolvedSettings) -> DeviceProbe:
    """Return the calibration of an earlier run in `out`; if that run ended, with the seconds per tile of the whole run.

    Parameters
    ----------
    ensemble, settings : hash and settings of the run that is to be predicted

    Raises
    ------
    RefusedError
        If that run was of another ensemble, or of settings that imply another speed.
    """
    known = finished_run(out)
    measured = _kept(known, out).probe
    if known.ensemble.hash != ensemble:
        raise RefusedError(
            f"--calibration {out}: was measured with ensemble {known.ensemble.name}, which is another one or has "
            f"changed; give a run of the same ensemble, or leave --calibration out"
        )
    decisive = settings_of(known, out)
    for name in _DECIDES:
        earlier, now = getattr(decisive, name), getattr(settings, name)
        if earlier != now:
            raise RefusedError(
                f"--calibration {out}: was measured with {name} {earlier}, now {now}; ask for the same, or leave "
                f"--calibration out"
            )
    seen = None if known.summary is None else known.summary.seconds_per_tile
    return replace(measured, seconds_per_tile=seen) if seen else measured


def _kept(run: PredictRecord, out: str) -> Calibration:
    if run.calibration is None:
        raise RefusedError(
            f"--calibration {out}: its run.json keeps no calibration, as of a run of an earlier Chorus; give another "
            f"run, or leave --calibration out"
        )
    return run.calibration


@dataclass
class Account:
    """A reporter that counts time and cost of a session and passes all reports on to another reporter.

    Attributes
    ----------
    reporter : receives all reports
    forecast_made : for all regions
    device : kind of device of the members
    cluster : with the prices, None if they are unknown
    recorder : of the driver's metrics
    started : when the session began, `time.monotonic`
    """

    reporter: PlanReporter
    forecast_made: Forecast
    device: DeviceKind
    cluster: ClusterFile | None
    recorder: Recorder
    started: float
    _streams: int = 0
    _begun: float = 0.0
    _expected: float = 0.0
    _measured: float = 0.0
    _devices: int = 0
    _device_seconds: float = 0.0
    _tiles: int = 0
    _paid_until: float = 0.0

    def phase(self, text: str) -> None:
        """Pass it on."""
        self.reporter.phase(text)

    def forecast(self, forecast: Forecast) -> None:
        """Pass it on."""
        self.reporter.forecast(forecast)

    def begin(self, regions: int, pixels: int, devices: int) -> None:
        """Add the expected time of the regions that are left, and pass it on."""
        if not self._streams:
            self._devices, self._paid_until = devices, self.started
        self._streams += 1
        self._begun = time.monotonic()
        self._expected += self.forecast_made.seconds * regions / max(1, self.forecast_made.cost.regions)
        self._pay()
        self.reporter.begin(regions, pixels, devices)

    def devices(self, count: int) -> None:
        """Pass it on."""
        self.reporter.devices(count)

    def region(self, status: RegionStatus) -> None:
        """Add device time and tiles of the region, and pass it on."""
        self._device_seconds += status.device_seconds
        self._tiles += status.tiles
        self._pay()
        self.reporter.region(status)

    def end(self) -> None:
        """Add the time of the stream, and pass it on."""
        self._measured += time.monotonic() - self._begun
        self._pay()
        self.reporter.end()

    def _pay(self) -> None:
        """Add the cost of the devices since the last call; start-up is included."""
        if self.cluster is None:
            return
        now = time.monotonic()
        self.recorder.add(COST, self._price(now - self._paid_until), currency=self.cluster.currency)
        self._paid_until = now

    def _price(self, seconds: float) -> float:
        if self.cluster is None:
            return 0.0
        return seconds / 3600 * self._devices * self.cluster.price_of_a_device(self.device)

    def summary(self) -> SessionAccount:
        """Return time and cost, expected and measured, for ``run.json``; empty if the session had nothing to do.

        Volumes are not predicted: their directions are runs of their own.
        """
        if not self._tiles:
            return SessionAccount()
        alone, cost = self._streams == 1, None
        if self.cluster is not None:
            amount = self._price(time.monotonic() - self.started)
            cost = Price(amount=round(amount, 4), currency=self.cluster.currency)
        return SessionAccount(
            measured_seconds=round(self._measured, 1),
            device_busy=round(min(1.0, self._device_seconds / (self._measured * self._devices)), 3),
            seconds_per_tile=self._device_seconds / self._tiles,
            predicted_seconds=round(self._expected, 1) if alone else None,
            measured_over_predicted=round(self._measured / self._expected, 3) if alone else None,
            cost=cost,
        )
