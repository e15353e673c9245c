"""An image finds its labels by name, also where both lie in one folder, and is never its own label."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.files.label_files import LABEL_SUFFIXES, image_of, pair_labels, stored_labels
from chorus.pipeline.io.formats.cellpose_files import read_masks


def urls(names: list[str], folder: str = "/data") -> dict[str, str]:
    return {name: f"{folder}/{name}.tif" for name in names}


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_in_one_folder_an_image_goes_with_the_file_that_has_its_name_and_a_suffix(suffix: str) -> None:
    folder = urls(["a", f"a{suffix}", "b"])
    assert pair_labels(folder, folder) == {"a": f"a{suffix}"}


def test_a_file_without_a_suffix_is_an_image_where_others_of_its_folder_have_one() -> None:
    labels = urls(["a", "a_masks", "b", "far/b"])
    assert pair_labels({"a": None, "b": None, "far/b": None}, labels) == {"a": "a_masks", "far/b": "far/b"}


def test_equal_names_in_two_folders_are_pairs_also_where_they_end_as_labels_do() -> None:
    names = ["a", "b_mask", "x_mask"]
    assert pair_labels(urls(names), urls([*names, "x"], "/labels"))["b_mask"] == "b_mask"
    both = ["x", "x_mask"]
    assert pair_labels(urls(both), urls(["x_mask"], "/labels")) == {"x_mask": "x_mask"}


def test_labels_that_were_taken_for_images_too_have_no_labels() -> None:
    names = ["a", "a_masks"]
    assert pair_labels(dict.fromkeys(names), urls(names)) == {"a": "a_masks"}


def test_a_file_is_never_its_own_label_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    os.symlink("images", tmp_path / "labels")
    images, labels = ({"a": f"{tmp_path}/{part}/a.tif"} for part in ("images", "labels"))
    assert pair_labels(images, labels) == {}


def test_the_longest_suffix_is_taken_off() -> None:
    assert [image_of(name) for name in ("a_cp_masks", "a_masks", "a", "x/_masks")] == ["a", "a", "a", "x/_masks"]


def test_labels_of_64_bits_are_taken_where_they_fit() -> None:
    assert stored_labels(np.array([[0, 7]]), "x").dtype == np.int32
    with pytest.raises(ImageError, match="beyond 32 bits"):
        stored_labels(np.array([[0, 1 << 40]]), "x")


class _Planted:
    def __reduce__(self) -> Any:
        return os.mkdir, ("planted-by-a-pickle",)


def seg(content: Any, path: Path) -> bytes:
    np.save(path, content, allow_pickle=True)
    return path.read_bytes()


def test_masks_of_cellpose_are_read_and_nothing_that_their_file_names_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    masks = np.arange(12, dtype=np.uint16).reshape(3, 4)
    content = {"masks": masks, "est_diam": np.float64(30), "flows": [masks, None], "filename": Path("a.tif")}
    np.testing.assert_array_equal(read_masks("a_seg.npy", seg(content, tmp_path / "a_seg.npy")), masks)
    read_masks("b_seg.npy", seg({"masks": masks, "bad": _Planted()}, tmp_path / "b_seg.npy"))
    assert not (tmp_path / "planted-by-a-pickle").exists()


@pytest.mark.parametrize(
    "data", [b"", b"text", pickle.dumps({"masks": 1}), b"\x93NUMPY\x01\x00"], ids=["empty", "text", "pickle", "cut"]
)
def test_what_is_no_file_of_cellpose_is_one_sentence(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"a_seg\.npy: is no file of Cellpose"):
        read_masks("a_seg.npy", data)


@pytest.mark.parametrize("content", [{}, {"masks": None}, {"masks": np.zeros((2, 2))}], ids=str)
def test_a_file_of_cellpose_without_masks_is_one_sentence(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no masks"):
        read_masks("a_seg.npy", seg(content, tmp_path / "a_seg.npy"))
