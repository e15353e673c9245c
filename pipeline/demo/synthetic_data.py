"""Simulated fluorescence microscopy and images of other kinds, for the demo.

A field is simulated like its acquisition by a microscope: nuclei with chromatin texture and nucleoli, unevenly
illuminated, blurred by the optics, and recorded by a noisy camera. Intensities and sizes follow U2OS nuclei (Hoechst,
20 x, 0.65 um).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import skimage.data
from numpy.typing import NDArray
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.hcs import HCSAttrs
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale
from ome_zarr_models.v05.plate import Column, Plate, Row, WellInPlate
from ome_zarr_models.v05.well import WellAttrs
from ome_zarr_models.v05.well_types import WellImage, WellMeta
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from zarr import Group, create_group

from chorus.pipeline.io import storage

Quality = Literal["ordinary", "sparse", "dense", "out_of_focus", "low_signal", "empty"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)

PIXEL_SIZE_UM = 0.65
FIELD_SHAPE = (520, 696)
CHUNK = 256

# Images inside scikit-image's own package, so that nothing is downloaded; none is fluorescence of nuclei.
OTHER = ("cell", "coins", "immunohistochemistry", "microaneurysms", "retina")

# One entry per field: two per well, wells row by row. Most are ordinary, so that the poor ones stand out.
_PLATE_ROWS = ("A", "B")
_PLATE_COLUMNS = ("01", "02", "03")
_PLATE_FIELDS: tuple[tuple[Quality, Quality], ...] = (
    ("ordinary", "sparse"),
    ("dense", "ordinary"),
    ("ordinary", "low_signal"),
    ("out_of_focus", "ordinary"),
    ("sparse", "dense"),
    ("empty", "ordinary"),
)

_CAMERA_OFFSET = 110.0
_COUNTS_PER_ELECTRON = 0.5
_READ_NOISE = 2.5  # electrons, standard deviation


@dataclass(frozen=True, slots=True)
class _Optics:
    """Parameters of the fields of one quality.

    Attributes
    ----------
    density : nuclei per 10,000 pixels, lowest and highest
    signal : median brightness of a nucleus over the background, in counts
    blur : standard deviation of the point spread function in pixels, lowest and highest
    debris : specks per 10,000 pixels
    """

    density: tuple[float, float]
    signal: tuple[float, float]
    blur: tuple[float, float]
    debris: float


_OPTICS: dict[Quality, _Optics] = {
    "ordinary": _Optics((1.8, 3.4), (350, 900), (0.8, 1.3), 0.25),
    "sparse": _Optics((0.4, 1.1), (350, 900), (0.8, 1.3), 0.3),
    "dense": _Optics((4.5, 6.0), (350, 900), (0.8, 1.3), 0.35),
    "out_of_focus": _Optics((1.8, 3.4), (350, 900), (4.5, 6.0), 0.25),
    "low_signal": _Optics((1.8, 3.4), (8, 13), (1.0, 1.5), 0.25),
    "empty": _Optics((0.0, 0.0), (350, 900), (0.8, 1.3), 0.0),
}


def simulate_field(
    seed: int | Sequence[int], shape: tuple[int, int] = FIELD_SHAPE, quality: Quality = "ordinary"
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Simulate one field of view and the nuclei in it.

    Parameters
    ----------
    seed : the same seed, shape and quality give the same pixels
    shape : height and width in pixels
    quality : density, focus and brightness of the field

    Returns
    -------
    image : (y, x) uint16, camera counts
    labels : (y, x) uint16, 0 for background, 1 to n for the nuclei
    """
    rng = np.random.default_rng(seed)
    optics = _OPTICS[quality]
    count = round(rng.uniform(*optics.density) * shape[0] * shape[1] / 10_000)
    signal, labels = _nuclei(rng, shape, count)
    _add_debris(rng, signal, rng.poisson(optics.debris * shape[0] * shape[1] / 10_000))

    signal *= rng.uniform(*optics.signal)
    haze = gaussian_filter(signal, 25, mode="nearest")
    light = _illumination(rng, shape)
    photons = light * (gaussian_filter(signal, rng.uniform(*optics.blur)) + 0.06 * haze + rng.uniform(25, 60))
    electrons = rng.poisson(photons / _COUNTS_PER_ELECTRON) + rng.normal(0, _READ_NOISE, shape)
    counts = _CAMERA_OFFSET + _COUNTS_PER_ELECTRON * electrons
    return np.clip(np.rint(counts), 0, 65535).astype(np.uint16), labels


def write_sample_plate(folder: str, seed: int, shape: tuple[int, int] = FIELD_SHAPE) -> None:
    """Write a simulated plate as OME-Zarr 0.5 (HCS): 2 rows, 3 columns, 2 fields a well, channel "dna".

    `folder` becomes the plate itself, e.g. ``demo/plate.ome.zarr``; what was there is replaced. Fields are of `shape`,
    (y, x) pixels.
    """
    plate = create_group(storage.store(folder, read_only=False), overwrite=True)
    wells = [(r, c) for r in range(len(_PLATE_ROWS)) for c in range(len(_PLATE_COLUMNS))]
    metadata = Plate(
        name="simulated nuclei",
        rows=[Row(name=name) for name in _PLATE_ROWS],
        columns=[Column(name=name) for name in _PLATE_COLUMNS],
        wells=[WellInPlate(path=f"{_PLATE_ROWS[r]}/{_PLATE_COLUMNS[c]}", rowIndex=r, columnIndex=c) for r, c in wells],
        field_count=2,
        version="0.5",
    )
    _describe(plate, HCSAttrs(plate=metadata, version="0.5"))
    for index, (entry, qualities) in enumerate(zip(metadata.wells, _PLATE_FIELDS, strict=True)):
        well = plate.create_group(entry.path)
        images = [WellImage(path=str(field), acquisition=None) for field in range(len(qualities))]
        _describe(well, WellAttrs(well=WellMeta(images=images, version="0.5"), version="0.5"))
        for field, quality in enumerate(qualities):
            image, _ = simulate_field((seed, index, field), shape, quality)
            _write_image(well.create_group(str(field)), image, f"{entry.path}/{field}")


def write_other_images(folder: str) -> None:
    """Write images that are not fluorescent nuclei, each as ``<folder>/<name>.ome.zarr`` (OME-Zarr 0.5).

    They come with scikit-image: a cell in phase contrast, coins, stained tissue, and two of the retina. Each is
    one grey channel named "dna" at a nominal 0.65 um, so that an ensemble for nuclei accepts it.
    """
    for name in OTHER:
        pixels = getattr(skimage.data, name)()
        grey = rgb2gray(pixels) if pixels.ndim == 3 else pixels / 255
        group = create_group(storage.store(storage.join(folder, f"{name}.ome.zarr"), read_only=False), overwrite=True)
        _write_image(group, np.rint(grey * 65535).astype(np.uint16), name)


def _nuclei(
    rng: np.random.Generator, shape: tuple[int, int], count: int
) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
    """Simulate up to `count` nuclei with a median brightness of 1: signal (y, x) float64 and labels (y, x) uint16."""
    signal = np.zeros(shape)
    labels = np.zeros(shape, np.uint16)
    texture = _texture(rng, shape)
    placed: list[tuple[float, float, float]] = []
    for _ in range(6 * count):
        if len(placed) == count:
            break
        radius = float(np.clip(rng.lognormal(np.log(13.5), 0.16), 7, 24))
        clumped = bool(placed) and rng.random() < 0.3
        y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        if clumped:
            y, x = _beside(rng, shape, placed, radius)
        window, depth = _nucleus(rng, shape, (y, x), radius)
        inside = depth > 0
        taken = inside & (labels[window] > 0)
        # Nuclei in clumps may overlap a little; others must not overlap any nucleus.
        if not inside.any() or taken.sum() > (0.12 if clumped else 0.0) * inside.sum():
            continue
        brightness = rng.lognormal(0, 0.3) * (2.2 if rng.random() < 0.03 else 1.0)
        body = brightness * np.where(inside, np.clip(depth, 0, None) ** 0.3, 0) * texture[window]
        signal[window] += body * _nucleoli(rng, depth)
        placed.append((y, x, radius))
        labels[window][inside & ~taken] = len(placed)
    return signal, labels


def _beside(
    rng: np.random.Generator, shape: tuple[int, int], placed: list[tuple[float, float, float]], radius: float
) -> tuple[float, float]:
    """Return a centre inside the field at which a nucleus of `radius` touches an existing one."""
    y, x, other = placed[rng.integers(len(placed))]
    angle, distance = rng.uniform(0, 2 * np.pi), (radius + other) * rng.uniform(0.8, 1.0)
    return (
        float(np.clip(y + distance * np.sin(angle), 0, shape[0] - 1)),
        float(np.clip(x + distance * np.cos(angle), 0, shape[1] - 1)),
    )


def _nucleus(
    rng: np.random.Generator, shape: tuple[int, int], centre: tuple[float, float], radius: float
) -> tuple[tuple[slice, slice], NDArray[np.float64]]:
    """Return the window of a nucleus and its depth there: 1 in the middle, 0 at the outline, negative outside."""
    reach = int(2.2 * radius) + 1
    y, x = centre
    window = tuple(
        slice(max(0, int(at) - reach), min(size, int(at) + reach + 1)) for at, size in zip(centre, shape, strict=True)
    )
    rows, columns = np.ogrid[window]
    turn, aspect = rng.uniform(0, np.pi), rng.uniform(1.0, 2.0)
    along = (columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)
    across = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
    along, across = along / np.sqrt(aspect), across * np.sqrt(aspect)
    theta = np.arctan2(across, along)
    # Most outlines are nearly elliptic, a few lobed.
    rough = 0.12 if rng.random() < 0.12 else 0.03
    outline = np.ones_like(theta)
    for order in (2, 3, 4, 5):
        outline += rng.normal(0, rough / np.sqrt(order - 1)) * np.cos(order * theta + rng.uniform(0, 2 * np.pi))
    depth: NDArray[np.float64] = 1 - (along**2 + across**2) / (radius * np.clip(outline, 0.5, 1.5)) ** 2
    return (window[0], window[1]), depth


def _nucleoli(rng: np.random.Generator, depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a factor (y, x) that darkens a few round spots well inside a nucleus."""
    factor = np.ones_like(depth)
    rows, columns = np.nonzero(depth > 0.35)
    for _ in range(rng.integers(0, 5) if rows.size else 0):
        at = rng.integers(rows.size)
        y, x = np.ogrid[: depth.shape[0], : depth.shape[1]]
        distance = (y - rows[at]) ** 2 + (x - columns[at]) ** 2
        factor *= 1 - rng.uniform(0.15, 0.45) * np.exp(-distance / (2 * rng.uniform(1.0, 2.2) ** 2))
    return factor


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the chromatin texture: a positive factor (y, x) with mean 1, fine grains on coarse patches."""
    fine, coarse = (gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap") for sigma in (1.1, 3.5))
    grain: NDArray[np.float64] = 1 + 0.10 * fine / fine.std() + 0.07 * coarse / coarse.std()
    return np.clip(grain, 0.4, None)


def _add_debris(rng: np.random.Generator, signal: NDArray[np.float64], specks: int) -> None:
    """Add `specks` small blobs that are not nuclei, dim and bright, to `signal` (y, x) in place."""
    for _ in range(specks):
        y, x = rng.uniform(0, signal.shape[0]), rng.uniform(0, signal.shape[1])
        size = rng.uniform(0.7, 2.2)
        window = tuple(slice(max(0, int(at) - 8), int(at) + 9) for at in (y, x))
        rows, columns = np.ogrid[: signal.shape[0], : signal.shape[1]]
        distance = (rows[window[0]] - y) ** 2 + (columns[:, window[1]] - x) ** 2
        signal[window] += rng.lognormal(-0.6, 0.7) * np.exp(-distance / (2 * size**2))


def _illumination(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return uneven illumination: a factor (y, x) that falls off from a point near the middle, 1 at its maximum."""
    y, x = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])
    fall = rng.uniform(0.1, 0.3)
    light = 1 - fall * ((y - rng.uniform(-0.4, 0.4)) ** 2 + (x - rng.uniform(-0.4, 0.4)) ** 2) / 2
    return np.asarray(light / light.max())


def _describe(group: Group, metadata: HCSAttrs | WellAttrs | ImageAttrs) -> None:
    group.attrs["ome"] = metadata.model_dump(mode="json", exclude_none=True)


def _write_image(group: Group, image: NDArray[np.uint16], name: str) -> None:
    """Write `image` (y, x) as a multiscales image with axes cyx, two levels and one channel "dna"."""
    odd = [(0, size % 2) for size in image.shape]
    even = np.pad(image, odd, mode="edge")
    half = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3))
    datasets = []
    for level, pixels in enumerate((image, np.rint(half).astype(np.uint16))):
        group.create_array(f"s{level}", data=pixels[None], chunks=(1, CHUNK, CHUNK), dimension_names=("c", "y", "x"))
        size, shift = PIXEL_SIZE_UM * 2**level, PIXEL_SIZE_UM * (2**level - 1) / 2
        datasets.append(Dataset.build(path=f"s{level}", scale=(1, size, size), translation=(0, shift, shift)))
    axes = (
        Axis(name="c", type="channel"),
        Axis(name="y", type="space", unit="micrometer"),
        Axis(name="x", type="space", unit="micrometer"),
    )
    low, high = (float(v) for v in np.percentile(image, (1, 99.8)))
    window = {"min": 0, "max": 65535, "start": low, "end": max(high, low + 1)}
    channel = {"label": "dna", "color": "FFFFFF", "active": True, "window": window}
    multiscale = Multiscale(axes=axes, datasets=tuple(datasets), name=name, type="mean")
    metadata = ImageAttrs.model_validate(
        {
            "version": "0.5",
            "multiscales": [multiscale.model_dump(exclude_none=True)],
            "omero": {"channels": [channel]},
        }
    )
    _describe(group, metadata)
