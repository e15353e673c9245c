"""ImageJ's sets of selections: a ZIP of ROI files that its ROI manager opens."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable

import numpy as np
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

from chorus.pipeline.core.fields import OF_OBJECTS
from chorus.pipeline.exports.files import Parts, whole_file
from chorus.pipeline.exports.outlines import LabelledImage, Outline, full_resolution

# ImageJ takes stored coordinates from 60536 on for negative ones, and offsets within a selection from 32768 on.
_LARGEST, _WIDEST = 60_535, 32_767
_MOVE, _LINE, _CLOSE = 0, 1, 4


def write_rois(image: LabelledImage, outlines: Iterable[Outline], count: int, url: str) -> None:
    """Write the `count` objects of an image, the most uncertain first; the same objects give the same bytes.

    Raises
    ------
    ImageError : see `chorus.pipeline.exports.outlines.outlines`
    OutputError : storage does not take them
    """
    with Parts(count) as parts:
        for one in outlines:
            parts.put(one.rank - 1, f"{one.name}.roi\n".encode() + roi(image, one).tobytes())
        with whole_file(url) as file, zipfile.ZipFile(file, "w") as archive:
            for part in parts:
                name, _, data = part.partition(b"\n")
                # Of a fixed date, that of nobody's clock.
                entry = zipfile.ZipInfo(name.decode(), (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, data, zipfile.ZIP_DEFLATED)


def roi(image: LabelledImage, one: Outline) -> ImagejRoi:
    """Convert an object to an ImageJ selection: traced if it is one part without holes, else composite.

    Both are along the edges of pixels, in pixels of the source's finest level.
    """
    rings = [full_resolution(ring, image) for part in one.parts for ring in part.rings]
    low, high = np.min([r.min(axis=0) for r in rings], axis=0), np.max([r.max(axis=0) for r in rings], axis=0)
    left, top = (int(value) for value in np.floor(low))
    right, bottom = (int(value) for value in np.ceil(high))
    made = ImagejRoi(name=one.name, stroke_color=bytes([255, *one.color]))
    made.position, made.z_position, made.t_position = _position(image, one)
    made.left, made.top, made.right, made.bottom = left, top, right, bottom
    made.properties = {key: str(one.row[key]) for key in ("class", "label", "area", *_uncertainties(one))}
    if len(rings) > 1:
        made.roitype = ROI_TYPE.RECT
        path = [_path(np.asarray(ring, np.float32)) for ring in rings]
        made.multi_coordinates = np.concatenate(path)
        made.shape_roi_size = len(made.multi_coordinates)
        return made
    ring = rings[0]
    made.roitype = ROI_TYPE.TRACED
    made.n_coordinates = len(ring)
    made.integer_coordinates = np.rint(ring - [left, top]).astype(np.int32)
    if ring.dtype.kind == "f" or max(right, bottom) > _LARGEST or max(right - left, bottom - top) > _WIDEST:
        made.options |= ROI_OPTIONS.SUB_PIXEL_RESOLUTION
        made.subpixel_coordinates = ring.astype(np.float32)
    return made


def _uncertainties(one: Outline) -> list[str]:
    return [field.name for field in OF_OBJECTS if one.row.get(field.name) is not None]


def _path(ring: np.ndarray) -> np.ndarray:
    """Encode a ring of a composite selection: move, lines, close."""
    steps = np.empty((len(ring), 3), np.float32)
    steps[:, 0], steps[:, 1:] = _LINE, ring
    steps[0, 0] = _MOVE
    return np.append(steps.ravel(), np.float32(_CLOSE))


def _position(image: LabelledImage, one: Outline) -> tuple[int, int, int]:
    """Return position, slice and frame of a selection in a stack, counted from 1; 0 is everywhere.

    ImageJ takes stacks with more than one of channels, slices and frames for hyperstacks, in which a selection has a
    slice and a frame; in other stacks it has one position.
    """
    (times, depths), (t, z) = image.planes, image.plane(one.row)
    if sum(length > 1 for length in (times, depths, image.channels)) > 1:
        return 0, z + 1 if depths > 1 else 0, t + 1 if times > 1 else 0
    return max(t, z) + 1 if times > 1 or depths > 1 else 0, 0, 0
