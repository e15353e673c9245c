"""The work of a run: the images of the sources, their division into regions, and the cost. Reads metadata only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from chorus.cluster.planning.image_table import ImageTable, PlannedImage
from chorus.cluster.planning.settings import CUTS, Edge, Overlap, ResultSettings
from chorus.cluster.planning.volume_views import VIEWS, turned
from chorus.pipeline.backends.choice import Backend, check_backend
from chorus.pipeline.backends.choosing import Workload, choose
from chorus.pipeline.core.answers import AnswerShape
from chorus.pipeline.core.augmentation import refused
from chorus.pipeline.core.fields import FIELDS, SAMPLES, in_order
from chorus.pipeline.core.geometry import Grid, Span, TileAxis, TileSize, Window, of_each, tile_shape
from chorus.pipeline.core.outputs import EFFORT, FLOWS, Outputs
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.ensembles.spec import answer_wrong, tiles_wrong
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
from chorus.pipeline.preprocessing.resampling import AxisMap, shape_of

# Where the image table is kept, below the output.
PLAN = ("plan", "images.parquet")


class ResolvedSettings(ResultSettings):
    """Result settings in which every choice of the ensemble or the device is filled in.

    `bound` says which tiles are done after the first round; None with full effort. `answer` is the shape of members'
    answers.
    """

    tile: Edge | tuple[Edge, Edge, Edge]
    overlap: Overlap | tuple[Overlap, Overlap, Overlap]
    region: int = Field(ge=64)
    chunk: int = Field(ge=16)
    augmentations: list[str]
    batch: int
    backend: Backend
    bound: EffortBound | None = None
    answer: AnswerShape = Field(default=AnswerShape(), exclude_if=lambda shape: shape == AnswerShape())

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Return the pixels of a tile on each axis."""
        return tile_shape(self.tile)


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

    def diameter_url(self, image: str) -> str:
        """Return the URL of the estimated diameter of the objects of one image."""
        return inside(storage.join(self.out, "plan", "diameters"), image + ".json")

    @property
    def dataset_url(self) -> str:
        """Return the URL of the statistics of the data set."""
        return storage.join(self.out, "plan", "statistics.json")


def resolve(settings: ResultSettings, ensemble: Ensemble) -> ResolvedSettings:
    """Fill in what the ensemble or the device decides; raise RefusedError where a setting does not fit them."""
    spec = ensemble.spec
    if spec.input.axes == "zyx":
        _planes_only(settings, ensemble)
    _rescaling(settings, ensemble)
    given = outputs_of(settings, ensemble)
    for field in (FIELDS[name] for name in settings.save):
        if not field.given(given) and field.role is not EFFORT:
            raise RefusedError(
                f"{ensemble.url}: its members give no {field.role.name}; leave `{field.name}` out of --save"
            )
    if settings.diameter == "auto" and (settings.volumes or spec.input.axes == "zyx"):
        raise RefusedError("--diameter auto: objects in volumes are not measured beforehand; give --diameter in pixels")
    if settings.volumes and FLOWS not in ensemble.outputs:
        raise RefusedError(f"{ensemble.url}: its members give no flows, which --volumes needs; leave --volumes out")
    unmerged = [name for name in settings.save if FIELDS[name].symmetry in ("rays", "offsets")]
    if settings.volumes and unmerged:
        raise RefusedError(
            f"{ensemble.url}: `{unmerged[0]}` of planes in three directions have no mean; leave it out of --save, or "
            "leave --volumes out"
        )
    tile, overlap, augmentations = _tiles(settings, ensemble)
    if reason := refused(ensemble.outputs, tuple(augmentations), spec.input.axes):
        raise RefusedError(f"{ensemble.url}: {reason}; leave it out of --augment")
    workload = Workload(tile, len(augmentations), settings.precision, torch.device(settings.device))
    backend, batch = settings.backend, settings.batch or workload.batch
    if backend == "auto":
        backend, batch = choose(ensemble, workload, settings.batch)
    check_backend(backend, settings.precision, settings.device)
    filled = {"tile": tile, "overlap": overlap, "augmentations": augmentations, "batch": batch, "backend": backend}
    if wrong := answer_wrong(spec.answer, spec.input.axes, of_each(tile, len(spec.input.axes)), augmentations):
        raise RefusedError(f"{ensemble.url}: answer: {wrong}; correct --tile or --augment")
    shape = {"answer": spec.answer_shape.model_dump()}
    resolved = ResolvedSettings.model_validate(settings.model_dump() | filled | shape | _cut(settings, ensemble))
    return _adaptive(resolved, ensemble) if settings.effort == "adaptive" else _full(resolved)


def _tiles(settings: ResultSettings, ensemble: Ensemble) -> tuple[TileSize, float | tuple[float, ...], list[str]]:
    """Return size and overlap of tiles, and augmentations, of volumes one number for each axis."""
    spec = ensemble.spec
    tile = spec.tile if settings.tile is None else settings.tile
    overlap = spec.overlap if settings.overlap is None else settings.overlap
    augmentations = settings.augmentations or spec.augmentations
    if wrong := tiles_wrong(spec.input.axes, tile, overlap, augmentations):
        name, reason = wrong
        raise RefusedError(f"--{'augment' if name == 'augmentations' else name}: {reason}")
    if spec.input.axes == "yx":
        return tile, overlap, augmentations
    return of_each(tile, 3), of_each(overlap, 3), augmentations


def _cut(settings: ResultSettings, ensemble: Ensemble) -> dict[str, int | None]:
    """Return the edges of regions and chunks; raise RefusedError where they do not go with the ensemble's axes."""
    axes = ensemble.spec.input.axes
    if axes == "yx" and (settings.region_depth or settings.chunk_depth):
        name = "region" if settings.region_depth else "chunk"
        raise RefusedError(f"{ensemble.url}: its members take planes; leave out --{name}-depth")
    usual = asdict(CUTS[axes])
    edges = {name: getattr(settings, name) or value for name, value in usual.items()}
    for region, chunk in (("region", "chunk"), ("region_depth", "chunk_depth")):
        if axes == "zyx" and getattr(settings, chunk) is None:
            # A block smaller than the usual chunk is one chunk.
            edges[chunk] = min(edges[chunk], edges[region])
        if edges[region] and edges[region] % edges[chunk]:
            names = [f"{name.replace('_', '-')} {edges[name]}" for name in (region, chunk)]
            raise RefusedError(f"--{names[0]} is not a multiple of --{names[1]}")
    return edges


def _planes_only(settings: ResultSettings, ensemble: Ensemble) -> None:
    """Raise RefusedError where a setting does not go together with members that take volumes."""
    url = ensemble.url
    if settings.volumes:
        raise RefusedError(
            f"{url}: its members take volumes themselves, and --volumes makes volumes of what members say of planes; "
            "leave --volumes out"
        )
    if settings.effort == "adaptive":
        raise RefusedError(f"{url}: its members take volumes, which get full effort; use --effort full")
    if settings.diameter is not None:
        raise RefusedError(
            f"{url}: its members take volumes, whose pixel sizes decide how they are resampled; leave --diameter out"
        )


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
        tile=settings.tile_shape,
        augmentations=tuple(settings.augmentations),
        batch=settings.batch,
        precision=settings.precision,
        effort=settings.bound,
        answer=settings.answer,
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
    entry, rescaling = ensemble.spec.input, _rescaling(settings, ensemble)
    if entry.axes == "zyx":
        _require_volume(image)
    choice = choose_level(image, settings.level, entry.pixel_sizes_um, rescaling, axes=entry.axes)
    level = image.levels[choice.level]
    unknown = "" if settings.diameter else unknown_pixel_size(image, entry.pixel_sizes_um, axes=entry.axes)
    kept = [image.axes.index(a) for a in "tzyx" if a in image.axes]
    *depth, model_height, model_width = shape_of([level.shape[image.axes.index(a)] for a in entry.axes], choice.factor)
    edges = _cut(settings, ensemble)
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
        region=edges["region"] or 0,
        note="; ".join(note for note in (image.note, unknown) if note),
        model_depth=depth[0] if depth else 0,
        region_depth=edges["region_depth"] or 0,
    )
    return turned(planned, "yx" if settings.volumes == "all" else settings.volumes) if settings.volumes else planned


def _require_volume(image: SourceImage) -> None:
    """Raise ImageError where an image is no volume, which the ensemble takes."""
    depth = image.levels[0].shape[image.axes.index("z")] if "z" in image.axes else 0
    if depth < 2:
        reason = "has one z plane" if depth else f"has no z axis (its axes are {image.axes})"
        raise ImageError(f"{image.url}: {reason}, and the ensemble's members take volumes; use an ensemble of planes")


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
    return None if settings.diameter_px is None else trained / settings.diameter_px


def layout_of(image: PlannedImage, ensemble: Ensemble, settings: ResultSettings, out: str) -> ImageLayout:
    """Return the layout of the results of `image`."""
    url = inside(storage.join(out, "images"), image.name)
    given, edges = outputs_of(settings, ensemble), _cut(settings, ensemble)
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
        chunk=edges["chunk"] or 0,
        region=edges["region"] or 0,
        chunk_depth=edges["chunk_depth"] or 0,
        region_depth=edges["region_depth"] or 0,
    )


def outputs_of(settings: ResultSettings, ensemble: Ensemble) -> Outputs:
    """Return the outputs that the results of a run may hold."""
    axes = "zyx" if settings.volumes == "all" else ensemble.spec.input.axes
    samples = len(ensemble.spec.members) * len(settings.augmentations or ensemble.spec.augmentations)
    outputs = ensemble.outputs.along(axes)
    return outputs.sampled(samples) if settings.effort == "adaptive" else outputs


def model_grid(image: PlannedImage, settings: ResolvedSettings) -> Grid:
    """Return the tiles of one plane or volume, at the ensemble's pixel size."""
    return settings.answer.tiles(image.model_shape, settings.tile_shape, settings.overlap)


def model_centres(image: PlannedImage, region: Window) -> Window:
    """Return the model's pixels whose centres lie in a region; tiles belong to the region that holds their centre."""
    return centres_in(region, image.layer_shape, image.model_shape)


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
            layers, grid = count * math.prod(view.layers), model_grid(view, settings)
            *depth, height, width = view.grid.sizes
            sizes = (*depth, region or height, region or width)
            axes = [
                _axis_tiles(*axis) for axis in zip(grid.axes, view.layer_shape, view.model_shape, sizes, strict=True)
            ]
            tiles, unique = tiles + layers * math.prod(map(sum, axes)), unique + layers * grid.count
            most = max(most, math.prod(map(max, axes)))
    return tiles, unique, most


def _axis_tiles(axis: TileAxis, length: int, model_length: int, size: int) -> list[int]:
    """Return the tiles that each region needs along one axis; a region needs the product of all axes."""
    back = AxisMap.make(model_length, length)
    spans = [Span(start, min(start + size, length)) for start in range(0, length, size)]
    return [len(axis.touching(back.needed(span))) for span in spans]
