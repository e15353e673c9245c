from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from chorus.pipeline.core.geometry import RegionGrid, Window
from chorus.pipeline.errors import OutputError, RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ClassInfo, ImageLayout
from chorus.pipeline.io.outputs import arrays
from chorus.pipeline.io.outputs import writer as outputs
from tests.support.displays import displays_of
from tests.support.paths import SHARED

CHANNELS = ("probability:background", "probability:nucleus", "uncertainty", "epistemic")
CLASSES = (ClassInfo("background", "#000000"), ClassInfo("nucleus", "#4daf4a"))
SHAPES = [("yx", (300, 270)), ("zyx", (2, 100, 140)), ("tyx", (2, 129, 300)), ("tzyx", (2, 2, 130, 300))]


def layout_at(url: Path | str, axes: str = "yx", shape: tuple[int, ...] = (300, 270)) -> ImageLayout:
    return ImageLayout(
        url=str(url),
        labels_url=str(url),
        labels_ngff="0.5",
        source_url="source.zarr",
        axes=axes,
        shape=shape,
        scale=(0.5,) * len(axes),
        translation=(1.0,) * len(axes),
        units=("micrometer",) * len(axes),
        channels=CHANNELS,
        dtype="float16",
        classes=CLASSES,
        displays=displays_of(CHANNELS),
        chunk=32,
        region=128,
    )


def planes(layout: ImageLayout) -> list[tuple[int, int]]:
    lengths = dict(zip(layout.axes, layout.shape, strict=True))
    return [(t, z) for t in range(lengths.get("t", 1)) for z in range(lengths.get("z", 1))]


def write_random(layout: ImageLayout, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Write every region and return what was written: (plane, channel, y, x) and (plane, y, x)."""
    random = np.random.default_rng(0)
    all_planes, size = planes(layout), (layout.height, layout.width)
    posterior = random.random((len(all_planes), len(layout.channels), *size), np.float32)
    labels = random.integers(0, len(layout.classes), (len(all_planes), *size))
    grid = RegionGrid.make(size, layout.region)

    def write(job: tuple[int, int]) -> None:
        plane, window = job[0], grid.window(job[1])
        part = posterior[plane][:, window.y.slice, window.x.slice] if layout.channels else None
        label = labels[plane][window.y.slice, window.x.slice]
        outputs.write_region(layout, *all_planes[plane], window, part, label)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, [(p, r) for p in range(len(all_planes)) for r in range(grid.count)]))
    return posterior.astype(layout.dtype), labels


def read_back(layout: ImageLayout) -> tuple[np.ndarray, np.ndarray]:
    size = (layout.height, layout.width)
    labels = np.asarray(outputs.open_labels(layout.labels_url)[:]).reshape(-1, *size)
    stored = np.asarray(outputs.open_posterior(layout.url)[:])
    if layout.axes[0] == "t":
        stored = np.moveaxis(stored, 1, 0)
    return np.moveaxis(stored.reshape(len(layout.channels), -1, *size), 0, 1), labels


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("axes", "shape"), SHAPES)
def test_what_is_written_is_read_back_by_us_and_by_others(tmp_path: Path, axes: str, shape: tuple[int, ...]) -> None:
    layout = layout_at(tmp_path / "a.ome.zarr", axes, shape)
    outputs.prepare_image(layout)
    posterior, labels = write_random(layout, threads=4)
    ours = read_back(layout)
    assert np.array_equal(ours[0], posterior)
    assert np.array_equal(ours[1], labels)

    assert ome_zarr_models.open_ome_zarr(layout.url).labels.label_paths == ["semantic"]
    assert type(ome_zarr_models.open_ome_zarr(f"{layout.url}/labels")).__name__ == "Labels"
    assert type(ome_zarr_models.open_ome_zarr(f"{layout.url}/labels/semantic")).__name__ == "ImageLabel"

    image, _, label = list(Reader(parse_url(layout.url))())
    assert image.metadata["channel_names"] == list(CHANNELS)
    assert image.metadata["contrast_limits"] == [[0.0, 1.0], [0.0, 1.0], [0.0, 0.25], [0.0, 0.25]]
    assert np.array_equal(image.data[0].compute(), outputs.open_posterior(layout.url)[:])
    assert np.array_equal(label.data[0].compute().reshape(labels.shape), labels)
    assert label.metadata["color"] == {0: [0, 0, 0, 0], 1: [77 / 255, 175 / 255, 74 / 255, 1]}
    assert label.metadata["properties"] == {0: {"class": "background"}, 1: {"class": "nucleus"}}


def test_an_image_without_a_posterior_opens_as_its_labels(tmp_path: Path) -> None:
    layout = dataclasses.replace(layout_at(tmp_path / "a.ome.zarr"), channels=())
    outputs.prepare_image(layout)
    _, labels = write_random(layout)
    assert ome_zarr_models.open_ome_zarr(layout.url).labels.label_paths == ["semantic"]
    image, _, label = list(Reader(parse_url(layout.url))())
    assert np.array_equal(image.data[0].compute(), labels[0])
    assert np.array_equal(label.data[0].compute(), labels[0])
    with pytest.raises(RefusedError, match="run predict"):
        outputs.open_posterior(layout.url)


@given(st.integers(1, 5000), st.integers(1, 20), st.integers(1, 8))
def test_shards_are_the_regions_and_no_larger_than_needed(length: int, sixteens: int, chunks: int) -> None:
    chunk = 16 * sixteens
    region = chunk * chunks
    edge, shard = arrays.chunk_edge(length, chunk), arrays.shard_edge(length, chunk, region)
    assert shard % edge == 0
    assert edge <= chunk
    assert shard <= region
    assert shard == region if length > region else length <= shard < length + edge


def test_a_region_is_one_put_per_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_at(tmp_path / "a.ome.zarr")
    outputs.prepare_image(layout)
    puts: list[str] = []
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda url, data: (puts.append(url), write(url, data)))
    window = RegionGrid.make((300, 270), 128).window(8)
    part = np.ones((len(CHANNELS), *window.shape), np.float32)
    outputs.write_region(layout, 0, 0, window, part, np.ones(window.shape, np.int64))
    assert puts == [f"{layout.url}/s0/c/0/2/2", f"{layout.url}/labels/semantic/s0/c/2/2"]


def test_a_rewritten_region_is_right_whatever_was_there(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a.ome.zarr")
    outputs.prepare_image(layout)
    posterior, labels = write_random(layout)
    window = RegionGrid.make((300, 270), 128).window(8)
    empty = np.zeros((len(CHANNELS), *window.shape), np.float32)
    outputs.write_region(layout, 0, 0, window, empty, np.zeros(window.shape, np.int64))
    posterior[0][:, window.y.slice, window.x.slice] = 0
    labels[0][window.y.slice, window.x.slice] = 0
    assert np.array_equal(read_back(layout)[0], posterior)
    assert np.array_equal(read_back(layout)[1], labels)

    # As a killed process on a file system without atomic renames may leave it.
    shard = Path(layout.url) / "s0/c/0/2/1"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    write_random(layout)
    assert shard.read_bytes() == whole


def test_a_window_that_is_no_region_is_refused(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a.ome.zarr")
    labels = np.zeros((128, 128), np.int64)
    with pytest.raises(ValueError, match="is no region"):
        outputs.write_region(layout, 0, 0, Window.of(32, 160, 0, 128), np.zeros((4, 128, 128), np.float32), labels)
    with pytest.raises(ValueError, match="is stored"):
        outputs.write_region(layout, 0, 0, Window.of(0, 128, 0, 128), None, labels)


def test_many_processes_and_threads_may_prepare_the_same_image(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a.ome.zarr")
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(outputs.prepare_image, [layout] * 6))
    write_random(layout)
    before = snapshot(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(outputs.prepare_image, [layout] * 16))
    assert snapshot(tmp_path) == before
    alone = layout_at(tmp_path / "b/a.ome.zarr")
    outputs.prepare_image(alone)
    write_random(alone)
    assert snapshot(tmp_path / "b/a.ome.zarr") == snapshot(tmp_path / "a.ome.zarr")


def test_preparing_again_mends_what_is_missing_and_refuses_other_arrays(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a.ome.zarr")
    outputs.prepare_image(layout)
    before = snapshot(tmp_path)
    (tmp_path / "a.ome.zarr/labels/semantic/s1/zarr.json").unlink()
    (tmp_path / "a.ome.zarr/labels/zarr.json").unlink()
    outputs.prepare_image(layout)
    assert snapshot(tmp_path) == before
    with pytest.raises(RefusedError, match=r"s0/zarr.json: is an array of another form"):
        outputs.prepare_image(dataclasses.replace(layout, region=256))
    assert snapshot(tmp_path) == before


def test_memory_works_like_a_folder(tmp_path: Path) -> None:
    # A name that fsspec would read as a pattern.
    memory = layout_at(f"memory://{tmp_path.name}/a[1].ome.zarr", "tzyx", (2, 2, 130, 300))
    twin = layout_at(f"memory://{tmp_path.name}/a1.ome.zarr")
    outputs.prepare_image(twin)
    outputs.prepare_image(memory)
    outputs.prepare_image(memory)
    posterior, labels = write_random(memory, threads=4)
    assert np.array_equal(read_back(memory)[0], posterior)
    assert np.array_equal(read_back(memory)[1], labels)
    assert outputs.labels_present(memory)
    outputs.remove_labels(memory)
    assert not outputs.labels_present(memory)
    assert outputs.labels_present(twin)


def test_label_values_above_255_are_kept(tmp_path: Path) -> None:
    classes = tuple(ClassInfo(f"class {i}", "#4daf4a") for i in range(300))
    layout = dataclasses.replace(layout_at(tmp_path / "a.ome.zarr"), channels=(), classes=classes)
    outputs.prepare_image(layout)
    _, labels = write_random(layout)
    assert outputs.open_labels(layout.url).dtype == np.uint16
    assert np.array_equal(outputs.open_labels(layout.url)[:], labels[0])


def source_with_labels(url: Path, ngff: str, label: str | None) -> None:
    """An image of the given version, with its labels group unless `label` is None."""
    zarr_format = 3 if ngff == "0.5" else 2
    axes = [{"name": name, "type": "space"} for name in "yx"]
    paths = [{"path": f"s{i}", "coordinateTransformations": [{"type": "scale", "scale": [2.0**i] * 2}]} for i in (0, 1)]
    multiscale = {"axes": axes, "datasets": paths, "name": "source"} | ({} if ngff == "0.5" else {"version": ngff})

    def group(path: Path, attributes: dict[str, object]) -> None:
        nested = {"ome": {"version": "0.5"} | attributes} if ngff == "0.5" else attributes
        zarr.create_group(path, attributes=nested, zarr_format=zarr_format)

    def image(path: Path, more: dict[str, object]) -> None:
        group(path, {"multiscales": [multiscale]} | more)
        for i, size in enumerate([(300, 270), (150, 135)]):
            names = ["y", "x"] if ngff == "0.5" else None
            array = zarr.create_array(
                path, name=f"s{i}", shape=size, dtype="uint8", dimension_names=names, zarr_format=zarr_format
            )
            array[:] = 7

    image(url, {})
    if label:
        group(url / "labels", {"labels": [label]})
        image(url / "labels" / label, {"image-label": {"version": ngff}})


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.parametrize("other", ["nuclei", None])
def test_labels_in_place_leave_the_source_and_its_labels_as_they_were(
    tmp_path: Path, ngff: str, other: str | None
) -> None:
    source = tmp_path / "source.zarr"
    source_with_labels(source, ngff, other)
    before = snapshot(source)
    layout = dataclasses.replace(layout_at(tmp_path / "out/a.ome.zarr"), labels_url=str(source), labels_ngff=ngff)
    assert not outputs.labels_present(layout)
    for _ in range(2):
        outputs.prepare_image(layout)
        posterior, labels = write_random(layout, threads=4)
    assert outputs.labels_present(layout)
    assert np.array_equal(read_back(layout)[0], posterior)
    assert np.array_equal(read_back(layout)[1], labels)

    after = snapshot(source)
    listing = "labels/zarr.json" if ngff == "0.5" else "labels/.zattrs"
    changed = {path for path in before if after[path] != before[path]}
    assert changed == ({listing} if other else set())
    document = json.loads(after[listing])
    document = document["attributes"]["ome"] if ngff == "0.5" else document
    assert document["labels"] == [*([other] if other else []), "semantic"]
    image = ome_zarr_models.open_ome_zarr(str(source), version=ngff)
    assert image.ome_zarr_version == ngff
    assert type(ome_zarr_models.open_ome_zarr(f"{source}/labels/semantic", version=ngff)).__name__ == "ImageLabel"
    nodes = list(Reader(parse_url(str(source)))())
    assert np.array_equal(nodes[-1].data[0].compute(), labels[0])
    # The results beside it hold the posterior alone.
    assert not (tmp_path / "out/a.ome.zarr/labels").exists()
    assert type(ome_zarr_models.open_ome_zarr(layout.url)).__name__ == "Image"

    outputs.remove_labels(layout)
    restored = {path: json.loads(data) if path == listing else data for path, data in snapshot(source).items()}
    assert restored == {path: json.loads(data) if path == listing else data for path, data in before.items()}


def test_labels_in_a_real_plate_stand_beside_its_own(tmp_path: Path) -> None:
    plate = SHARED / "data/ome_zarr/bbbc039_plate_v04.zarr"
    if not plate.exists():
        pytest.skip(f"no {plate}")
    field = next(plate.glob("*/*/0"))
    shutil.copytree(field, tmp_path / "field.zarr")
    layout = dataclasses.replace(
        layout_at(tmp_path / "a.ome.zarr", "yx", (520, 696)),
        labels_url=str(tmp_path / "field.zarr"),
        labels_ngff="0.4",
    )
    outputs.prepare_image(layout)
    _, labels = write_random(layout)
    nodes = {Path(str(node.zarr.path)).name: node for node in Reader(parse_url(layout.labels_url))()}
    assert {"nuclei", "semantic"} <= set(nodes)
    assert np.array_equal(nodes["semantic"].data[0].compute(), labels[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_no_torn_shard(small_disk: Path) -> None:
    layout = layout_at(small_disk / "a.ome.zarr")
    outputs.prepare_image(layout)
    with pytest.raises(OutputError, match=r"no space left; free some or choose another --out"):
        write_random(layout)
    written = [path for path in small_disk.rglob("*") if path.is_file() and "c" in path.parts]
    assert all("." not in path.name for path in written)
    assert np.isfinite(outputs.open_posterior(layout.url)[:]).all()


def test_a_read_only_file_system_is_one_sentence(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="the file system is read-only; choose another place"):
        outputs.prepare_image(layout_at(small_disk / "a.ome.zarr"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"):
        outputs.prepare_image(layout_at(tmp_path / "a.ome.zarr"))
