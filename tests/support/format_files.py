"""Small files of microscopes' and slide scanners' formats, written from arrays; no library writes LIF and ND2."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray


def write_czi(
    path: Path,
    scenes: Sequence[NDArray[Any]],
    *,
    tile: int = 200,
    pixel_um: float = 0.5,
    names: Sequence[str] = (),
    compression: str | None = None,
) -> None:
    """Write scenes, (c, y, x) or (y, x, 3) each, beside one another as tiles."""
    from pylibCZIrw import czi

    left = 0
    with czi.create_czi(str(path), compression_options=compression) as file:
        for scene, pixels in enumerate(scenes):
            planes = [pixels] if pixels.shape[-1] == 3 else [plane[..., np.newaxis] for plane in pixels]
            height, width = planes[0].shape[:2]
            for channel, plane in enumerate(planes):
                for y in range(0, height, tile):
                    for x in range(0, width, tile):
                        part = np.ascontiguousarray(plane[y : y + tile, x : x + tile, ::-1])
                        place = {"C": channel, "T": 0, "Z": 0}
                        file.write(part, location=(left + x, y), plane=place, scene=scene)
            left += width + 100
        shown = {
            index: czi.ChannelDisplaySettingsDataClass(
                True, czi.TintingMode.Color, czi.Rgb8Color(0, 255 * index, 255), 0.0, 1.0
            )
            for index in range(len(names))
        }
        file.write_metadata(
            "made", dict(enumerate(names)), pixel_um * 1e-6, pixel_um * 1e-6, 0.0, display_settings=shown
        )


@dataclass(frozen=True)
class LifImage:
    """An image of a LIF file: (m, t, z, y, x, c) as it is stored, its name and its pixel size in micrometers."""

    name: str
    pixels: NDArray[Any]
    pixel_um: float = 0.5
    interval_s: float = 2.0
    colors: tuple[str, ...] = ("Green", "Red")
    tiles_m: tuple[tuple[float, float], ...] = ()


def write_lif(path: Path, images: Sequence[LifImage]) -> None:
    """Write images as LAS AF does: a header in XML, then a block of pixels for each."""
    root = ElementTree.Element("LMSDataContainerHeader", Version="2")
    project = ElementTree.SubElement(root, "Element", Name="project")
    ElementTree.SubElement(ElementTree.SubElement(project, "Data"), "Experiment")
    ElementTree.SubElement(project, "Memory", Size="0", MemoryBlockID="MemBlock_0")
    children = ElementTree.SubElement(project, "Children")
    for number, image in enumerate(images, 1):
        _lif_element(children, image, number)
    text = ElementTree.tostring(root, encoding="unicode")
    with path.open("wb") as file:
        file.write(struct.pack("<IIBI", 0x70, 2 * len(text) + 5, 0x2A, len(text)) + text.encode("utf-16-le"))
        for number, image in enumerate(images, 1):
            name = f"MemBlock_{number}"
            data = np.ascontiguousarray(image.pixels).tobytes()
            size = 2 * len(name) + 14
            file.write(struct.pack("<IIBQBI", 0x70, size, 0x2A, len(data), 0x2A, len(name)) + name.encode("utf-16-le"))
            file.write(data)


def _lif_element(parent: ElementTree.Element, image: LifImage, number: int) -> None:
    element = ElementTree.SubElement(parent, "Element", Name=image.name)
    node = ElementTree.SubElement(ElementTree.SubElement(element, "Data"), "Image")
    description = ElementTree.SubElement(node, "ImageDescription")
    channels = ElementTree.SubElement(description, "Channels")
    dimensions = ElementTree.SubElement(description, "Dimensions")
    itemsize = image.pixels.dtype.itemsize
    for channel in range(image.pixels.shape[5]):
        given = {"DataType": 0, "ChannelTag": 0, "Resolution": 8 * itemsize, "NameOfMeasuredQuantity": "", "Min": 0}
        given |= {"Max": 1, "Unit": "", "LUTName": image.colors[channel], "IsLUTInverted": 0}
        given |= {"BytesInc": channel * itemsize, "BitInc": 0}
        ElementTree.SubElement(channels, "ChannelDescription", {key: str(value) for key, value in given.items()})
    steps = np.zeros(image.pixels.shape, image.pixels.dtype).strides
    for place, (number_of, step) in enumerate(zip(image.pixels.shape[:5], steps, strict=False)):
        axis = "mtzyx"[place]
        length = {"t": image.interval_s, "m": 1.0}.get(axis, image.pixel_um * 1e-6) * (number_of - 1)
        given = {"DimID": {"x": 1, "y": 2, "z": 3, "t": 4, "m": 10}[axis], "NumberOfElements": number_of, "Origin": 0}
        given |= {"Length": length, "Unit": "s" if axis == "t" else "m", "BytesInc": step, "BitInc": 0}
        if number_of > 1 or axis in "yx":
            ElementTree.SubElement(
                dimensions, "DimensionDescription", {key: str(value) for key, value in given.items()}
            )
    if image.tiles_m:
        scan = ElementTree.SubElement(node, "Attachment", Name="TileScanInfo", FlipX="0", FlipY="0", SwapXY="0")
        for index, (y, x) in enumerate(image.tiles_m):
            ElementTree.SubElement(scan, "Tile", FieldX=str(index), FieldY="0", PosX=str(x), PosY=str(y), PosZ="0")
    ElementTree.SubElement(element, "Memory", Size=str(image.pixels.nbytes), MemoryBlockID=f"MemBlock_{number}")


_ND2_TYPES = {bool: 1, int: 3, float: 6, str: 8}


def _lite(name: str, value: Any) -> bytes:
    """Encode an item of Nikon's metadata ("CLX lite")."""
    header = struct.pack("BB", 11 if isinstance(value, Mapping | list) else _ND2_TYPES[type(value)], len(name) + 1)
    header += (name + "\0").encode("utf-16-le")
    if isinstance(value, Mapping | list):
        items = list(value.items()) if isinstance(value, Mapping) else [("", item) for item in value]
        parts = [_lite(key, item) for key, item in items]
        body = b"".join(parts)
        length = len(header) + 12 + len(body)
        return header + struct.pack("<IQ", len(parts), length) + body + b"\0" * (8 * len(parts))
    if isinstance(value, str):
        return header + (value + "\0").encode("utf-16-le")
    return header + struct.pack({bool: "<B", int: "<I", float: "<d"}[type(value)], value)


def write_nd2(
    path: Path,
    pixels: NDArray[Any],
    *,
    pixel_um: float = 0.5,
    channels: Sequence[tuple[str, int]] = (("DAPI", 0xFF0000), ("GFP", 0x00FF00)),
    stages_um: Sequence[tuple[float, float]] = (),
    interval_ms: float = 2000.0,
    step_um: float = 1.5,
    pack: Callable[[bytes], bytes] | None = None,
) -> None:
    """Write (t, p, z, y, x, c) as NIS-Elements does; colours of channels are BGR numbers, `pack` compresses frames."""
    times, positions, planes, height, width, count = pixels.shape
    attributes = {"uiWidth": width, "uiWidthBytes": width * count * pixels.itemsize, "uiHeight": height}
    attributes |= {"uiComp": count, "uiBpcInMemory": 8 * pixels.itemsize, "uiBpcSignificant": 8 * pixels.itemsize}
    attributes |= {"uiSequenceCount": times * positions * planes, "eCompression": 0 if pack else 2}
    loops: list[dict[str, Any]] = []
    if times > 1:
        loops.append(
            {"eType": 1, "uLoopPars": {"uiCount": times, "dStart": 0.0, "dPeriod": interval_ms, "dDuration": 0.0}}
        )
    if positions > 1:
        points = [{"dPosX": x, "dPosY": y, "dPosZ": 0.0, "dPosName": f"A{i}"} for i, (y, x) in enumerate(stages_um)]
        loops.append({"eType": 2, "uLoopPars": {"uiCount": positions, "Points": points}})
    if planes > 1:
        loops.append({"eType": 4, "uLoopPars": {"uiCount": planes, "dZStep": step_um, "dZLow": 0.0, "dZHigh": 0.0}})
    experiment: dict[str, Any] = {}
    for loop in reversed(loops):
        experiment = loop | ({"ppNextLevelEx": [experiment]} if experiment else {})
    light = {"uiCount": 1, "pPoint": {"Point0": {"eType": 1, "dTValue": 1.0, "dWavelength": 488.0}}}
    probe = {"m_ExcitationSpectrum": light, "m_EmissionSpectrum": light}
    common = {"uiCompCount": 1, "pFluorescentProbe": probe}
    of_channels = [{"sDescription": name, "uiColor": color} | common for name, color in channels[:count]]
    named = {f"a{index}": one for index, one in enumerate(of_channels)}
    picture = {"bCalibrated": True, "dCalibration": pixel_um, "sPicturePlanes": {"uiCount": count, "sPlaneNew": named}}
    chunks: list[tuple[bytes, bytes]] = [
        (b"ImageAttributesLV!", _lite("SLxImageAttributes", attributes)),
        (b"ImageMetadataSeqLV|0!", _lite("SLxPictureMetadata", picture)),
        (b"ImageTextInfoLV!", _lite("SLxImageTextInfo", {"TextInfoItem_9": "11/30/2026  10:00:00 AM"})),
    ]
    if experiment:
        chunks.append((b"ImageMetadataLV!", _lite("SLxExperiment", experiment)))
    frames = pixels.reshape(-1, height, width, count)
    chunks += [
        (f"ImageDataSeq|{i}!".encode(), bytes(8) + (pack or bytes)(frame.tobytes())) for i, frame in enumerate(frames)
    ]
    magic = 0x0ABECEDA
    with path.open("wb") as file:
        file.write(struct.pack("<IIQ32s64s", magic, 32, 64, b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0"))
        file.write(bytes(4096 - file.tell()))
        places = b""
        for name, data in chunks:
            places += name + struct.pack("<QQ", file.tell(), len(data))
            file.write(struct.pack("<IIQ", magic, 4072, len(data)) + name.ljust(4072, b"\0") + data)
        at = file.tell()
        places += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", at)
        signature = b"ND2 FILEMAP SIGNATURE NAME 0001!"
        file.write(struct.pack("<IIQ", magic, len(signature), len(places)) + signature + places)


def write_svs(path: Path, pixels: NDArray[np.uint8], *, pixel_um: float = 0.499, compression: str = "deflate") -> None:
    """Write (y, x, 3) as an Aperio slide: tiles, a level four times coarser, a thumbnail, a label and an overview."""
    height, width = pixels.shape[:2]
    about = f"Aperio Image Library v12\r\n{width}x{height} [0,0 {width}x{height}] (240x240)"
    options: dict[str, Any] = {"photometric": "rgb", "compression": compression}
    with tifffile.TiffWriter(path) as file:
        file.write(
            pixels,
            tile=(240, 240),
            description=f"{about}|AppMag = 20|MPP = {pixel_um}|Date = 11/30/26",
            metadata=None,
            **options,
        )
        thumbnail = np.ascontiguousarray(pixels[::8, ::8])
        file.write(
            thumbnail, description=f"{about} -> {thumbnail.shape[1]}x{thumbnail.shape[0]}", metadata=None, **options
        )
        file.write(np.ascontiguousarray(pixels[::4, ::4]), tile=(240, 240), description=about, metadata=None, **options)
        file.write(np.zeros((50, 60, 3), np.uint8), description=f"{about}\r\nlabel 60x50", metadata=None, **options)
        file.write(np.zeros((40, 90, 3), np.uint8), description=f"{about}\r\nmacro 90x40", metadata=None, **options)


def write_ilastik(path: Path, pixels: NDArray[Any], axes: str) -> None:
    """Write an HDF5 file as ilastik exports it: one dataset, its axes in ``axistags``."""
    import json

    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_dataset("exported_data", data=pixels, chunks=True, compression="gzip")
        data.attrs["axistags"] = json.dumps({"axes": [{"key": axis, "typeFlags": 2} for axis in axes]})


def write_plantseg(path: Path, raw: NDArray[Any], size_um: Sequence[float]) -> None:
    """Write an HDF5 file of PlantSeg: (z, y, x) and labels, with the pixel size in micrometers."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=raw).attrs["element_size_um"] = size_um
        file.create_dataset("label", data=(raw > raw.mean()).astype(np.uint16))


def write_dicom(folder: Path, pixels: NDArray[np.uint8], *, tile: int = 64, pixel_um: float = 0.5) -> None:
    """Write (y, x, 3) as a DICOM slide: a file per level, full and four times coarser, its tiles as frames."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

    common = {name: generate_uid() for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")}
    for number, factor in enumerate((1, 4)):
        level = pixels[::factor, ::factor]
        height, width = level.shape[:2]
        rows, columns = -(-height // tile), -(-width // tile)
        whole = np.zeros((rows * tile, columns * tile, 3), np.uint8)
        whole[:height, :width] = level
        frames = whole.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = VLWholeSlideMicroscopyImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
        for name, value in common.items():
            setattr(file, name, value)
        file.Modality, file.InstanceNumber = "SM", number + 1
        kind = ["ORIGINAL" if factor == 1 else "DERIVED", "PRIMARY", "VOLUME", "NONE" if factor == 1 else "RESAMPLED"]
        file.ImageType, file.DimensionOrganizationType = kind, "TILED_FULL"
        file.Rows = file.Columns = tile
        file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns = height, width
        file.NumberOfFrames, file.SamplesPerPixel, file.PlanarConfiguration = rows * columns, 3, 0
        file.PhotometricInterpretation, file.PixelRepresentation = "RGB", 0
        file.BitsAllocated = file.BitsStored = 8
        file.HighBit, file.TotalPixelMatrixFocalPlanes, file.NumberOfOpticalPaths = 7, 1, 1
        file.OpticalPathSequence = [Dataset()]
        file.OpticalPathSequence[0].OpticalPathIdentifier = "1"
        measures, shared = Dataset(), Dataset()
        measures.PixelSpacing = [pixel_um * factor / 1000] * 2
        shared.PixelMeasuresSequence = [measures]
        file.SharedFunctionalGroupsSequence = [shared]
        file.PixelData = frames.tobytes()
        dcmwrite(folder / f"level-{number}.dcm", file, enforce_file_format=True)
