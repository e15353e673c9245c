"""What ``chorus predict`` would leave of images whose objects are drawn: no network is run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.objects.run import ObjectsOutcome, find_objects
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import PLAN, layout_of, plan_images
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import ResolvedSettings, resolve
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.ledger import ImageRecord, Ledger
from chorus.cluster.state.run_record import RunRecord
from chorus.pipeline.core.fields import CHOICES, FIELDS
from chorus.pipeline.ensembles.ensemble import Ensemble, read_ensemble
from chorus.pipeline.instances.maps.mutex import Offset
from chorus.pipeline.io.outputs.pyramid import write_pyramid
from chorus.pipeline.io.outputs.writer import prepare_image, write_region
from tests.support.making import write_image, write_light_ensemble
from tests.support.object_maps import PLANE_OFFSETS, maps_of
from tests.support.objects import discs, flows_to_centres
from tests.support.rows import image_row

CHANNELS = ("dna", "actin")


def drawn(seed: int, height: int = 200, width: int = 230, count: int = 60) -> NDArray[np.int32]:
    """Labels of discs, many of which touch, some cut by the plane's edge."""
    rng = np.random.default_rng(seed)
    return discs(height, width, [(*rng.uniform(-4, (height, width)), r) for r in rng.uniform(4, 13, count)])


def write_ensemble(folder: Path, classes: int = 2, **changes: Any) -> Ensemble:
    names = [{"name": "background"}, *({"name": f"kind {k}"} for k in range(1, classes))]
    content = {"format": "chorus-ensemble/2", "classes": names} | ({} if "outputs" in changes else {"flows": True})
    return read_ensemble(str(write_light_ensemble(folder, members=1, width=1, **(content | changes))))


def write_source(folder: Path, planes: Mapping[str, NDArray[np.int32]]) -> Path:
    """Images of two channels, (t, z, y, x) or (y, x) labels each: noise that has nothing to do with them."""
    for name, labels in planes.items():
        rng = np.random.default_rng(len(name))
        outer = labels.shape[:-2]
        data = rng.integers(0, 60_000, (*outer[:1], len(CHANNELS), *outer[1:], *labels.shape[-2:]), dtype=np.uint16)
        axes = "tczyx" if outer else "cyx"
        write_image(folder / f"{name}.ome.zarr", data, axes, channels=CHANNELS)
    return folder


def write_results(
    out: Path,
    source: Path,
    ensemble: Ensemble,
    planes: Mapping[str, NDArray[np.int32]],
    *,
    region: int = 64,
    unfinished: tuple[str, ...] = (),
    noise: float = 0.4,
    **settings: Any,
) -> Path:
    """Results of a run that saved everything; objects of label n are of class 1 + n % (foreground classes)."""
    everything = [name for name in CHOICES if FIELDS[name].given(ensemble.outputs)]
    chosen = resolve(ResultSettings(**({"region": region, "chunk": 32, "save": everything} | settings)), ensemble)
    images = [image for image in plan_images([str(source)], ensemble, chosen) if isinstance(image, PlannedImage)]
    table = ImageTable.collect(images)
    request = PredictRequest(sources=[str(source)], ensemble=ensemble.url, out=str(out))
    RunRecord.of(request, ensemble, chosen, table, [], time.time()).write(str(out))
    table.write("/".join([str(out), *PLAN]))
    for image in images:
        name = image.name.removesuffix(".ome.zarr")
        if name not in unfinished:
            finish(out, image, ensemble, chosen, planes[name], noise)
    return out


def finish(
    out: Path,
    image: PlannedImage,
    ensemble: Ensemble,
    settings: ResolvedSettings,
    labels: NDArray[np.int32],
    noise: float = 0.4,
) -> None:
    """Everything of one image, and the sign that it is done."""
    layout = layout_of(image, ensemble, settings, str(out))
    prepare_image(layout)
    foreground = len(ensemble.spec.classes) - 1
    for t, z in np.ndindex(*image.planes):
        plane = labels.reshape(*image.planes, image.height, image.width)[t, z]
        semantic = np.where(plane > 0, 1 + plane % foreground, 0)
        maps = _maps(layout.channels, ensemble, semantic, flows_to_centres(plane, noise=noise, seed=t + 10 * z), plane)
        for index in range(image.grid.count):
            window = image.grid.window(index)
            inside = window.y.slice, window.x.slice
            kept = maps[:, *inside] if layout.channels else None
            write_region(layout, t, z, window, kept, semantic[inside])
    write_pyramid(layout)
    Ledger(str(out)).record_image(image.name, ImageRecord(row=image_row(image.name)))


def _maps(
    channels: tuple[str, ...],
    ensemble: Ensemble,
    semantic: NDArray[Any],
    flows: NDArray[np.float32],
    plane: NDArray[np.int32],
) -> NDArray[np.float32]:
    values = {entry.name: index for index, entry in enumerate(ensemble.spec.classes)}
    uncertainty = np.random.default_rng(7).random((3, *semantic.shape), dtype=np.float32) / 4
    other = {
        "uncertainty": uncertainty[0],
        "epistemic": uncertainty[1],
        "aleatoric": uncertainty[1],
        "flow_variance": uncertainty[2],
    }
    other |= {"flow:y": flows[0], "flow:x": flows[1]}
    probability = {f"probability:{name}": np.where(semantic == value, 0.75, 0.25) for name, value in values.items()}
    found = [(probability | other | _object_maps(channels, plane)).get(channel, uncertainty[0]) for channel in channels]
    return np.array(found, np.float32).reshape(len(found), *semantic.shape)


def _object_maps(channels: tuple[str, ...], plane: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
    """Distances, boundaries and affinities, if results hold any."""
    names = [channel.partition(":")[2] for channel in channels if channel.startswith("affinity:")]
    offsets: list[Offset] = [(0, *map(int, name.split(","))) for name in names]  # type: ignore[misc]
    if not offsets and not any(channel == "boundary" or channel.startswith("distance:") for channel in channels):
        return {}
    maps = maps_of(plane[None], offsets or PLANE_OFFSETS, noise=0.1)
    found = {"boundary": maps.walls[0], "distance:centre": maps.centre[0], "distance:inverted_boundary": maps.edge[0]}
    found["distance:boundary"] = 8 * (1 - maps.edge[0])
    return found | {f"affinity:{name}": one[0] for name, one in zip(names, maps.affinity, strict=False)}


def run(out: Path, **settings: Any) -> ObjectsOutcome:
    content = {"out": str(out), "diameter": 10.0, "executor": "serial"} | settings
    return find_objects(ObjectsRequest.model_validate(content), Silent())
