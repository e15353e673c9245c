from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.models import ClassInfo, ImageLayout, Ngff
from chorus.pipeline.io.outputs.arrays import LabelImage, region_grid
from chorus.pipeline.io.outputs.pyramid import (
    half,
    pyramid_shards,
    write_label_pyramid,
    write_pyramid,
    write_pyramid_shard,
)
from chorus.pipeline.io.outputs.writer import (
    open_labels,
    open_posterior,
    prepare_image,
    prepare_labels,
    write_labels,
    write_region,
)
from tests.support.displays import displays_of

CLASSES = (ClassInfo("background", "#000000"), ClassInfo("nucleus", "#4daf4a"))


def layout_at(url: str, axes: str, shape: tuple[int, ...], region: int = 128, chunk: int = 32) -> ImageLayout:
    return ImageLayout(
        url=url,
        labels_url=url,
        labels_ngff="0.5",
        source_url="source.zarr",
        axes=axes,
        shape=shape,
        scale=(0.5,) * len(axes),
        translation=(0.0,) * len(axes),
        units=(None,) * len(axes),
        channels=("probability:nucleus", "uncertainty"),
        dtype="float16",
        classes=CLASSES,
        displays=displays_of(("probability:nucleus", "uncertainty")),
        chunk=chunk,
        region=region,
    )


def filled(layout: ImageLayout) -> tuple[np.ndarray, np.ndarray]:
    """Prepare and fill the first level of every plane; returns (t, z, channel, y, x) and (t, z, y, x)."""
    prepare_image(layout)
    lengths = dict(zip(layout.axes, layout.shape, strict=True))
    outer = (lengths.get("t", 1), lengths.get("z", 1))
    random = np.random.default_rng(layout.height)
    size = (layout.height, layout.width)
    posterior = random.random((*outer, len(layout.channels), *size)).astype(np.float16)
    labels = random.integers(0, 2, (*outer, *size))
    grid = region_grid(layout, 0)
    for t, z in np.ndindex(*outer):
        for window in map(grid.window, range(grid.count)):
            part = posterior[t, z][:, window.y.slice, window.x.slice] if layout.channels else None
            write_region(layout, t, z, window, part, labels[t, z][window.y.slice, window.x.slice])
    return posterior, labels


def halved(posterior: np.ndarray) -> np.ndarray:
    """The mean of the pixels that exist of each 2 x 2, over a whole (..., y, x) array."""
    *outer, height, width = posterior.shape
    padded = np.full((*outer, height + height % 2, width + width % 2), np.nan)
    padded[..., :height, :width] = posterior
    blocks = padded.reshape(*outer, padded.shape[-2] // 2, 2, padded.shape[-1] // 2, 2)
    return np.nanmean(blocks, axis=(-3, -1)).astype(np.float16)


def stored(layout: ImageLayout, level: int) -> tuple[np.ndarray, np.ndarray]:
    """What is stored, in the order of `filled`."""
    posterior = np.asarray(open_posterior(layout.url, level)[:])
    posterior = posterior if layout.axes[0] == "t" else posterior[None]
    posterior = posterior if "z" in layout.axes else posterior[:, :, None]
    labels = np.asarray(open_labels(layout.url, level)[:])
    outer = (posterior.shape[0], posterior.shape[2])
    return np.moveaxis(posterior, 1, 2), labels.reshape(*outer, *labels.shape[-2:])


@settings(max_examples=15, deadline=None)
@given(
    axes=st.sampled_from(["yx", "zyx", "tyx", "tzyx"]),
    size=st.tuples(st.integers(1, 400), st.integers(257, 560)),
    chunk=st.sampled_from([64, 48, 51]),
    chunks=st.integers(1, 9),
)
def test_the_pyramid_is_that_of_the_whole_plane_whatever_the_regions(
    tmp_path_factory: pytest.TempPathFactory, axes: str, size: tuple[int, int], chunk: int, chunks: int
) -> None:
    url = str(tmp_path_factory.mktemp("pyramid") / "a.ome.zarr")
    layout = layout_at(url, axes, (2,) * (len(axes) - 2) + size, chunk * max(chunks, 96 // chunk), chunk)
    posterior, labels = filled(layout)
    write_pyramid(layout)
    for level in range(1, layout.levels):
        posterior, labels = halved(posterior), labels[..., ::2, ::2]
        assert np.array_equal(stored(layout, level)[0], posterior)
        assert np.array_equal(stored(layout, level)[1], labels)
    assert max(labels.shape[-2:]) <= 256


def test_a_mean_is_rounded_once() -> None:
    # The mean is 1 + 2^-11 + 2^-26, just above the middle of two numbers of float16; float32 drops the last term.
    plane = np.array([[2 + 2**-9, 1], [1, 2**-24]], np.float16)
    assert half(plane) == np.float16(1 + 2**-10)


def test_shards_may_be_written_at_once_in_any_order_and_again(tmp_path: Path) -> None:
    one = layout_at(str(tmp_path / "one.ome.zarr"), "tyx", (2, 300, 530))
    many = dataclasses.replace(one, url=str(tmp_path / "many.ome.zarr"), labels_url=str(tmp_path / "many.ome.zarr"))
    filled(one)
    filled(many)
    write_pyramid(one)
    for level in range(1, many.levels):
        shards = list(pyramid_shards(many, level))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda shard: write_pyramid_shard(many, shard), [*reversed(shards), *shards]))
    for path in (tmp_path / "one.ome.zarr").rglob("c/**/*"):
        if path.is_file():
            twin = tmp_path / "many.ome.zarr" / path.relative_to(tmp_path / "one.ome.zarr")
            assert twin.read_bytes() == path.read_bytes()


def test_without_a_posterior_only_labels_are_halved() -> None:
    layout = dataclasses.replace(layout_at("memory://pyramid/labels.ome.zarr", "yx", (300, 530)), channels=())
    _, labels = filled(layout)
    write_pyramid(layout)
    assert np.array_equal(open_labels(layout.url, 1)[:], labels[0, 0, ::2, ::2])
    assert np.array_equal(open_labels(layout.url, 2)[:], labels[0, 0, ::4, ::4])


def test_a_pyramid_of_nothing_is_refused(tmp_path: Path) -> None:
    layout = layout_at(str(tmp_path / "a.ome.zarr"), "yx", (300, 530))
    with pytest.raises(RefusedError, match="run predict to its end first"):
        write_pyramid(layout)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_a_label_image_of_objects_has_a_pyramid_of_its_own(ngff: Ngff, tmp_path: Path) -> None:
    layout = dataclasses.replace(layout_at(str(tmp_path / "a"), "zyx", (2, 300, 270)), labels_ngff=ngff)
    layout = dataclasses.replace(layout, labels_url=str(tmp_path / "labels"))
    filled(layout)
    write_pyramid(layout)
    semantic = [open_labels(layout.labels_url, level)[:] for level in range(layout.levels)]
    objects = LabelImage("nucleus", "uint64")
    prepare_labels(layout, objects)
    values = np.random.default_rng(1).integers(0, 1 << 40, (2, 300, 270)).astype(np.uint64)
    grid = region_grid(layout, 0)
    for z, window in itertools.product(range(2), map(grid.window, range(grid.count))):
        write_labels(layout, objects, 0, 0, z, window, values[z, window.y.slice, window.x.slice])
    write_label_pyramid(layout, objects)
    assert layout.levels == 2
    for level in range(layout.levels):
        stored_values = open_labels(layout.labels_url, level, "nucleus")
        assert stored_values.dtype == np.uint64
        assert np.array_equal(stored_values[:], values[:, :: 2**level, :: 2**level])
        assert np.array_equal(open_labels(layout.labels_url, level)[:], semantic[level])
    assert zarr.open_group(layout.labels_url, path="labels", mode="r").attrs.asdict() == (
        {"labels": ["semantic", "nucleus"]}
        if ngff == "0.4"
        else {"ome": {"version": "0.5", "labels": ["semantic", "nucleus"]}}
    )
