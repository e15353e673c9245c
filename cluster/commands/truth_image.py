"""The ledger of ``chorus truth``, readable with ``ls``, and the task that adds a record to it.

::

    OUT/<image>.tif, OUT/<image>.ome.zarr   the estimate
    OUT/ledger/<image>.json                 written after it: the only sign of completion
"""

from __future__ import annotations

import hashlib
import time

from pydantic import BaseModel, ConfigDict

from chorus.cluster.state.ledger import record_file, recorded_files
from chorus.pipeline.consensus.annotations import DrawnImage
from chorus.pipeline.consensus.ground_truth import ImageTruth, TruthSettings, estimate_truth


class EstimatedImage(BaseModel):
    """A finished image; `drawings` is a digest of the drawings from which its truth was estimated."""

    model_config = ConfigDict(frozen=True)

    truth: ImageTruth
    drawings: str
    seconds: float


def digest(image: DrawnImage) -> str:
    """Return a digest of an image's drawings; it changes if other annotators drew the image, or a file changed."""
    lines = [f"{drawing.expert} {drawing.url} {drawing.stamp}" for drawing in image.drawings]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
    record = EstimatedImage(truth=truth, drawings=digest(image), seconds=round(time.perf_counter() - started, 3))
    record_file(out, image.name, record)
    return record


def read_estimated(out: str) -> dict[str, EstimatedImage]:
    """Return what is finished in `out`, by the image's name."""
    return {record.truth.name: record for record in recorded_files(out, EstimatedImage)}
