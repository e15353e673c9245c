"""Bad images, bad places: one never stops the others, and every one is told in one sentence with a mend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr

from chorus.cli import main
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.io import storage
from chorus.pipeline.members.contract import ModuleMember
from tests.support.bombs import bomb, image_of, put_bomb
from tests.support.making import pixels, write_ensemble, write_image, write_light_ensemble

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_light_ensemble(tmp_path_factory.mktemp("e"), members=2, width=4, tile=32, augmentations=["identity"])


@pytest.fixture
def run(ensemble: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`chorus predict SOURCES --out OUT ...` in this process: exit code, and what went to standard error."""

    def call(out: Path | str, *arguments: object, ensemble: Path = ensemble) -> tuple[int, str]:
        fixed = ["--executor", "serial", "--region", "64", "--chunk", "32", "--no-report"]
        given = [str(a) for a in arguments]
        monkeypatch.setenv("COLUMNS", "2000")
        monkeypatch.setattr(sys, "argv", ["chorus", "predict", *given, "-e", str(ensemble), "-o", str(out), *fixed])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def row(out: Path, name: str) -> pd.Series[Any]:
    scores = read_scores(str(out)).set_index("name")
    return scores.loc[f"{name}.ome.zarr"]


def assert_sentence(message: str, *names: str) -> None:
    """One line that names the file and says what to do."""
    assert message
    assert "\n" not in message
    assert "unexpected" not in message, message
    assert "; " in message, f"no mend: {message}"
    for name in names:
        assert name in message, message


def image(folder: Path, name: str, data: np.ndarray | None = None, axes: str = "yx", **options: Any) -> Path:
    return write_image(folder / f"{name}.ome.zarr", pixels((70, 70)) if data is None else data, axes, **options)


def chunk(path: Path, key: str = "0/0") -> Path:
    return path / "s0" / "c" / key


BAD: dict[str, Callable[[Path], Any]] = {
    "nan": lambda folder: image(folder, "bad", np.where(pixels((70, 70)) > 900, np.nan, 1).astype("float32")),
    "inf": lambda folder: image(folder, "bad", np.full((70, 70), np.inf, "float32")),
    "corrupt chunk": lambda folder: chunk(image(folder, "bad")).write_bytes(b"not zstd"),
    "missing array": lambda folder: shutil.rmtree(image(folder, "bad") / "s0"),
    "int64": lambda folder: image(folder, "bad", pixels((40, 40)).astype("int64")),
    "complex": lambda folder: image(folder, "bad", pixels((40, 40)).astype("complex64")),
    "rgb": lambda folder: image(folder, "bad", pixels((3, 40, 40)), "cyx"),
    "torn metadata": lambda folder: (image(folder, "bad") / "s0" / "zarr.json").write_text('{"zarr_fo'),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_recorded_and_mended_without_redoing_the_others(kind: str, run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    image(folder, "a")
    BAD[kind](folder)
    image(folder, "z", pixels((45, 33), seed=4))
    code, err = run(out, folder)
    assert code == 1
    assert "Traceback" not in err
    failed = row(out, "bad")
    assert failed["status"] == "failed"
    assert_sentence(failed["message"], "bad.ome.zarr")
    assert failed["message"] in err
    assert {row(out, name)["status"] for name in "az"} <= {"done", "empty"}

    before = {file: file.stat().st_mtime_ns for name in "az" for file in ours(out, name)}
    assert len(before) > 4
    shutil.rmtree(folder / "bad.ome.zarr")
    image(folder, "bad", pixels((70, 70), seed=2).astype("float32" if kind in ("nan", "inf") else "uint16"))
    code, err = run(out, folder)
    assert code == 0, err
    assert row(out, "bad")["status"] in ("done", "empty")
    assert {file: file.stat().st_mtime_ns for name in "az" for file in ours(out, name)} == before


def ours(out: Path, name: str) -> list[Path]:
    """Files of the results and of the ledger of an image."""
    roots = (out / "images" / f"{name}.ome.zarr", out / "ledger" / f"{name}.ome.zarr")
    return [file for root in roots for file in sorted(root.rglob("*")) if file.is_file()]


def test_an_image_that_breaks_after_the_first_run_does_not_lose_the_others(run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    image(folder, "a")
    broken = image(folder, "b")
    assert run(out, folder)[0] == 0
    metadata = (broken / "s0" / "zarr.json").read_text()
    (broken / "s0" / "zarr.json").unlink()
    assert run(out, folder)[0] == 1
    assert row(out, "a")["status"] == "done"
    (broken / "s0" / "zarr.json").write_text(metadata)
    assert run(out, folder)[0] == 0


@pytest.mark.parametrize("strict", [False, True])
def test_a_missing_chunk_is_fill_value_unless_strict(strict: bool, run: Run, tmp_path: Path) -> None:
    chunk(image(tmp_path, "holey")).unlink()
    code, _ = run(tmp_path / "out", tmp_path / "holey.ome.zarr", *(["--strict"] if strict else []))
    assert code == (1 if strict else 0)
    if strict:
        assert_sentence(row(tmp_path / "out", "holey")["message"], "holey.ome.zarr", "is missing")


@pytest.mark.parametrize("shape", [(1, 1), (1, 100), (100, 1), (7, 9), (31, 33), (65, 64)])
@pytest.mark.parametrize("constant", [False, True])
def test_every_shape_is_done_and_keeps_it(shape: tuple[int, int], constant: bool, run: Run, tmp_path: Path) -> None:
    source = image(tmp_path, "odd", np.full(shape, 7, "uint16") if constant else pixels(shape) + 1)
    assert run(tmp_path / "out", source)[0] == 0
    group = zarr.open_group(tmp_path / "out/images/odd.ome.zarr", mode="r")
    assert group["labels/semantic/s0"].shape == shape
    posterior = np.asarray(group["s0"])
    assert posterior.shape[1:] == shape
    assert np.isfinite(posterior).all()


def test_a_channel_that_does_not_exist_is_told_with_those_that_do(run: Run, tmp_path: Path) -> None:
    source = image(tmp_path, "a", pixels((2, 40, 40)), "cyx", channels=["dna", "actin"])
    code, _ = run(tmp_path / "out", source, "--channel", "tubulin")
    assert code == 1
    assert_sentence(row(tmp_path / "out", "a")["message"], "a.ome.zarr", "tubulin", "dna, actin")


def test_what_holds_no_image_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    zarr.create_array(tmp_path / "plain.zarr", shape=(4, 4), dtype="uint8")
    for name in ("empty", "plain.zarr", "nowhere", "no*thing"):
        code, err = run(tmp_path / "out", tmp_path / name)
        assert code == 2
        assert_sentence(err.strip().splitlines()[-1], name)
        assert not (tmp_path / "out" / "run.json").exists()


def test_a_named_file_that_is_damaged_is_a_failed_image(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    code, err = run(tmp_path / "out", tmp_path / "a.tif")
    assert code == 1
    (failed,) = (line for line in err.splitlines() if "failed: " in line and "a.tif" in line)
    assert_sentence(failed, "a.tif")


def test_an_unwritable_output_ends_with_code_3(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = image(tmp_path, "a")
    writes = {name: getattr(storage, name) for name in ("write_bytes", "write_record")}
    for part in ("run.json", "plan/", "attempts/", "images/", "ledger/", "scores.parquet"):

        def refuse(name: str, url: str, data: bytes, part: str = part, **options: bool) -> None:
            if part in url:
                raise PermissionError(13, "Permission denied", url)
            writes[name](url, data, **options)

        for name in writes:
            monkeypatch.setattr(storage, name, partial(refuse, name))
        code, err = run(tmp_path / "out", source)
        assert code == 3, (part, err)
        assert "Traceback" not in err
        assert "permission denied; check the rights" in err, (part, err)
    monkeypatch.undo()
    assert run(tmp_path / "out", source)[0] == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of `size`; skips where this process may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_with_code_3_and_the_run_goes_on_when_there_is_room(run: Run, tmp_path: Path) -> None:
    source = image(tmp_path, "a", pixels((300, 300)))
    with small_disk(tmp_path / "disk", "200k") as disk:
        code, err = run(disk / "out", source, "--dtype", "float32")
        assert code == 3, err
        assert "no space left" in err
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert run(disk / "out", source, "--dtype", "float32")[0] == 0


def test_a_member_that_fails_on_an_image_is_no_silent_emptiness(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where half precision overflows: an empty tile is answered, an image is not.
    answer = ModuleMember.__call__

    def overflow(self: ModuleMember, tiles: torch.Tensor) -> torch.Tensor:
        return answer(self, tiles) + (float("nan") if tiles.any() else 0.0)

    monkeypatch.setattr(ModuleMember, "__call__", overflow)
    ensemble = write_ensemble(tmp_path / "e", members=2, tile=32, augmentations=["identity"])
    code, _ = run(tmp_path / "out", image(tmp_path, "a"), ensemble=ensemble)
    assert code == 1
    assert_sentence(row(tmp_path / "out", "a")["message"], "a.ome.zarr", "NaN")


def test_a_plate_that_lists_a_well_that_is_not_there_loses_that_well_alone(run: Run, tmp_path: Path) -> None:
    plate = zarr.create_group(tmp_path / "in/p.ome.zarr", zarr_format=3)
    wells = [{"path": f"A/{c + 1}", "rowIndex": 0, "columnIndex": c} for c in range(2)]
    listed = {"name": "p", "rows": [{"name": "A"}], "columns": [{"name": "1"}, {"name": "2"}], "wells": wells}
    plate.attrs["ome"] = {"version": "0.5", "plate": listed}
    well = plate.create_group("A/1")
    well.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": "0"}]}}
    write_image(tmp_path / "in/p.ome.zarr/A/1/0", pixels((40, 40)))
    write_image(tmp_path / "in/other.ome.zarr", pixels((40, 40)))
    for _ in range(2):
        code, _ = run(tmp_path / "out", tmp_path / "in")
        assert code == 1
        scores = read_scores(str(tmp_path / "out")).set_index("name")
        assert scores.status.eq("failed").to_dict() == {
            "other.ome.zarr": False,
            "p.ome.zarr/A/1/0": False,
            "p.ome.zarr/A/2": True,
        }
        assert_sentence(scores.message["p.ome.zarr/A/2"], "A/2")
    made = zarr.open_group(tmp_path / "out/images/p.ome.zarr", mode="r").attrs["ome"]
    assert [one["path"] for one in made["plate"]["wells"]] == ["A/1"]  # type: ignore[index, call-overload]


def test_names_that_results_cannot_have_fail_alone_and_long_ones_do_not(run: Run, tmp_path: Path) -> None:
    for name in ("ok", "l" * 230, "m" * 246):
        write_image(tmp_path / f"in/{name}.ome.zarr", pixels((40, 40)))
    for odd in (b"Z\xfcrich", b"two\nlines", b"back\\slash"):
        write_image(tmp_path / "in/odd", pixels((40, 40)))
        os.rename(tmp_path / "in/odd", os.fsencode(tmp_path / "in") + b"/" + odd + b".ome.zarr")
    code, _ = run(tmp_path / "out", tmp_path / "in")
    assert code == 1
    scores = read_scores(str(tmp_path / "out"))
    assert sorted(scores.status) == ["done", "done", "done", "failed", "failed", "failed"]
    for message in scores.message[scores.status == "failed"]:
        assert_sentence(message, "rename it")


def test_an_output_within_its_source_is_no_source(run: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.ome.zarr", pixels((40, 40)))
    for _ in range(2):
        assert run(tmp_path / "in/results", tmp_path / "in")[0] == 0
        assert list(read_scores(str(tmp_path / "in/results")).name) == ["a.ome.zarr"]


def test_a_decompression_bomb_is_one_failed_image_and_the_others_are_done(tmp_path: Path, run: Run) -> None:
    put_bomb(image_of(tmp_path / "in/bomb.ome.zarr", 3), bomb("zstd"))
    write_image(tmp_path / "in/good.ome.zarr", pixels((48, 40)))
    code, said = run(tmp_path / "out", tmp_path / "in")
    assert code == 1
    assert "unpacks to more than the 2048 bytes" in said
    scores = read_scores(str(tmp_path / "out")).set_index("name")["status"]
    assert dict(scores.items()) == {"bomb.ome.zarr": "failed", "good.ome.zarr": "done"}
