"""A chunk unpacks to what its array's metadata promise, or fails, in seconds and little memory."""

from __future__ import annotations

import json
import lzma
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.codecs import numcodecs as more

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.models import FailedImage
from chorus.pipeline.io.opened_arrays import UnknownCodecError, open_array
from chorus.pipeline.io.sources.discovery import find_images
from chorus.pipeline.io.sources.reading import open_level, read_window
from tests.support.bombs import V2, V3, bomb, image_of, little_memory, put_bomb, shard_with

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
SECONDS = 10
PIXELS = np.random.default_rng(0).integers(0, 900, (150, 130)).astype("uint16")
RAW = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 1}]}


def read(image: Path) -> str:
    """What is said of the bomb in an image."""
    start = time.monotonic()
    with little_memory(), pytest.raises(ImageError) as caught:
        read_window(open_level(str(image), "0"), "yx", 0, 0, (0,), Window.of(0, 64, 0, 64))
    assert time.monotonic() - start < SECONDS
    message = str(caught.value)
    assert str(image) in message
    return message


@pytest.mark.parametrize("codec", V2)
def test_a_chunk_of_zarr_2_that_unpacks_to_far_more_fails_at_once(tmp_path: Path, codec: str) -> None:
    image = image_of(tmp_path / "a.ome.zarr", 2, compressors=V2[codec])
    put_bomb(image, bomb(codec))
    assert "more than the 2048 bytes" in read(image)


@pytest.mark.parametrize("codec", V3)
def test_a_chunk_of_zarr_3_that_unpacks_to_far_more_fails_at_once(tmp_path: Path, codec: str) -> None:
    image = image_of(tmp_path / "a.ome.zarr", 3, compressors=V3[codec])
    put_bomb(image, bomb(codec.removeprefix("numcodecs.")))
    assert "more than the 2048 bytes" in read(image)


def test_a_chunk_within_a_shard_that_unpacks_to_far_more_fails_at_once(tmp_path: Path) -> None:
    assert "more than the 2048 bytes" in read(shard_with(tmp_path / "a.ome.zarr", bomb("zstd")))


def test_a_zstd_frame_that_does_not_state_its_size_is_bounded_too(tmp_path: Path) -> None:
    image = image_of(tmp_path / "a.ome.zarr", 3, compressors=ZstdCodec())
    frame = imagecodecs.zstd_encode(bytes(1 << 27))
    assert frame[4] == 0x80  # by the descriptor a size of 4 bytes follows that of the window
    put_bomb(image, (frame[:4] + b"\0" + frame[5:6] + frame[10:]) * 8)
    assert "more than the 2048 bytes" in read(image)


@pytest.mark.parametrize("inner", ["gzip", "zstd", "bz2"])
def test_a_filter_is_bounded_as_a_compressor_is(tmp_path: Path, inner: str) -> None:
    image = image_of(tmp_path / "a.ome.zarr", 2, compressors=None, filters=[V2[inner]])
    put_bomb(image, bomb(inner))
    assert "more than the" in read(image)


def test_a_compressed_index_of_a_shard_is_bounded(tmp_path: Path) -> None:
    image = image_of(tmp_path / "a.ome.zarr", 3)
    document = json.loads((image / "0/zarr.json").read_text())
    inner = {"chunk_shape": [16, 16], "codecs": [{"name": "bytes"}], "index_location": "end"}
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip", "configuration": {"level": 1}}]
    document["codecs"] = [{"name": "sharding_indexed", "configuration": inner | {"index_codecs": index}}]
    (image / "0/zarr.json").write_text(json.dumps(document))
    put_bomb(image, bomb("gzip"))
    read(image)


def test_metadata_that_promise_as_much_as_the_chunk_unpacks_to_do_not_fill_the_memory(tmp_path: Path) -> None:
    image = image_of(tmp_path / "a.ome.zarr", 3, compressors=GzipCodec())
    document = json.loads((image / "0/zarr.json").read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 15, 1 << 15]
    (image / "0/zarr.json").write_text(json.dumps(document))
    put_bomb(image, bomb("gzip", 1 << 21))
    assert "would unpack to 2048 MiB" in read(image)


@pytest.mark.parametrize("filters", [None, [numcodecs.Delta("u2"), numcodecs.Shuffle(2)], [numcodecs.Zlib()]])
@pytest.mark.parametrize("codec", [*V2.values(), numcodecs.LZMA(**RAW), None])
def test_images_of_zarr_2_are_read_as_zarr_reads_them(tmp_path: Path, codec: Any, filters: Any) -> None:
    common: dict[str, Any] = {"shape": PIXELS.shape, "chunks": (64, 64), "dtype": "uint16", "zarr_format": 2}
    array = zarr.create_array(str(tmp_path / "a"), compressors=codec, filters=filters, **common)
    array[:] = PIXELS
    opened = open_array(str(tmp_path / "a"))
    np.testing.assert_array_equal(opened[:], PIXELS)
    assert opened.metadata.to_dict() == array.metadata.to_dict()


@pytest.mark.parametrize("shards", [None, (128, 128)])
@pytest.mark.parametrize(
    "codecs",
    [*V3.values(), (GzipCodec(), ZstdCodec(), Crc32cCodec()), (more.Shuffle(elementsize=2), more.Zlib()), None],
)
def test_images_of_zarr_3_are_read_as_zarr_reads_them(tmp_path: Path, codecs: Any, shards: Any) -> None:
    common: dict[str, Any] = {"shape": PIXELS.shape, "chunks": (64, 64), "dtype": "uint16", "shards": shards}
    array = zarr.create_array(str(tmp_path / "a"), compressors=codecs, **common)
    array[:] = PIXELS
    opened = open_array(str(tmp_path / "a"))
    np.testing.assert_array_equal(opened[:], PIXELS)
    assert opened.metadata.to_dict() == array.metadata.to_dict()
    assert (opened.chunks, opened.shards) == (array.chunks, array.shards)
    # dask and Ray send arrays to other processes
    sent = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(sent[10:140, 3:70], PIXELS[10:140, 3:70])
    assert sent.metadata.codecs == opened.metadata.codecs


def test_a_shard_that_is_compressed_whole_is_read(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its chunks cannot be read alone
        array = zarr.create_array(
            str(tmp_path / "a"), shape=(32, 32), chunks=(32, 32), dtype="uint8",
            serializer=ShardingCodec(chunk_shape=(1, 1)), compressors=(ZstdCodec(), BloscCodec()),
        )  # fmt: skip
        array[:] = PIXELS[:32, :32].astype("uint8")
        opened = open_array(str(tmp_path / "a"))
    np.testing.assert_array_equal(opened[:], PIXELS[:32, :32].astype("uint8"))


def test_a_codec_that_is_not_known_to_be_harmless_is_not_let_in(tmp_path: Path) -> None:
    image = image_of(tmp_path / "a.ome.zarr", 2, compressors=numcodecs.Zlib())
    document = json.loads((image / "0/.zarray").read_text())
    document["compressor"] = {"id": "base64"}
    (image / "0/.zarray").write_text(json.dumps(document))
    with pytest.raises(UnknownCodecError, match="base64"):
        open_array(str(image / "0"))
    (failed,) = find_images([str(image)])
    assert isinstance(failed, FailedImage)
    assert "'base64', which is not read" in failed.message


def test_chunks_that_are_damaged_are_still_errors(tmp_path: Path) -> None:
    for codec in V2:
        image = image_of(tmp_path / f"{codec}.ome.zarr", 2, compressors=V2[codec])
        for content in (b"", b"\0", b"damaged, and of some length", bomb(codec, 2048)[:-3], bomb(codec, 1024)):
            put_bomb(image, content)
            assert "cannot be decoded" in read(image)
