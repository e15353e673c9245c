"""Uploads are decoded to what the same pixels are in a file, and refusals name the request's own fields."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from chorus.serving.contract.problems import RequestError, answered
from chorus.serving.contract.settings import Limits
from chorus.serving.web.decoding import decode
from tests.support.servers import npy

COLOURS = np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)


def picture(kind: str, pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def test_colours_of_an_npy_are_those_of_a_png() -> None:
    array, png = (decode(data, "a", Limits()) for data in (npy(COLOURS), picture("PNG", COLOURS)))
    assert array.image.channels == png.image.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(array.pixels, png.pixels)
    np.testing.assert_array_equal(array.pixels[0, :, 0], COLOURS.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(3, 40, 30), (5, 40, 30), (40, 30), (4, 40, 3)])
def test_other_arrays_are_planes_of_channels(shape: tuple[int, ...]) -> None:
    found = decode(npy(np.ones(shape, np.uint8)), "a", Limits())
    assert found.image.levels[0].shape == shape
    assert found.image.axes == "cyx"[3 - len(shape) :]


@pytest.mark.parametrize("pixels", [COLOURS, COLOURS[..., 0]])
def test_a_jpeg_is_read_as_it_decodes(pixels: np.ndarray) -> None:
    data = picture("JPEG", pixels)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    found = decode(data, "my.jpg", Limits()).pixels[0, :, 0]
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1) if expected.ndim == 3 else expected[np.newaxis])


def test_a_jpeg_beyond_the_limit_is_refused_by_its_header() -> None:
    data = picture("JPEG", np.zeros((3000, 3000), np.uint8))
    with pytest.raises(RequestError, match="9000000 values, more than") as caught:
        decode(data, "a.jpg", Limits(pixels=1 << 20))
    assert caught.value.status == 413
    with pytest.raises(RequestError, match="the JPEG file's header is damaged"):
        decode(data[:20], "a.jpg", Limits())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("has no level 7; give --level from 0 to 2", "has no level 7; give the field `level` from 0 to 2"),
        ("say which with --channel NAME", "say which with the field `channels`"),
        ("give --channel one of dna, er", "give the field `channels` one of dna, er"),
        ("or /home/me/a.zarr", "or (a path)"),
        ("with chorus convert --pixel-size", "with chorus convert --pixel-size"),
    ],
)
def test_answers_name_fields_of_the_request_not_options_of_a_command(said: str, expected: str) -> None:
    assert answered(said) == expected
