"""Find the images of a source: one OME-Zarr, a plate, a collection, or a folder of many.

NGFF 0.4 (Zarr 2) and 0.5 (Zarr 3), read with the models of ``ome-zarr-models``. What stops one image is
recorded as a `FailedImage` and the others go on; only a named source that holds no image at all is refused.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, TypeVar

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
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline import storage
from pipeline.errors import ChorusError, ImageError, RefusedError
from pipeline.layout import FailedImage, Level, Ngff, SourceImage

DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")

Kind = Literal["image", "plate", "collection"]
Model = TypeVar("Model", bound=BaseModel)

_AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_MEND = "mend the metadata or write the image anew"


class _ChannelLabel(BaseAttrs):
    """All that is needed of a channel: omero's own model also demands a colour, which real files leave out."""

    label: str | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """What stands at a URL: a root of images (`kind`), or else folders to look into and words for the rest."""

    url: str
    kind: Kind | None = None
    children: tuple[str, ...] = ()
    words: str = ""
    failure: ChorusError | None = None


def expand(sources: Sequence[str]) -> list[str]:
    """The normalised URLs that paths, globs and ``.txt`` lists (one URL a line, ``#`` comments) stand for.

    Arguments keep their order; each one's URLs are sorted, and every URL is given once.
    Raises RefusedError for a list that cannot be read and for a glob that matches nothing.
    """
    found: list[str] = []
    for source in sources:
        lines = _lines(source) if source.lower().endswith(".txt") else [source]
        found += sorted({url for line in lines for url in _matches(line)})
    return list(dict.fromkeys(found))


def find_images(sources: Sequence[str], *, workers: int = 16) -> Iterator[SourceImage | FailedImage]:
    """Every image of `sources` in a fixed order: that of the arguments, then of sorted paths.

    Metadata is read by `workers` threads. Raises RefusedError, before the first image, for a source that is
    not OME-Zarr and holds none.
    """
    with ThreadPoolExecutor(workers) as pool:
        # a folder that is reached by two ways (twice named, a link) counts once
        roots: dict[str, _Place] = {}
        for url in expand(sources):
            for place in _roots(url, pool):
                roots.setdefault(_identity(place.url), place)
        names = _names([place.url for place in roots.values()])
        images = [entry for place in roots.values() for entry in _entries(place, names[place.url], pool)]
        yield from pool.map(_open_entry, images)


def plate_metadata(root: str) -> Plate:
    """Metadata of the plate at `root`, as of NGFF 0.5; raises ImageError where they are not valid."""
    ngff, metadata = _metadata(root)
    model = Plate04 if ngff == "0.4" else Plate
    plate = _validated(model, {"version": ngff, **_section(metadata, "plate", root)}, root, "plate")
    return Plate.model_validate({**plate.model_dump(), "version": "0.5"})


def well_metadata(root: str, well_path: str) -> Well:
    """Metadata of one well of the plate at `root`, as of NGFF 0.5; raises ImageError where they are not valid."""
    url = storage.join(root, well_path)
    ngff, metadata = _metadata(url)
    model = Well04 if ngff == "0.4" else Well
    well = _validated(model, _section(metadata, "well", url), url, "well")
    return Well.model_validate({**well.model_dump(), "version": "0.5"})


def collection_series(root: str) -> list[str]:
    """Paths of the images of the bioformats2raw collection at `root`.

    They are listed in its ``OME`` group or else, as the layout says, are called 0, 1, 2, ... without a gap.
    """
    listed = None
    if _open_group(storage.join(root, "OME")) is not None:
        listed = _metadata(storage.join(root, "OME"))[1].get("series")
    if listed is None:
        numbers = (str(number) for number in count())
        listed = []
        while _open_group(storage.join(root, path := next(numbers))) is not None:
            listed.append(path)
    try:
        return TypeAdapter(list[str]).validate_python(listed)
    except ValidationError as error:
        raise ImageError(f"{root}/OME: series is not a list of paths; {_MEND}") from error


def _lines(url: str) -> list[str]:
    try:
        text = storage.read_bytes(url).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = storage.explain(error, url) or f"{url}: is not a text file; give one URL a line in UTF-8"
        raise RefusedError(reason) from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _matches(source: str) -> list[str]:
    http = storage.scheme(source) in ("http", "https")
    if http or not glob.has_magic(source):
        return [storage.normalise(source)]
    fs, path = storage.filesystem(source)
    try:
        if fs.exists(path):  # a name that has a bracket in it
            return [storage.normalise(source)]
        found = [storage.normalise(fs.unstrip_protocol(match)) for match in fs.glob(path)]
    except Exception as error:
        raise _storage_error(error, source) from error
    if not found:
        raise RefusedError(f"{source}: matches nothing; check the pattern and the folder before it")
    return found


def _identity(url: str) -> str:
    return os.path.realpath(url) if storage.scheme(url) == "file" else url


def _names(urls: Sequence[str]) -> dict[str, str]:
    """Names of the roots; equal ones (also on file systems that ignore case) are told apart by their URL."""
    stems = {url: storage.basename(url).removesuffix(".zarr").removesuffix(".ome") for url in urls}
    seen = Counter(stem.casefold() for stem in stems.values())
    tags = {url: f"-{hashlib.sha256(url.encode()).hexdigest()[:6]}" for url in urls}
    return {u: f"{s}{tags[u] if seen[s.casefold()] > 1 else ''}.ome.zarr" for u, s in stems.items()}


def _roots(url: str, pool: ThreadPoolExecutor) -> Iterator[_Place]:
    """The roots at and below a named `url`; raises RefusedError where there is none."""
    top = _look(url)
    if isinstance(top.failure, RefusedError):
        raise top.failure
    found = False
    for place in _descend(top, pool, frozenset()):
        found = True
        yield place
    if not found:
        raise RefusedError(
            f"{url}: holds no OME-Zarr image, it is {top.words}; give an OME-Zarr image, plate, collection or a "
            "folder of them, or convert TIFF and PNG first with `chorus convert`"
        )


def _descend(place: _Place, pool: ThreadPoolExecutor, above: frozenset[str]) -> Iterator[_Place]:
    if place.kind or place.failure:
        yield place
    elif (identity := _identity(place.url)) not in above:  # a link may lead back up
        for child in pool.map(_look, place.children):
            yield from _descend(child, pool, above | {identity})


def _look(url: str) -> _Place:
    """What stands at `url`; a failure is part of the answer."""
    try:
        group = _open_group(url)
        kind = None if group is None else _kind(group)
        return _Place(url, kind) if kind else _folder(url, group)
    except zarr.errors.ContainsArrayError:
        return _Place(url, words="a plain Zarr array")
    except ChorusError as error:
        return _Place(url, failure=error)


def _kind(group: zarr.Group) -> Kind | None:
    attributes = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    keys: dict[str, Kind] = {"plate": "plate", "multiscales": "image", "bioformats2raw.layout": "collection"}
    return next((kind for key, kind in keys.items() if isinstance(ome, Mapping) and key in ome), None)


def _folder(url: str, group: zarr.Group | None) -> _Place:
    if storage.scheme(url) in ("http", "https"):
        what = "no OME-Zarr is found" if group is None else "a Zarr group without an image is found"
        raise RefusedError(
            f"{url}: {what}, and folders cannot be listed over HTTP; give the URL of one image, plate or collection"
        )
    fs, path = storage.filesystem(url)
    try:
        entries = {storage.basename(entry["name"]): entry["type"] for entry in fs.ls(path, detail=True)}
    except NotADirectoryError:
        return _Place(url, words="a file")
    except Exception as error:
        raise _storage_error(error, url) from error
    if entries == {storage.basename(url): "file"}:
        return _Place(url, words="a file")
    if ".zarray" in entries:
        return _Place(url, words="a plain Zarr array")
    folders = sorted(name for name, type_ in entries.items() if type_ == "directory" and name[0] != ".")
    words = "a folder without any" if entries else "an empty folder"
    return _Place(url, children=tuple(storage.join(url, name) for name in folders), words=words)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image to open, or one that has failed already."""

    root: str
    kind: Kind
    path: str
    name: str
    failure: ChorusError | None = None


def _entries(place: _Place, name: str, pool: ThreadPoolExecutor) -> list[_Entry]:
    """The images of a root, in the order of its metadata."""

    def entry(path: str, failure: ChorusError | None = None) -> _Entry:
        return _Entry(place.url, place.kind or "image", path, f"{name}/{path}" if path else name, failure)

    def fields(well: str) -> list[_Entry]:
        try:
            return [entry(f"{well}/{image.path}") for image in well_metadata(place.url, well).images]
        except ChorusError as error:
            return [entry(well, error)]

    if place.failure or place.kind == "image":
        return [entry("", place.failure)]
    try:
        if place.kind == "plate":
            wells = [well.path for well in plate_metadata(place.url).wells]
            found = [field for well in pool.map(fields, wells) for field in well]
        else:
            found = [entry(path) for path in collection_series(place.url)]
    except ChorusError as error:
        return [entry("", error)]
    return found or [entry("", ImageError(f"{place.url}: the {place.kind} lists no image; {_MEND}"))]


def _open_entry(entry: _Entry) -> SourceImage | FailedImage:
    try:
        if entry.failure:
            raise entry.failure
        return _open_image(entry)
    except ChorusError as error:
        return FailedImage(entry.root, entry.path, entry.name, str(error))


def _open_image(entry: _Entry) -> SourceImage:
    url = storage.join(entry.root, entry.path)
    ngff, metadata = _metadata(url)
    multiscale = _multiscale(metadata, ngff, url)
    axes = _letters(multiscale.axes, url)
    levels = tuple(_level(url, ngff, axes, multiscale, dataset) for dataset in multiscale.datasets)
    channels = levels[0].shape[axes.index("c")] if "c" in axes else 1
    return SourceImage(
        root=entry.root,
        kind=entry.kind,
        path=entry.path,
        name=entry.name,
        ngff=ngff,
        axes=axes,
        units=tuple(axis.unit if isinstance(axis.unit, str) else None for axis in multiscale.axes),
        levels=levels,
        channels=_channels(metadata, channels),
    )


def _multiscale(metadata: Mapping[str, Any], ngff: Ngff, url: str) -> Multiscale:
    """The first multiscales of an image; axes without a type get the one that goes with their name."""
    listed = metadata.get("multiscales")
    if not (isinstance(listed, list) and listed and isinstance(listed[0], dict)):
        raise ImageError(f"{url}: multiscales is missing or empty; {_MEND}")
    raw = dict(listed[0])
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
    found = ""
    for axis in axes:
        name = str(axis.name).lower()
        letter = letters.get(str(axis.type), name if axis.type == "space" and name in ("z", "y", "x") else "")
        if not letter:
            raise ImageError(
                f"{url}: axis {axis.name!r} has type {axis.type!r}, but axes are time, channel and the spaces z, y "
                "and x; split the image along it or rename it"
            )
        found += letter
    if len(set(found)) < len(found) or not {"y", "x"} <= set(found):
        raise ImageError(f"{url}: axes are {found!r}, but y and x are needed and each axis once; {_MEND}")
    return found


def _level(url: str, ngff: Ngff, axes: str, multiscale: Multiscale, dataset: Dataset) -> Level:
    array = _open_array(url, ngff, dataset.path)
    where = f"{storage.join(url, dataset.path)}"
    if array.ndim != len(axes) or 0 in array.shape:
        raise ImageError(f"{where}: shape {array.shape} does not go with the axes {axes!r}; {_MEND}")
    if array.dtype.name not in DTYPES:
        mend = f"store the image as one of {', '.join(DTYPES)}"
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


def _open_array(url: str, ngff: Ngff, path: str) -> zarr.Array[Any]:
    where = storage.join(url, path)
    try:
        store = storage.store(where, read_only=True)
        return zarr.open_array(store, mode="r", zarr_format=2 if ngff == "0.4" else 3)
    except FileNotFoundError as error:
        message = f"{url}: array {path!r}, listed in multiscales.0.datasets, is missing"
        raise ImageError(f"{message}; copy the image again or mend the metadata") from error
    except Exception as error:
        raise _storage_error(error, where) from error


def _transformation(
    transforms: Sequence[Transform], axes: int, url: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and translation per axis of what the model has checked to be (scale) or (scale, translation)."""
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
    """Labels of the channels; their index where ``omero`` is absent or invalid, since it is only for viewers."""
    omero = metadata.get("omero")
    try:
        listed = TypeAdapter(list[_ChannelLabel]).validate_python(omero["channels"] if omero else [])
    except (ValidationError, LookupError, TypeError):
        listed = []
    labels = [channel.label for channel in listed[:number]] + [None] * (number - len(listed))
    return tuple(label or str(index) for index, label in enumerate(labels))


def _open_group(url: str) -> zarr.Group | None:
    """The group at `url`, None where there is none.

    Raises ContainsArrayError for a Zarr 3 array, ImageError for metadata that cannot be read and RefusedError
    for what storage answers. The formats are tried one after the other, since a bucket without the right to
    list answers "forbidden" for the keys of the other format.
    """
    failure: Exception | None = None
    for zarr_format in (3, 2):
        try:
            store = storage.store(url, read_only=True)
            return zarr.open_group(store, mode="r", zarr_format=zarr_format, use_consolidated=False)
        except FileNotFoundError:
            continue
        except zarr.errors.ContainsArrayError:
            raise
        except Exception as error:  # noqa: BLE001 - raised below, chained
            failure = failure or error
    if failure:
        raise _storage_error(failure, url) from failure
    return None


def _storage_error(error: Exception, url: str) -> ChorusError:
    """What to tell of an error while opening: filesystems raise types of many libraries, Zarr only these four."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError | TypeError | AttributeError | KeyError):
        return ImageError(f"{url}: its Zarr metadata cannot be read ({reason}); {_MEND}")
    return RefusedError(
        storage.explain(error, url) or f"{url}: storage failed ({reason}); check the URL and the credentials"
    )


def _metadata(url: str) -> tuple[Ngff, Mapping[str, Any]]:
    """Version and content of the NGFF metadata of the group at `url`."""
    group = _open_group(url)
    if group is None:
        raise ImageError(f"{url}: the group is missing although the metadata list it; copy it again or {_MEND}")
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
        raise ImageError(f"{url}: {key} is missing or is not an object; {_MEND}")
    return section


def _validated(model: type[Model], data: Mapping[str, Any], url: str, field: str) -> Model:
    # the models' own checks raise LookupError where lists differ in length
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, (field, *first["loc"])))
        reason = " ".join(first["msg"].removeprefix("Value error, ").split()).rstrip(".")
        raise ImageError(f"{url}: {field} is not valid NGFF ({reason}); {_MEND}") from error
    except (TypeError, LookupError, AttributeError) as error:
        raise ImageError(f"{url}: {field} is not valid NGFF ({error}); {_MEND}") from error
