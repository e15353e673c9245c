"""The documents of a run of ``chorus predict``: its ``run.json``, and the row of an image in ledger and scores."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Literal, TypeAlias

from pydantic import Field, model_serializer, model_validator

from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.state.outcome import ItemRow, Outcome
from chorus.pipeline.core.run_document import Document, PredictDocument, PredictSummary, SavedEnsemble, SavedInputs

ImageStatus = Literal["done", "empty", "failed"]
"""``done``, ``empty`` (no predicted foreground), ``failed``."""
Value: TypeAlias = str | int | float | None


class ImageRow(ItemRow):
    """The row of an image in ``scores.parquet`` and in its record; flat there: `columns`.

    Attributes
    ----------
    image, source : path of the image below the root of its source, and that root
    name : of its results, unique in the run
    message : why it failed, or a note; usually empty
    scores : of `chorus.pipeline.scores.registry`, by column, in the order of the table; None where undefined
    regions, tiles : computed, by this way of cutting the image
    seconds : of device time
    samples : mean per tile with adaptive effort; None with full effort
    diameter_px : of its objects, as it was estimated; None where it was not
    """

    image: str
    source: str
    status: ImageStatus
    scores: dict[str, float | None] = Field(default_factory=dict)
    regions: int = 0
    tiles: int = 0
    seconds: float = 0.0
    samples: float | None = None
    diameter_px: float | None = None

    @property
    def columns(self) -> dict[str, Value]:
        """Values by column, in the order of the table."""
        named = dict(self)
        scores: dict[str, float | None] = named.pop("scores")
        further = {name: named[name] for name in ("samples", "diameter_px") if named[name] is not None}
        head = {name: named[name] for name in ("image", "source", "name", "status", "message")}
        return head | scores | {name: named[name] for name in ("regions", "tiles", "seconds")} | further

    def failed(self, message: str) -> ImageRow:
        """Return the row of the image when it failed."""
        return self.model_copy(update={"status": "failed", "message": message})

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, given: object) -> object:
        if not isinstance(given, dict) or "scores" in given:
            return given
        named = {name: value for name, value in given.items() if name in cls.model_fields}
        return named | {"scores": {name: value for name, value in given.items() if name not in named}}

    @model_serializer
    def _flat(self) -> dict[str, Value]:
        return self.columns


PredictOutcome: TypeAlias = Outcome[ImageRow, PredictSummary]
"""How a run of ``chorus predict`` ended."""


class UsedEnsemble(SavedEnsemble):
    """The ensemble of a run whose results are used further."""

    url: str
    hash: str
    members: int


class Calibration(Document):
    """What a trial of the ensemble measured on a device: see `DeviceProbe`; `kind` is that of the device."""

    weights: int
    activations: int
    process: int
    device_memory: int
    seconds_per_tile: float
    device: str
    kind: str

    @classmethod
    def of(cls, probe: DeviceProbe, kind: str) -> Calibration:
        """Return the entry for a probe of a device of `kind`."""
        return cls(**asdict(probe), kind=kind)

    @property
    def probe(self) -> DeviceProbe:
        """What was measured."""
        return DeviceProbe(**self.model_dump(exclude={"kind"}))


class PredictRecord(PredictDocument):
    """``run.json`` of ``chorus predict`` with all that the results are defined by.

    Attributes
    ----------
    calibration : of the last session
    """

    started: str
    outcome: str
    ensemble: UsedEnsemble
    inputs: SavedInputs
    calibration: Calibration | None = None

    def written(self) -> bytes:
        """Return the content of the file."""
        content = self.model_dump(mode="json")
        absent = {name for name in ("calibration", "summary") if content[name] is None}
        present = content.keys() - absent
        return json.dumps({name: content[name] for name in _ORDER if name in present}, indent=2).encode()


_ORDER = (
    "command", "started", "finished", "outcome", "repeated", "smaller_batch", "settings", "run", "sources", "inputs",
    "ensemble", "reference", "unjudged", "chorus", "versions", "machine", "calibration", "summary",
)  # fmt: skip
