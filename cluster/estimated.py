"""The ledger of ``chorus truth``, readable with ``ls``, and the task that adds a line to it.

::

    OUT/<image>.tif, OUT/<image>.ome.zarr   the estimate
    OUT/ledger/<image>.json                 written after it: the only sign of completion
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict

from pipeline import storage
from pipeline.containers import storage_errors
from pipeline.trust.experts import DrawnImage
from pipeline.trust.ground_truth import ImageTruth, TruthSettings, estimate_truth


class EstimatedImage(BaseModel):
    """A finished image; `drawings` is a digest of the drawings that its truth was estimated from."""

    model_config = ConfigDict(frozen=True)

    truth: ImageTruth
    drawings: str
    seconds: float


def digest(image: DrawnImage) -> str:
    """Differs where other experts drew an image, or a file changed."""
    lines = [f"{drawing.expert} {drawing.url} {drawing.stamp}" for drawing in image.drawings]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def estimate_and_record(out: str, image: DrawnImage, settings: TruthSettings) -> EstimatedImage:
    """Estimate the truth of an image and record it.

    Raises
    ------
    ImageError : a drawing is at fault
    OutputError : storage does not take it
    """
    started = time.perf_counter()
    truth = estimate_truth(image, out, settings)
    record = EstimatedImage(truth=truth, drawings=digest(image), seconds=round(time.perf_counter() - started, 3))
    url = storage.join(out, "ledger", image.name + ".json")
    with storage_errors(url):
        storage.write_bytes(url, record.model_dump_json().encode())
    return record


def read_estimated(out: str) -> dict[str, EstimatedImage]:
    """What is finished in `out`, by the image's name."""
    ledger = storage.join(out, "ledger")
    with storage_errors(ledger), ThreadPoolExecutor(16) as pool:
        fs, path = storage.filesystem(ledger)
        files = [name for name in fs.find(path) if name.endswith(".json")] if fs.exists(path) else []
        records = [EstimatedImage.model_validate_json(data) for data in pool.map(fs.cat_file, files)]
    return {record.truth.name: record for record in records}
