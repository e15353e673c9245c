"""The images of a run, their division into regions, and where their results will be. Reads metadata only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict

from chorus.cluster.planning.planned_image import PlannedImage
from chorus.cluster.planning.resolved_settings import ResolvedSettings, outputs_of, region_edges, rescale_factor
from chorus.cluster.planning.settings import ResultSettings
from chorus.cluster.planning.volume_views import turned
from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.tiling import Grid
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import ImageError
from chorus.pipeline.inference.encoder_features import centres_in
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.models import FailedImage, ImageLayout, MapDisplay, SourceImage
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.file_store import file_in
from chorus.pipeline.io.sources.reading import choose_channels, choose_level, unknown_pixel_size
from chorus.pipeline.preprocessing.resampling import shape_of

# Where the image table is kept, below the output.
PLAN = ("plan", "images.parquet")


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
    entry, rescaling = ensemble.spec.input, rescale_factor(settings, ensemble)
    if entry.axes == "zyx":
        _require_volume(image)
    choice = choose_level(image, settings.level, entry.pixel_sizes_um, rescaling, axes=entry.axes)
    level = image.levels[choice.level]
    unknown = "" if settings.diameter else unknown_pixel_size(image, entry.pixel_sizes_um, axes=entry.axes)
    kept = [image.axes.index(a) for a in "tzyx" if a in image.axes]
    *depth, model_height, model_width = shape_of([level.shape[image.axes.index(a)] for a in entry.axes], choice.factor)
    edges = region_edges(settings, ensemble)
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


def layout_of(image: PlannedImage, ensemble: Ensemble, settings: ResultSettings, out: str) -> ImageLayout:
    """Return the layout of the results of `image`."""
    url = inside(storage.join(out, "images"), image.name)
    given, edges = outputs_of(settings, ensemble), region_edges(settings, ensemble)
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


def model_grid(image: PlannedImage, settings: ResolvedSettings) -> Grid:
    """Return the tiles of one plane or volume, at the ensemble's pixel size."""
    return settings.answer.tiles(image.model_shape, settings.tile_shape, settings.overlap)


def model_centres(image: PlannedImage, region: Window) -> Window:
    """Return the model's pixels whose centres lie in a region; tiles belong to the region that holds their centre."""
    return centres_in(region, image.layer_shape, image.model_shape)
