"""Files of pixels that unpack to more than they promise fail in seconds and little memory, whatever their format."""

from __future__ import annotations

import gzip
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import SimpleITK  # noqa: F401 - it takes memory of its own
import tifffile

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.formats.rasters import only_one
from chorus.pipeline.io.formats.registry import open_rasters
from chorus.pipeline.io.formats.tiff_segments import claimed_pixels
from tests.support.bombs import bomb, little_memory

SECONDS = 10
LARGE = np.zeros((6000, 6000), "uint8")
PICTURES: dict[str, Any] = {
    "jpeg": imagecodecs.jpeg8_encode,
    "png": imagecodecs.png_encode,
    "jpeg2000": imagecodecs.jpeg2k_encode,
    "jpegxl": imagecodecs.jpegxl_encode,
    "jpegxr": imagecodecs.jpegxr_encode,
    "webp": lambda pixels: imagecodecs.webp_encode(np.stack([pixels] * 3, -1)),
}
# Byte strings that unpack to more than the 4,096 bytes of a tile of 64 x 64.
STREAMS = {
    "zlib": lambda: bomb("zlib"),
    "zstd": lambda: bomb("zstd"),
    "lzma": lambda: bomb("lzma"),
    "packbits": lambda: b"\x81\0" * (1 << 21),
    "lzw": lambda: imagecodecs.lzw_encode(bytes(1 << 24)),
}


def tiff_with(path: Path, compression: str, segment: bytes, photometric: str = "minisblack") -> Path:
    """A TIFF of one tile of 64 x 64 pixels, which holds `segment`."""
    shape = (64, 64, 3) if photometric == "rgb" else (64, 64)
    tifffile.imwrite(
        path, iter([segment]), shape=shape, dtype="uint8", tile=(64, 64), compression=compression,
        photometric=photometric, metadata=None,
    )  # fmt: skip
    return path


def read(path: Path) -> np.ndarray[Any, Any]:
    start = time.monotonic()
    try:
        with little_memory(), open_rasters(str(path)) as opened:
            raster = only_one(opened, str(path))
            lengths = raster.lengths
            return raster.read(0, 0, range(1), Window.of(0, min(lengths["y"], 64), 0, min(lengths["x"], 64)))
    finally:
        assert time.monotonic() - start < SECONDS


def failure(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_tile_never_unpacks_to_more_than_its_tags_promise(tmp_path: Path, stream: str) -> None:
    path = tiff_with(tmp_path / "a.tif", stream, STREAMS[stream]())
    if stream in ("lzma", "lzw"):  # these decoders stop where the tile is full
        assert read(path).shape == (1, 64, 64)
    else:
        failure(path)


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_in_a_tile_that_claims_more_pixels_than_its_tags_is_not_decoded(tmp_path: Path, picture: str) -> None:
    segment = PICTURES[picture](LARGE)
    assert claimed_pixels(segment) == LARGE.size
    path = tiff_with(tmp_path / "a.tif", picture, segment, "rgb" if picture == "webp" else "minisblack")
    assert "claims 36000000 pixels, its tags promise" in failure(path)


@pytest.mark.parametrize("shape", [(64, 64), (40, 100), (1, 3), (300, 17), (3000, 2000)])
@pytest.mark.parametrize("picture", PICTURES)
def test_sizes_in_headers_are_those_of_the_pictures(picture: str, shape: tuple[int, int]) -> None:
    segment = PICTURES[picture](np.zeros(shape, "uint8"))
    assert claimed_pixels(segment) == shape[0] * shape[1]
    assert claimed_pixels(segment[:1]) is None


def test_pictures_in_tiles_are_still_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64)).astype("uint8")
    for compression in ("png", "jpeg2000", "jpegxl"):
        path = tmp_path / f"{compression}.tif"
        args = {"level": 0} if compression != "png" else {}
        tifffile.imwrite(path, pixels, compression=compression, compressionargs=args, tile=(64, 64))
        expected = tifffile.imread(path)
        np.testing.assert_array_equal(read(path)[0], expected)


def test_tags_that_promise_more_than_a_segment_holds_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, iter([bomb("zstd", 1 << 22)]), shape=(1 << 15, 1 << 16), dtype="uint8", rowsperstrip=1 << 15,
        compression="zstd", metadata=None,
    )  # fmt: skip
    assert "would unpack to 2048 MiB" in failure(path)


def test_a_png_that_claims_gigapixels_is_not_decoded(tmp_path: Path) -> None:
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in ((b"IHDR", header), (b"IDAT", bomb("zlib", 1 << 22)), (b"IEND", b"")):
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))]
    (tmp_path / "a.png").write_bytes(b"".join(parts))
    assert "would unpack to 3433 MiB" in failure(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
def test_a_png_with_a_bomb_in_its_profile_or_text_takes_little_memory(tmp_path: Path, kind: bytes) -> None:
    image = imagecodecs.png_encode(np.ones((32, 32), "uint8"))
    content = b"name\0\0" + bomb("zlib")
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    (tmp_path / "a.png").write_bytes(image[:33] + chunk + image[33:])
    assert "too large" in failure(tmp_path / "a.png")


def nifti(shape: tuple[int, int, int]) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<4f", header, 76, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header)


def test_a_nifti_is_unpacked_up_to_the_end_that_its_header_promises(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti((16, 16, 1)) + bytes(range(256))) + bomb("gzip"))
    assert read(path).tobytes() == bytes(range(256))


def test_a_nifti_that_promises_more_than_it_can_hold_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti((2000, 2000, 1000))))
    assert "a.nii.gz" in failure(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_volume_that_promises_more_than_it_can_hold_is_not_unpacked(tmp_path: Path, name: str) -> None:
    if name == "a.nrrd":
        head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2000 2000 1000\nencoding: gzip\n\n"
        content = bomb("gzip", 1 << 22)
    else:
        content = bomb("zlib", 1 << 22)
        head = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\n"
            f"CompressedDataSize = {len(content)}\nDimSize = 2000 2000 1000\nElementType = MET_UCHAR\n"
            "ElementDataFile = LOCAL\n"
        )
    (tmp_path / name).write_bytes(head.encode() + content)
    assert "would unpack to 3814 MiB" in failure(tmp_path / name)
