"""Which truth belongs to which image of a run, and what of it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from chorus.pipeline.consensus.annotations import Drawing
from chorus.pipeline.consensus.truths import Sizes, find_experts, find_truths, open_truth, truth_classes
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError, RefusedError
from tests.support.making import write_image

SHAPE = (20, 30)
WHOLE = Window.of(0, 20, 0, 30)


def labels(seed: int = 0, shape: tuple[int, ...] = SHAPE, top: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint16)


def write_label(source: Path, name: str, levels: list[np.ndarray]) -> None:
    """A label image with `levels` inside the OME-Zarr `source`."""
    datasets = [
        {"path": f"s{k}", "coordinateTransformations": [{"type": "scale", "scale": [2.0**k, 2.0**k]}]}
        for k in range(len(levels))
    ]
    axes = [{"name": axis, "type": "space"} for axis in "yx"]
    attributes = {"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}}
    group = zarr.create_group(source / "labels" / name, attributes=attributes)
    for k, level in enumerate(levels):
        group.create_array(f"s{k}", data=level, chunks=(16, 16))


def read(truth: Drawing, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    with open_truth(truth, Sizes(1, 1, *shape)) as opened:
        return opened(0, 0, Window.of(0, shape[0], 0, shape[1]))


def test_files_are_found_by_name_and_what_lacks_on_either_side_is_listed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    tifffile.imwrite(tmp_path / "a.ome.tif", labels(1))
    tifffile.imwrite(tmp_path / "b_mask.tif", labels(2))
    Image.fromarray(labels(3).astype(np.uint8)).save(tmp_path / "sub" / "c.png")
    tifffile.imwrite(tmp_path / "alone.tif", labels(4))
    images = {f"{name}.ome.zarr": "" for name in "abcd"}
    found = find_truths(images, str(tmp_path), None)
    assert sorted(found.truths) == ["a.ome.zarr", "b.ome.zarr", "c.ome.zarr"]
    assert (found.without_truth, found.without_image) == (["d.ome.zarr"], ["alone"])
    for seed, name in enumerate("abc", start=1):
        assert np.array_equal(read(found.truths[f"{name}.ome.zarr"]), labels(seed))


def test_two_files_of_one_name_in_different_folders_are_not_guessed_from(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", labels())
    tifffile.imwrite(tmp_path / "b.tif", labels())
    found = find_truths({"a.ome.zarr": "", "b.ome.zarr": ""}, str(tmp_path), None)
    assert found.without_truth == ["a.ome.zarr"]
    assert found.without_image == ["x/a", "y/a"]


def test_fields_of_a_plate_are_found_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "plate" / "B" / "02").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "plate" / "B" / "02" / "0.tif", labels(1))
    found = find_truths({"plate.ome.zarr/B/02/0": "", "plate.ome.zarr/B/02/1": ""}, str(tmp_path), None)
    assert list(found.truths) == ["plate.ome.zarr/B/02/0"]


def test_labels_in_the_source_are_read_at_the_level_of_the_prediction(tmp_path: Path) -> None:
    sources = {}
    for name in ("a", "b"):
        sources[f"{name}.ome.zarr"] = str(write_image(tmp_path / f"{name}.zarr", labels()))
    write_label(tmp_path / "a.zarr", "nuclei", [labels(1), labels(2, (10, 15))])
    found = find_truths(sources, None, "nuclei")
    assert found.without_truth == ["b.ome.zarr"]
    truth = found.truths["a.ome.zarr"]
    assert np.array_equal(read(truth), labels(1))
    assert np.array_equal(read(truth, (10, 15)), labels(2, (10, 15)))


def test_a_folder_of_ome_zarr_labels_is_a_truth_too(tmp_path: Path) -> None:
    write_image(tmp_path / "a.ome.zarr", labels(1))
    write_image(tmp_path / "alone.ome.zarr", labels(2))
    found = find_truths({"a.ome.zarr": "", "b.ome.zarr": ""}, str(tmp_path), None)
    assert np.array_equal(read(found.truths["a.ome.zarr"]), labels(1))
    assert (found.without_truth, found.without_image) == (["b.ome.zarr"], ["alone"])


def test_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", labels(0, (10, 10)))
    with (
        pytest.raises(ImageError, match=r"a\.tif: is 1x1x10x10 \(t, z, y, x\), but the prediction is 1x1x20x30"),
        open_truth(Drawing("truth", str(tmp_path / "a.tif"), "raster"), Sizes(1, 1, *SHAPE)),
    ):
        pass


def test_without_any_truth_a_run_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", labels())
    with pytest.raises(RefusedError, match="fits none of the 1 images of the run"):
        find_truths({"b.ome.zarr": ""}, str(tmp_path), None)
    with pytest.raises(RefusedError, match="--truth FOLDER, or --truth-label NAME"):
        find_truths({"b.ome.zarr": ""}, None, None)
    with pytest.raises(RefusedError, match="not found"):
        find_truths({"b.ome.zarr": ""}, str(tmp_path / "missing"), None)


def test_objects_and_masks_are_foreground_of_one_class_and_other_values_are_refused() -> None:
    objects = np.array([[0, 7, 255]])
    assert truth_classes(objects, 2, "a").tolist() == [[0, 1, 1]]
    assert truth_classes(np.array([[0, 1, 2]]), 3, "a").tolist() == [[0, 1, 2]]
    with pytest.raises(ImageError, match=r"a: has the label values 7, 255, but the ensemble has the classes 0 to 2"):
        truth_classes(objects, 3, "a")
    with pytest.raises(ImageError, match=r"label values -1, but"):
        truth_classes(np.array([[-1, 2]]), 2, "a")


def test_experts_are_found_by_image_and_those_that_drew_nothing_of_the_run_are_refused(tmp_path: Path) -> None:
    for expert, names in {"anna": "ab", "bert": "a", "images": "ab"}.items():
        (tmp_path / expert).mkdir()
        for name in names:
            tifffile.imwrite(tmp_path / expert / f"{name}.tif", labels())
    found = find_experts(["a.ome.zarr", "b.ome.zarr"], str(tmp_path), ["anna", "bert"])
    drawn = {name: [one.expert for one in drawings] for name, drawings in found.items()}
    assert drawn == {"a.ome.zarr": ["anna", "bert"], "b.ome.zarr": ["anna"]}
    with pytest.raises(RefusedError, match="no expert drew any image of the run"):
        find_experts(["c.ome.zarr"], str(tmp_path), [])


def test_images_beside_their_truth_are_no_truth(tmp_path: Path) -> None:
    for name in ("a", "a_masks", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", labels(1))
    found = find_truths({f"{name}.ome.zarr": "" for name in ("a", "b")}, str(tmp_path), None)
    assert [Path(truth.url).name for truth in found.truths.values()] == ["a_masks.tif"]
    assert (found.without_truth, found.without_image) == (["b.ome.zarr"], [])


def test_an_ome_zarr_image_is_not_its_own_truth(tmp_path: Path) -> None:
    sources = {f"{name}.ome.zarr": str(write_image(tmp_path / f"{name}.ome.zarr", labels(1))) for name in "ab"}
    with pytest.raises(RefusedError, match="fits none of the 2 images"):
        find_truths(sources, str(tmp_path), None)
    write_image(tmp_path / "a_masks.ome.zarr", labels(1).astype(np.int64))
    truths = find_truths(sources, str(tmp_path), None).truths
    assert [Path(truth.url).name for truth in truths.values()] == ["a_masks.ome.zarr"]
    assert np.array_equal(read(truths["a.ome.zarr"]), labels(1))
