"""Read the metadata of an OME-Zarr: of one image, a plate, a well, a collection.

NGFF 0.4 (Zarr 2) and 0.5 (Zarr 3), checked with the models of ``ome-zarr-models`` and handed on as of 0.5. What
is missing or not valid is an error that names the group and the field.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from ome_zarr_models.base import BaseAttrs
from ome_zarr_models.common.coordinate_transformations import Transform, VectorScale, VectorTranslation
from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
from ome_zarr_models.v04.plate import Plate as Plate04
from ome_zarr_models.v04.well_types import WellMeta as Well04
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.multiscales import Dataset, Multiscale
from ome_zarr_models.v05.plate import Plate
from ome_zarr_models.v05.well_types import WellMeta as Well
from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from chorus.pipeline.errors import ChorusError, ImageError, RefusedError, reason_of
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside, shown
from chorus.pipeline.io.models import DTYPES, Level, Ngff, SourceImage
from chorus.pipeline.io.opened_arrays import UnknownCodecError, open_array
from chorus.pipeline.io.sources.file_store import source_store
from chorus.pipeline.io.sources.level_geometry import with_scales_of_shapes
from chorus.pipeline.io.storage_failures import failure_sentence, one_line

_LEVELS = 64
_PLANE, _PLANES, _CHUNK = 1 << 40, 1 << 20, 1 << 32
"""Maximum pixels per plane, planes per channel and bytes per (inner) chunk: no microscope produces more."""
MEND = "mend the metadata or write the image anew"

Kind: TypeAlias = Literal["image", "plate", "collection"]
Model = TypeVar("Model", bound=BaseModel)

_AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


class _ChannelLabel(BaseAttrs):
    """All that is needed of a channel: omero's own model also demands a colour, which real files leave out.

    A label that is a number, such as a wavelength, is its digits; one of another type names nothing.
    """

    label: str | None = None

    @field_validator("label", mode="before")
    @classmethod
    def _text(cls, label: Any) -> str | None:
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            return None
        return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def open_image(root: str, kind: Kind, path: str, name: str, *, dtypes: Collection[str] = DTYPES) -> SourceImage:
    """Return the image at `path` of the `kind` of source at `root`; `name` is that of its results.

    Parameters
    ----------
    dtypes : names of the types that its pixels may have

    Raises
    ------
    ImageError : its metadata are not valid, or an array is missing
    RefusedError : storage does not give them
    """
    url = inside(root, path, ImageError, what="the path of an image") if path else root
    ngff, metadata = _metadata(url)
    multiscale = _multiscale(metadata, ngff, url)
    axes = _letters(multiscale.axes, url)
    stored = tuple(_level(url, ngff, axes, multiscale, dataset, dtypes) for dataset in multiscale.datasets)
    levels, note = with_scales_of_shapes(axes, stored)
    channels = levels[0].shape[axes.index("c")] if "c" in axes else 1
    return SourceImage(
        root=root,
        kind=kind,
        path=path,
        name=name,
        ngff=ngff,
        axes=axes,
        units=tuple(axis.unit if isinstance(axis.unit, str) else None for axis in multiscale.axes),
        levels=levels,
        channels=_channels(metadata, channels),
        note=note,
    )


def plate_metadata(root: str) -> Plate:
    """Read the metadata of the plate at `root`, as of NGFF 0.5; raise ImageError if they are not valid."""
    ngff, metadata = _metadata(root)
    model = Plate04 if ngff == "0.4" else Plate
    plate = _validated(model, {"version": ngff, **_section(metadata, "plate", root)}, root, "plate")
    return Plate.model_validate({**plate.model_dump(), "version": "0.5"})


def well_metadata(root: str, well_path: str) -> Well:
    """Read the metadata of a well of the plate at `root`, as of NGFF 0.5; raise ImageError if they are not valid."""
    url = inside(root, well_path, ImageError, what="the path of a well")
    ngff, metadata = _metadata(url)
    model = Well04 if ngff == "0.4" else Well
    well = _validated(model, _section(metadata, "well", url), url, "well")
    return Well.model_validate({**well.model_dump(), "version": "0.5"})


def collection_series(root: str) -> list[str]:
    """List the paths of the images of the bioformats2raw collection at `root`.

    They are listed in its ``OME`` group or else, as the layout says, are called 0, 1, 2, ... without a gap.
    """
    listed = None
    if open_group(storage.join(root, "OME")) is not None:
        listed = _metadata(storage.join(root, "OME"))[1].get("series")
    if listed is None:
        numbers = (str(number) for number in count())
        listed = []
        while open_group(storage.join(root, path := next(numbers))) is not None:
            listed.append(path)
    try:
        return TypeAdapter(list[str]).validate_python(listed)
    except ValidationError as error:
        raise ImageError(f"{root}/OME: series is not a list of paths; {MEND}") from error


def open_group(url: str) -> zarr.Group | None:
    """Open the group at `url`; None if there is none.

    Raises ContainsArrayError for a Zarr 3 array, ImageError for metadata that cannot be read and RefusedError
    for what storage answers. The formats are tried one after the other, since a bucket without the right to
    list answers "forbidden" for the keys of the other format.
    """
    failure: Exception | None = None
    store = source_store(url)
    for zarr_format in (3, 2):
        try:
            return zarr.open_group(store, mode="r", zarr_format=zarr_format, use_consolidated=False)
        except FileNotFoundError:
            continue
        except zarr.errors.ContainsArrayError:
            raise
        except Exception as error:  # noqa: BLE001 - raised below, chained
            failure = failure or error
    if failure:
        raise _unopened(failure, url) from failure
    return None


def _multiscale(metadata: Mapping[str, Any], ngff: Ngff, url: str) -> Multiscale:
    """Read the first multiscales of an image; axes without a type get the one that goes with their name."""
    listed = metadata.get("multiscales")
    if not (isinstance(listed, list) and listed and isinstance(listed[0], dict)):
        raise ImageError(f"{url}: multiscales is missing or empty; {MEND}")
    raw = dict(listed[0])
    # Before the models look at each of them.
    if isinstance(raw.get("datasets"), list) and len(raw["datasets"]) > _LEVELS:
        raise ImageError(f"{url}: lists {len(raw['datasets'])} levels, more than {_LEVELS}; {MEND}")
    if isinstance(raw.get("axes"), list):
        raw["axes"] = [
            {**axis, "type": axis.get("type") or _AXIS_TYPES.get(str(axis.get("name")).lower())}
            if isinstance(axis, dict)
            else axis
            for axis in raw["axes"]
        ]
    if ngff == "0.4":
        return _validated(Multiscale04, raw, url, "multiscales.0").to_version("0.5")
    return _validated(Multiscale, raw, url, "multiscales.0")


def _letters(axes: Sequence[Axis], url: str) -> str:
    letters = {"time": "t", "channel": "c"}
    axis_letters = ""
    for axis in axes:
        name = str(axis.name).lower()
        letter = letters.get(str(axis.type), name if axis.type == "space" and name in ("z", "y", "x") else "")
        if not letter:
            raise ImageError(
                f"{url}: axis {axis.name!r} has type {axis.type!r}, but axes are time, channel and the spaces z, y "
                "and x; split the image along it or rename it"
            )
        axis_letters += letter
    if len(set(axis_letters)) < len(axis_letters) or not {"y", "x"} <= set(axis_letters):
        raise ImageError(f"{url}: axes are {axis_letters!r}, but y and x are needed and each axis once; {MEND}")
    return axis_letters


def _level(url: str, ngff: Ngff, axes: str, multiscale: Multiscale, dataset: Dataset, dtypes: Collection[str]) -> Level:
    array = _open_array(url, ngff, dataset.path)
    where = f"{storage.join(url, dataset.path)}"
    if array.ndim != len(axes) or 0 in array.shape:
        raise ImageError(f"{where}: shape {array.shape} does not go with the axes {axes!r}; {MEND}")
    _check_size(where, axes, array)
    if array.dtype.name not in dtypes:
        mend = f"store the image as one of {', '.join(dtypes)}"
        raise ImageError(f"{where}: data type {array.dtype.name} is not supported; {mend}")
    scale, translation = _transformation(dataset.coordinateTransformations, len(axes), where)
    scale_all, translation_all = _transformation(multiscale.coordinateTransformations or (), len(axes), url)
    return Level(
        path=dataset.path,
        shape=tuple(array.shape),
        chunks=tuple(array.chunks),
        dtype=array.dtype.name,
        scale=tuple((scale * scale_all).tolist()),
        translation=tuple((translation * scale_all + translation_all).tolist()),
    )


def _check_size(where: str, axes: str, array: zarr.Array[Any]) -> None:
    """Refuse metadata that only claim a huge size, before planning or decoding; computed in unbounded integers."""
    lengths = dict(zip(axes, (int(length) for length in array.shape), strict=True))
    plane = lengths["y"] * lengths["x"]
    planes = lengths.get("t", 1) * lengths.get("z", 1)
    chunk = math.prod(int(length) for length in array.chunks) * array.dtype.itemsize
    if plane > _PLANE or planes > _PLANES or lengths.get("c", 1) > _PLANES:
        raise ImageError(f"{where}: claims the shape {array.shape}, more than any image has; {MEND}")
    if chunk > _CHUNK:
        raise ImageError(
            f"{where}: its chunks {array.chunks} take {chunk >> 20} MiB each, more than the {_CHUNK >> 20} that are "
            "read at once; store it in smaller chunks"
        )


def _open_array(url: str, ngff: Ngff, path: str) -> zarr.Array[Any]:
    where = inside(url, path, ImageError, what="the path of an array")
    try:
        return open_array(source_store(where), zarr_format=2 if ngff == "0.4" else 3)
    except UnknownCodecError as error:
        raise ImageError(f"{where}: {error}") from error
    except FileNotFoundError as error:
        message = f"{url}: array {shown(path)}, listed in multiscales.0.datasets, is missing"
        raise ImageError(f"{message}; copy the image again or mend the metadata") from error
    except Exception as error:
        raise _unopened(error, where) from error


def _transformation(
    transforms: Sequence[Transform], axes: int, url: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scale and translation per axis; the model has checked that these are (scale) or (scale, translation)."""
    scale, translation = np.ones(axes), np.zeros(axes)
    for transform in transforms:
        if isinstance(transform, VectorScale):
            scale = np.array(transform.scale)
        elif isinstance(transform, VectorTranslation):
            translation = np.array(transform.translation)
        else:
            raise ImageError(f"{url}: coordinateTransformations keep numbers in a file; write them in the metadata")
    return scale, translation


def _channels(metadata: Mapping[str, Any], number: int) -> tuple[str, ...]:
    """Return the channels' labels; their index if ``omero``, which is only for viewers, is absent or invalid."""
    omero = metadata.get("omero")
    try:
        listed = TypeAdapter(list[_ChannelLabel]).validate_python(omero["channels"] if omero else [])
    except (ValidationError, LookupError, TypeError):
        listed = []
    labels = [channel.label for channel in listed[:number]] + [None] * (number - len(listed))
    return tuple(label or str(index) for index, label in enumerate(labels))


def _metadata(url: str) -> tuple[Ngff, Mapping[str, Any]]:
    """Read version and content of the NGFF metadata of the group at `url`."""
    group = open_group(url)
    if group is None:
        raise ImageError(f"{url}: the group is missing although the metadata list it; copy it again or {MEND}")
    attributes = group.attrs.asdict()
    ngff: Ngff = "0.5" if "ome" in attributes else "0.4"
    ome = _section(attributes, "ome", url) if ngff == "0.5" else attributes
    version = ome.get("version", ngff) if ngff == "0.5" else ngff
    if version != ngff or group.metadata.zarr_format != (3 if ngff == "0.5" else 2):
        raise ImageError(
            f"{url}: NGFF version {version} in Zarr format {group.metadata.zarr_format} is not supported; write it as "
            "0.5 (Zarr 3) or 0.4 (Zarr 2)"
        )
    return ngff, ome


def _section(metadata: Mapping[str, Any], key: str, url: str) -> Mapping[str, Any]:
    section = metadata.get(key)
    if not isinstance(section, Mapping):
        raise ImageError(f"{url}: {key} is missing or is not an object; {MEND}")
    return section


def _validated(model: type[Model], data: Mapping[str, Any], url: str, field: str) -> Model:
    # the models' own checks raise LookupError where lists differ in length
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, (field, *first["loc"])))
        reason = " ".join(reason_of(first["msg"]).split()).rstrip(".")
        raise ImageError(f"{url}: {field} is not valid NGFF ({reason}); {MEND}") from error
    except (TypeError, LookupError, AttributeError) as error:
        raise ImageError(f"{url}: {field} is not valid NGFF ({error}); {MEND}") from error


def _unopened(error: Exception, url: str) -> ChorusError:
    """Return the exception for an error while opening a group or array: storage's error, or damaged metadata."""
    if isinstance(error, ImageError):
        return error
    if sentence := failure_sentence(error, url):
        return RefusedError(sentence)
    return ImageError(f"{url}: its Zarr metadata cannot be read ({one_line(error)}); {MEND}")
