"""The ledger of ``chorus truth``, readable with ``ls``, and the task that adds a record to it.

::

    OUT/<image>.tif, OUT/<image>.ome.zarr   the estimate
    OUT/ledger/<image>.json                 written after it: the only sign of completion
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict

from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.consensus.annotations import DrawnImage, digest_of
from chorus.pipeline.consensus.ground_truth import ImageTruth, TruthSettings, estimate_truth
from chorus.pipeline.io import storage


class EstimatedImage(BaseModel):
    """A finished image; `drawings` is a digest of the drawings from which its truth was estimated."""

    model_config = ConfigDict(frozen=True)

    truth: ImageTruth
    drawings: str
    seconds: float


def estimate_and_record(out: str, image: DrawnImage, settings: TruthSettings) -> EstimatedImage:
    """Estimate the truth of an image and record it.

    Raises
    ------
    ImageError
        If a drawing is at fault.
    OutputError
        If the result cannot be written.
    """
    started = time.perf_counter()
    truth = estimate_truth(image, out, settings)
    record = EstimatedImage(
        truth=truth, drawings=digest_of(image.drawings), seconds=round(time.perf_counter() - started, 3)
    )
    ledger_of(out).record(image.name, record)
    return record


def ledger_of(out: str) -> ItemLedger[EstimatedImage]:
    """Return the ledger of an output."""
    return ItemLedger(storage.join(out, "ledger"), EstimatedImage)


def read_estimated(out: str) -> dict[str, EstimatedImage]:
    """Return what is finished in `out`, by the image's name."""
    return ledger_of(out).read()
