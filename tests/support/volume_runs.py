"""What ``chorus predict --volumes`` would leave of volumes whose objects are drawn: no network is run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import PLAN, layout_of, plan_images
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings, resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.state.ledger import ImageRecord, Ledger
from chorus.cluster.state.run_record import RunRecord
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.io.outputs.pyramid import write_pyramid
from chorus.pipeline.io.outputs.writer import prepare_image, write_region
from tests.support.making import write_image
from tests.support.rows import image_row
from tests.support.volumes import flows_to_centres

SAVED = ["probability", "uncertainty", "flows"]


def write_volume(folder: Path, name: str, labels: NDArray[np.int32], pixel_size: float = 1.0) -> Path:
    """Two channels of noise, as large as (t, z, y, x) or (z, y, x) labels; planes are 1 micrometre apart."""
    at = labels.ndim - 3
    shape = (*labels.shape[:at], 2, *labels.shape[at:])
    data = np.random.default_rng(3).integers(0, 60_000, shape, dtype=np.uint16)
    axes = "tczyx"[1 - at :]
    return write_image(folder / f"{name}.ome.zarr", data, axes, channels=("dna", "actin"), pixel_size=pixel_size)


def write_volume_results(
    out: Path, source: Path, ensemble: Ensemble, labels: NDArray[np.int32], anisotropy: float = 1.0, **settings: Any
) -> Path:
    """Results of one volume with the flows in three directions of its `labels`, some noise among them."""
    content = {"region": 64, "chunk": 32, "save": SAVED, "volumes": "all", "channel": ["dna"]} | settings
    chosen = resolve(ResultSettings.model_validate(content), ensemble)
    (image,) = (one for one in plan_images([str(source)], ensemble, chosen) if isinstance(one, PlannedImage))
    table = ImageTable.collect([image])
    request = PredictRequest(sources=[str(source)], ensemble=ensemble.url, out=str(out))
    RunRecord.of(request, ensemble, chosen, table, [], time.time()).write(str(out))
    table.write("/".join([str(out), *PLAN]))
    _write(out, image, ensemble, chosen, labels.reshape(*image.planes, image.height, image.width), anisotropy)
    Ledger(str(out)).record_image(image.name, ImageRecord(row=image_row(image.name)))
    return out


def _write(
    out: Path,
    image: PlannedImage,
    ensemble: Ensemble,
    settings: ResolvedSettings,
    labels: NDArray[np.int32],
    anisotropy: float,
) -> None:
    layout = layout_of(image, ensemble, settings, str(out))
    assert layout.channels[-3:] == ("flow:z", "flow:y", "flow:x")
    prepare_image(layout)
    for t, volume in enumerate(labels):
        flows = flows_to_centres(volume, anisotropy, noise=0.4, seed=t)
        uncertainty = np.random.default_rng(7).random(volume.shape, dtype=np.float32)
        inside = np.where(volume > 0, np.float32(0.75), np.float32(0.25))
        maps = np.stack([1 - inside, inside, uncertainty, *flows])
        for z, index in np.ndindex(len(volume), image.grid.count):
            window = image.grid.window(index)
            at = z, window.y.slice, window.x.slice
            write_region(layout, t, z, window, maps[:, *at], (volume[at] > 0).astype(np.uint8))
    write_pyramid(layout)
