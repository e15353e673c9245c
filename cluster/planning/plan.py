"""The work of a run: the images of the sources, their division into regions, and the cost. Reads metadata only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from chorus.cluster.planning.image_table import ImageTable, PlannedImage
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.planning.volume_views import VIEWS, turned
from chorus.pipeline.backends.choice import Backend, check_backend
from chorus.pipeline.backends.choosing import Workload, choose
from chorus.pipeline.core.augmentation import refused
from chorus.pipeline.core.fields import FIELDS, SAMPLES, in_order
from chorus.pipeline.core.geometry import Grid, RegionGrid, TileAxis, Window
from chorus.pipeline.core.outputs import EFFORT, FLOWS, Outputs
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.inference.adaptive_bound import EffortBound
from chorus.pipeline.inference.encoder_features import centres_in
from chorus.pipeline.inference.posterior_builder import InferenceSettings
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import FailedImage, ImageLayout, MapDisplay, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.file_store import file_in
from chorus.pipeline.io.sources.reading import choose_channels, choose_level, unknown_pixel_size
from chorus.pipeline.preprocessing.resampling import AxisMap, plane_shape

# Where the image table is kept, below the output.
PLAN = ("plan", "images.parquet")


class ResolvedSettings(ResultSettings):
    """Result settings in which every choice of the ensemble or the device is filled in.

    `bound` says which tiles are done after the first round; None with full effort.
    """

    tile: int
    overlap: float
    augmentations: list[str]
    batch: int
    backend: Backend
    bound: EffortBound | None = None


class RunContext(BaseModel):
    """What every process of a run needs to know; small, picklable, and without arrays.

    Attributes
    ----------
    out : URL of the output
    ensemble : URL of ``ensemble.yaml``, the hash that it must still have, and its name
    session : name of this attempt at the run
    trust_code : whether code from a member's package may run
    thumbnails : whether to write one for each finished image
    profile : whether workers record a timeline
    """

    model_config = ConfigDict(frozen=True)

    out: str
    ensemble: str
    ensemble_hash: str
    ensemble_name: str
    settings: ResolvedSettings
    session: str
    trust_code: bool = False
    thumbnails: bool = True
    profile: bool = False

    @property
    def table_url(self) -> str:
        """Return the URL of the image table."""
        return storage.join(self.out, *PLAN)

    def statistics_url(self, image: str) -> str:
        """Return the URL of the statistics of one image."""
        return inside(storage.join(self.out, "plan", "statistics"), image + ".json")

    @property
    def dataset_url(self) -> str:
        """Return the URL of the statistics of the data set."""
        return storage.join(self.out, "plan", "statistics.json")


def resolve(settings: ResultSettings, ensemble: Ensemble) -> ResolvedSettings:
    """Fill in what the ensemble or the device decides; raise RefusedError where a setting does not fit them."""
    spec = ensemble.spec
    _rescaling(settings, ensemble)
    given = outputs_of(settings, ensemble)
    for field in (FIELDS[name] for name in settings.save):
        if not field.given(given) and field.role is not EFFORT:
            raise RefusedError(
                f"{ensemble.url}: its members give no {field.role.name}; leave `{field.name}` out of --save"
            )
    if settings.volumes and FLOWS not in ensemble.outputs:
        raise RefusedError(f"{ensemble.url}: its members give no flows, which --volumes needs; leave --volumes out")
    unmerged = [name for name in settings.save if FIELDS[name].symmetry in ("rays", "offsets")]
    if settings.volumes and unmerged:
        raise RefusedError(
            f"{ensemble.url}: `{unmerged[0]}` of planes in three directions have no mean; leave it out of --save, or "
            "leave --volumes out"
        )
    tile = settings.tile or spec.tile
    augmentations = settings.augmentations or spec.augmentations
    if reason := refused(ensemble.outputs, tuple(augmentations)):
        raise RefusedError(f"{ensemble.url}: {reason}; leave it out of --augment")
    overlap = spec.overlap if settings.overlap is None else settings.overlap
    workload = Workload(tile, len(augmentations), settings.precision, torch.device(settings.device))
    backend, batch = settings.backend, settings.batch or workload.batch
    if backend == "auto":
        backend, batch = choose(ensemble, workload, settings.batch)
    check_backend(backend, settings.precision, settings.device)
    filled = {"tile": tile, "overlap": overlap, "augmentations": augmentations, "batch": batch, "backend": backend}
    resolved = ResolvedSettings.model_validate(settings.model_dump() | filled)
    return _adaptive(resolved, ensemble) if settings.effort == "adaptive" else _full(resolved)


def _adaptive(settings: ResolvedSettings, ensemble: Ensemble) -> ResolvedSettings:
    """Add the ensemble's bound, which goes into the record of the run, and the map of the effort per tile."""
    bound = ensemble.spec.effort
    if bound is None:
        raise RefusedError(
            f"{ensemble.url}: --effort adaptive needs a bound that was measured with the ensemble; make one with "
            f"`chorus ensemble effort`, or use --effort full"
        )
    if bound.ensemble != ensemble.hash:
        raise RefusedError(
            f"{ensemble.url}: its bound for --effort adaptive was measured before the ensemble changed; measure "
            f"it again with `chorus ensemble effort`, or use --effort full"
        )
    for name in ("tile", "overlap", "augmentations"):
        if getattr(settings, name) != getattr(bound, name):
            raise RefusedError(
                f"{ensemble.url}: --effort adaptive was measured with {name} {getattr(bound, name)}, not "
                f"{getattr(settings, name)}; measure again with `chorus ensemble effort`, or leave out the option "
                "that changes it"
            )
    if settings.volumes:
        raise RefusedError("--effort adaptive: results of volumes get full effort; leave --effort or --volumes out")
    save = in_order({*settings.save, SAMPLES.name}) if settings.save else []
    return settings.model_copy(update={"bound": bound, "save": save})


def _full(settings: ResolvedSettings) -> ResolvedSettings:
    if SAMPLES.name in settings.save:
        raise RefusedError(f"--save {SAMPLES.name}: is the same everywhere with full effort; use --effort adaptive")
    return settings


def inference_settings(settings: ResolvedSettings, ensemble: Ensemble) -> InferenceSettings:
    """Return the settings that the engine needs."""
    return InferenceSettings(
        outputs=ensemble.outputs,
        multilabel=ensemble.multilabel,
        tile=settings.tile,
        augmentations=tuple(settings.augmentations),
        batch=settings.batch,
        precision=settings.precision,
        effort=settings.bound,
    )


def plan_images(
    sources: Iterable[str], ensemble: Ensemble, settings: ResultSettings, out: str | None = None
) -> Iterator[PlannedImage | FailedImage]:
    """Every image of `sources` with its channels, level and size; those that cannot be done with the reason.

    `out` is left out, where it lies within a source.
    """
    for image in find_images(list(sources), without=out):
        if isinstance(image, FailedImage):
            yield image
            continue
        try:
            yield plan_image(image, ensemble, settings)
        except ImageError as error:
            yield FailedImage(image.root, image.path, image.name, str(error))


def plan_image(image: SourceImage, ensemble: Ensemble, settings: ResultSettings) -> PlannedImage:
    """Return one image's row of the table; raise ImageError where channels or level do not fit."""
    channels = choose_channels(image, settings.channel, ensemble.spec.input.channels)
    if settings.in_place and file_in(image.root) is not None:
        raise ImageError(
            f"{image.url}: is a file of another format than OME-Zarr, in which no labels can be stored; leave out "
            "--in-place, or convert it first"
        )
    rescaling = _rescaling(settings, ensemble)
    choice = choose_level(image, settings.level, ensemble.spec.input.pixel_size_um, rescaling)
    level = image.levels[choice.level]
    unknown = "" if rescaling else unknown_pixel_size(image, ensemble.spec.input.pixel_size_um)
    kept = [image.axes.index(a) for a in "tzyx" if a in image.axes]
    height, width = (level.shape[image.axes.index(a)] for a in "yx")
    model_height, model_width = plane_shape((height, width), choice.factor)
    planned = PlannedImage(
        name=image.name,
        root=image.root,
        path=image.path,
        kind=image.kind,
        ngff=image.ngff,
        axes=image.axes,
        shape=level.shape,
        dtype=level.dtype,
        level_path=level.path,
        output_axes="".join(image.axes[i] for i in kept),
        output_shape=tuple(level.shape[i] for i in kept),
        scale=tuple(level.scale[i] for i in kept),
        translation=tuple(level.translation[i] for i in kept),
        units=tuple(image.units[i] for i in kept),
        channels=channels,
        model_height=model_height,
        model_width=model_width,
        region=settings.region,
        note="; ".join(note for note in (image.note, unknown) if note),
    )
    return turned(planned, "yx" if settings.volumes == "all" else settings.volumes) if settings.volumes else planned


def _rescaling(settings: ResultSettings, ensemble: Ensemble) -> float | None:
    """Return the factor from the image's object diameter to that of the training data; None: the pixel size decides."""
    if settings.diameter is None:
        return None
    trained = ensemble.spec.input.diameter_px
    if trained is None:
        raise RefusedError(
            f"{ensemble.url}: --diameter needs `input.diameter_px`, the diameter of the objects that its members were "
            "trained on; add it (30 for Cellpose) or leave out --diameter"
        )
    return trained / settings.diameter


def layout_of(image: PlannedImage, ensemble: Ensemble, settings: ResultSettings, out: str) -> ImageLayout:
    """Return the layout of the results of `image`."""
    url = inside(storage.join(out, "images"), image.name)
    given = outputs_of(settings, ensemble)
    fields = [FIELDS[name] for name in settings.save]
    kept = [
        (channel, MapDisplay(*field.window(given), field.unit(given)))
        for field in fields
        for channel in field.channels(given)
    ]
    return ImageLayout(
        url=url,
        labels_url=image.url if settings.in_place else url,
        labels_ngff=image.ngff if settings.in_place else "0.5",
        source_url=image.url,
        axes=image.output_axes,
        shape=image.output_shape,
        scale=image.scale,
        translation=image.translation,
        units=image.units,
        channels=tuple(channel for channel, _ in kept),
        displays=tuple(display for _, display in kept),
        dtype=settings.dtype,
        classes=ensemble.classes,
        chunk=settings.chunk,
        region=settings.region,
    )


def outputs_of(settings: ResultSettings, ensemble: Ensemble) -> Outputs:
    """Return the outputs that the results of a run may hold."""
    axes = "zyx" if settings.volumes == "all" else "yx"
    samples = len(ensemble.spec.members) * len(settings.augmentations or ensemble.spec.augmentations)
    outputs = ensemble.outputs.along(axes)
    return outputs.sampled(samples) if settings.effort == "adaptive" else outputs


def model_grid(image: PlannedImage, settings: ResolvedSettings) -> Grid:
    """Return the tiles of one plane, at the ensemble's pixel size."""
    return Grid.make((image.model_height, image.model_width), settings.tile, settings.overlap)


def model_centres(image: PlannedImage, region: Window) -> Window:
    """Return the model's pixels whose centres lie in a region; tiles belong to the region that holds their centre."""
    return centres_in(region, (image.height, image.width), (image.model_height, image.model_width))


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a run, computed from the plan.

    Attributes
    ----------
    images, regions : how many
    tiles : evaluated, those that two regions share counted twice; `unique_tiles` counts them once
    forward_passes : tiles times members times augmentations, at most that with adaptive effort
    megapixels : of the segmented planes
    bytes_in, bytes_out : uncompressed
    most_tiles : of any region
    """

    images: int
    regions: int
    tiles: int
    unique_tiles: int
    forward_passes: int
    megapixels: float
    bytes_in: int
    bytes_out: int
    most_tiles: int


def cost(table: ImageTable, ensemble: Ensemble, settings: ResolvedSettings) -> Cost:
    """Return the cost of all images of `table`."""
    tiles, unique, most = tile_counts(table, settings)
    pixels = bytes_in = bytes_out = 0
    given = outputs_of(settings, ensemble)
    channels_out = sum(len(FIELDS[name].channels(given)) for name in settings.save)
    item = np.dtype(settings.dtype).itemsize * channels_out + 1
    examples, kind = table.kinds
    for image, count in zip(examples, np.bincount(kind).tolist(), strict=True):
        pixels += count * image.pixels
        bytes_in += count * image.pixels * len(image.channels) * np.dtype(image.dtype).itemsize
        bytes_out += count * image.pixels * item
    passes = tiles * len(ensemble.spec.members) * len(settings.augmentations)
    return Cost(len(table), table.regions, tiles, unique, passes, pixels / 1e6, bytes_in, bytes_out, most)


def tile_counts(table: ImageTable, settings: ResolvedSettings, region: int | None = None) -> tuple[int, int, int]:
    """Return the tiles of all regions, the tiles of all planes, and the most tiles of a region; for any edge."""
    tiles = unique = most = 0
    examples, kind = table.kinds
    for image, count in zip(examples, np.bincount(kind).tolist(), strict=True):
        for view in [turned(image, name) for name in VIEWS] if settings.volumes == "all" else [image]:
            planes = count * view.planes[0] * view.planes[1]
            grid, edge = model_grid(view, settings), region or view.region
            rows = _axis_tiles(grid.y, view.height, view.model_height, edge)
            columns = _axis_tiles(grid.x, view.width, view.model_width, edge)
            tiles, unique = tiles + planes * sum(rows) * sum(columns), unique + planes * grid.count
            most = max(most, max(rows) * max(columns))
    return tiles, unique, most


def _axis_tiles(axis: TileAxis, length: int, model_length: int, size: int) -> list[int]:
    """Return the tiles that each region needs along one axis; a region of the plane needs the product of both axes."""
    regions = RegionGrid(length, 1, size)
    back = AxisMap.make(model_length, length)
    return [len(axis.touching(back.needed(regions.window(index).y))) for index in range(regions.count)]
