"""Runs of ``chorus convert``: what they leave, what they skip, what they refuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models import open_ome_zarr
from PIL import Image
from typer.testing import CliRunner

from chorus.cli import app
from chorus.cluster.commands.convert import ConvertRequest, ConvertRow, ConvertSummary, convert
from chorus.cluster.runtime.output_lock import output_lock
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.outcome import Outcome
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io.files.conversion import ConvertSettings
from chorus.pipeline.io.models import SourceImage
from chorus.pipeline.io.sources.discovery import find_images


def run(
    source: Path | str, out: Path | str, *, executor: str = "serial", overwrite: bool = False, **settings: Any
) -> Outcome[ConvertRow, ConvertSummary]:
    request = ConvertRequest.model_validate(
        {
            "sources": [str(source)],
            "out": str(out),
            "settings": ConvertSettings(**settings),
            "executor": executor,
            "overwrite": overwrite,
        }
    )
    return convert(request, Silent())


def noise(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def stored(path: Path, level: int = 0) -> np.ndarray:
    return np.asarray(zarr.open_array(path / f"s{level}", mode="r")[:])


def image(path: Path) -> SourceImage:
    (found,) = find_images([str(path)])
    assert isinstance(found, SourceImage), found
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, one of them in a subfolder."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    tifffile.imwrite(source / "a.tif", noise((50, 60)))
    tifffile.imwrite(
        source / "sub" / "b.ome.tif", noise((2, 50, 60)), metadata={"axes": "CYX"}, photometric="minisblack"
    )
    Image.fromarray(noise((50, 60, 3), "uint8")).save(source / "c.png")
    (source / "notes.csv").write_text("not an image")
    return source


def test_pixels_names_sizes_and_pyramid_arrive_and_peers_can_read_them(tmp_path: Path) -> None:
    data = noise((2, 3, 300, 530))
    metadata = {"axes": "ZCYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    metadata["Channel"] = {"Name": ["DNA", "actin", "tubulin"]}
    path = tmp_path / "cells.ome.tif"
    tifffile.imwrite(path, data, metadata=metadata, photometric="minisblack", tile=(64, 64))
    assert run(path, tmp_path / "out", region=128, chunk=64).state == "complete"

    target = tmp_path / "out" / "cells.ome.zarr"
    found = image(target)
    assert (found.axes, found.ngff, found.channels) == ("czyx", "0.5", ("DNA", "actin", "tubulin"))
    assert found.levels[0].scale == (1.0, 2.0, 0.5, 0.5)
    assert [level.shape for level in found.levels] == [(3, 2, 300, 530), (3, 2, 150, 265), (3, 2, 75, 133)]
    assert np.array_equal(stored(target), data.transpose(1, 0, 2, 3))
    whole = stored(target)[..., :300, :530].reshape(3, 2, 150, 2, 265, 2).astype(np.int64).sum((3, 5))
    assert np.array_equal(stored(target, 1), (whole + 2) // 4)
    array = zarr.open_array(target / "s0", mode="r")
    assert (array.shards, array.chunks) == ((3, 1, 128, 128), (1, 1, 64, 64))
    assert open_ome_zarr(zarr.open_group(target, mode="r")).ome_zarr_version == "0.5"
    (node,) = [one for one in Reader(parse_url(str(target)))() if one.data]
    assert [tuple(level.shape) for level in node.data] == [level.shape for level in found.levels]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("region", [64, 512])
def test_levels_keep_the_type_and_do_not_depend_on_the_region(tmp_path: Path, dtype: str, region: int) -> None:
    data = noise((301, 517), dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, rowsperstrip=7, compression="zlib")
    run(tmp_path / "a.tif", tmp_path / "out", region=region, chunk=64)
    target = tmp_path / "out" / "a.ome.zarr"
    even = np.pad(data, ((0, 1), (0, 1)), mode="edge").astype(np.float64)
    mean = (even[::2, ::2] + even[::2, 1::2] + even[1::2, ::2] + even[1::2, 1::2]) / 4
    expected = mean if np.dtype(dtype).kind == "f" else np.floor(mean + 0.5)
    assert stored(target, 1).dtype == dtype
    assert np.array_equal(stored(target), data)
    assert np.array_equal(stored(target, 1), expected.astype(dtype))


def test_names_are_paths_below_the_folder_and_equal_ones_are_told_apart(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(noise((50, 60), "uint8")).save(folder / "a.png")
    outcome = run(folder, tmp_path / "out")
    names = [row.name for row in outcome.rows]
    assert names[2:] == ["c.ome.zarr", "sub/b.ome.zarr"]
    assert len(set(names)) == 4
    assert all(name.startswith("a-") and len(name) == len("a-123456.ome.zarr") for name in names[:2])
    assert len(list(find_images([str(tmp_path / "out")]))) == 4


def test_options_fill_in_and_override_what_the_file_says(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", noise((50, 60)), metadata={"PhysicalSizeX": 3.0, "PhysicalSizeY": 3.0})
    run(tmp_path / "a.ome.tif", tmp_path / "out", pixel_size=0.65, channel_name=["DNA"])
    found = image(tmp_path / "out" / "a.ome.zarr")
    assert (found.axes, found.channels) == ("cyx", ("DNA",))
    assert found.levels[0].scale == (1.0, 0.65, 0.65)
    assert found.units == (None, "micrometer", "micrometer")


def test_several_series_become_a_collection(tmp_path: Path) -> None:
    first, second = noise((50, 60)), noise((3, 20, 30), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(first, metadata={"axes": "YX"})
        writer.write(second, metadata={"axes": "CYX"}, photometric="minisblack")
    run(tmp_path / "a.ome.tif", tmp_path / "out")
    found = [one for one in find_images([str(tmp_path / "out")]) if isinstance(one, SourceImage)]
    assert [one.name for one in found] == ["a.ome.zarr/0", "a.ome.zarr/1"]
    assert np.array_equal(stored(tmp_path / "out" / "a.ome.zarr" / "0"), first)
    assert np.array_equal(stored(tmp_path / "out" / "a.ome.zarr" / "1"), second)


def test_a_bad_file_is_named_and_the_rest_goes_on_and_a_mended_one_is_done_by_the_same_call(
    folder: Path, tmp_path: Path
) -> None:
    good = (folder / "a.tif").read_bytes()
    (folder / "a.tif").write_bytes(good[:500])
    outcome = run(folder, tmp_path / "out")
    assert (outcome.exit_code, outcome.summary.done, outcome.summary.failed) == (1, 2, 1)
    (failed,) = [row for row in outcome.rows if row.status == "failed"]
    assert str(folder / "a.tif") in failed.message
    (folder / "a.tif").write_bytes(good)
    assert run(folder, tmp_path / "out").state == "complete"
    assert np.array_equal(stored(tmp_path / "out" / "a.ome.zarr"), noise((50, 60)))


def test_a_rerun_skips_what_is_recorded_and_replaces_what_was_begun(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    kept, torn = out / "c.ome.zarr" / "s0" / "zarr.json", out / "a.ome.zarr"
    before = kept.stat().st_mtime_ns
    (out / "ledger" / "a.ome.zarr.json").unlink()
    (torn / "zarr.json").unlink()
    (torn / "s0" / "c" / "0" / "0").write_bytes(b"torn")
    outcome = run(folder, out)
    assert outcome.state == "complete"
    assert np.array_equal(stored(torn), noise((50, 60)))
    assert kept.stat().st_mtime_ns == before


def test_other_settings_or_changed_files_are_refused_until_overwrite(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out, pixel_size=0.5)
    with pytest.raises(RefusedError, match=r"pixel_size was 0\.5, now 0\.6; .*|pixel_size was 0\.5, now 0\.6"):
        run(folder, out, pixel_size=0.6)
    tifffile.imwrite(folder / "a.tif", noise((30, 40)))
    with pytest.raises(RefusedError, match=r"a\.tif changed since it was converted"):
        run(folder, out, pixel_size=0.5)
    (folder / "c.png").unlink()
    (out / "mine.txt").write_text("not Chorus's")
    assert run(folder, out, overwrite=True).state == "complete"
    assert np.array_equal(stored(out / "a.ome.zarr"), noise((30, 40)))
    assert not (out / "c.ome.zarr").exists()
    assert (out / "mine.txt").exists()


def test_a_folder_that_is_not_ours_is_refused_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "precious.tif", noise((30, 40)))
    for overwrite in (False, True):
        with pytest.raises(RefusedError, match="holds no run of Chorus"):
            run(tmp_path / "images", tmp_path, overwrite=overwrite)
    assert (tmp_path / "images" / "precious.tif").exists()


def test_two_runs_at_once_are_refused(folder: Path, tmp_path: Path) -> None:
    with output_lock(str(tmp_path / "out"), "other"), pytest.raises(RefusedError, match="another run is writing here"):
        run(folder, tmp_path / "out")


def test_nothing_to_convert_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.csv").write_text("")
    for source in (tmp_path / "empty", tmp_path / "notes.csv", tmp_path / "missing.tif"):
        with pytest.raises(RefusedError, match=source.name):
            run(source, tmp_path / "out")


def test_wrong_numbers_of_names_fail_the_file_with_a_sentence(folder: Path, tmp_path: Path) -> None:
    outcome = run(folder, tmp_path / "out", channel_name=["red", "green", "blue"])
    assert [row.status for row in outcome.rows] == ["failed", "done", "failed"]
    assert "has 2 channels, --channel-name is given 3 times" in outcome.rows[2].message


def test_sources_and_results_may_be_on_other_storage(folder: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for file in [*folder.rglob("*.tif"), *folder.rglob("*.png")]:
        fs.pipe_file(f"/convert-in/{file.relative_to(folder)}", file.read_bytes())
    assert run("memory://convert-in", "memory://convert-out").state == "complete"
    (found,) = find_images(["memory://convert-out/a.ome.zarr"])
    assert isinstance(found, SourceImage)


def test_the_command_says_what_it_did_and_exits_with_its_code(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"no")
    arguments = ["convert", str(folder), "--out", str(tmp_path / "out"), "--executor", "serial", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert '"state": "failures"' in result.stdout
    assert "bad.png: cannot be read" in result.stderr


@pytest.mark.ray
def test_ray_leaves_the_same_bytes_as_one_process(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "serial")
    outcome = run(folder, tmp_path / "ray", executor="ray")
    assert outcome.state == "complete"
    for name in (row.name for row in outcome.rows):
        one, other = (
            {p.relative_to(r): p.read_bytes() for p in sorted(r.rglob("*")) if p.is_file()}
            for r in (tmp_path / "serial" / name, tmp_path / "ray" / name)
        )
        assert one == other


def test_real_images_arrive_pixel_by_pixel(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "bbbc039" / "test" / "images"
    outcome = run(source, tmp_path / "out")
    assert outcome.state == "complete"
    for row in outcome.rows:
        assert np.array_equal(stored(tmp_path / "out" / row.name), tifffile.imread(row.source))


def test_linked_folders_are_searched_each_once_and_links_back_up_are_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far/deep").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "far/deep/x.tif", noise((8, 8)))
    (folder / "link").symlink_to(tmp_path / "far")
    (folder / "again").symlink_to(tmp_path / "far/deep")
    (tmp_path / "far/up").symlink_to(folder)
    names = [row.name for row in run(folder, tmp_path / "out").rows]
    assert len(names) == 4
    assert [name for name in names if name.endswith("x.ome.zarr")] == ["again/x.ome.zarr"]


def test_files_with_names_that_results_cannot_have_fail_alone_and_long_ones_do_not(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"a", b"Z\xfcrich", b"two\nlines", b"l" * 235, b"m" * 251):
        tifffile.imwrite(tmp_path / "in/odd.tif", noise((8, 8)))
        os.rename(tmp_path / "in/odd.tif", os.fsencode(tmp_path / "in") + b"/" + name + b".tif")
    for _ in range(2):
        outcome = run(tmp_path / "in", tmp_path / "out")
        assert sorted(row.status for row in outcome.rows) == ["done", "done", "done", "failed", "failed"]
        failed = [row.message for row in outcome.rows if row.status == "failed"]
        assert all(message.endswith("rename it") and message.isprintable() for message in failed), failed


def test_a_black_file_is_an_image_with_a_chunk(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "black.tif", np.zeros((300, 200), np.uint16))
    assert run(tmp_path / "black.tif", tmp_path / "out").state == "complete"
    assert (tmp_path / "out/black.ome.zarr/s0/c/0/0").is_file()
    assert not stored(tmp_path / "out/black.ome.zarr").any()
