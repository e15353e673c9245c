"""The starter ensemble's images: fields are whole on one side, and corruptions are as large as they are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.starter import CORRUPTIONS, REFERENCE, corrupted, fields, gather, reference_fields


def test_reference_fields_are_whole_as_many_as_asked_and_the_same_in_any_order() -> None:
    groups = {f"image-{index}": f"field-{index // 3}" for index in range(60)}
    chosen = reference_fields(groups, 20)
    assert sum(group in chosen for group in groups.values()) == 18  # 20 images are no whole number of fields
    assert reference_fields(dict(reversed(groups.items())), 20) == chosen
    assert reference_fields(groups, 9) < chosen


def test_no_field_is_both_learnt_and_judged_by(shared_data: Path, tmp_path: Path) -> None:
    gather(shared_data, tmp_path)
    names = {
        place: {path.stem for path in (tmp_path / place / "images").iterdir()} for place in ("training", "reference")
    }
    assert len(names["reference"]) == sum(REFERENCE.values())
    assert len(names["training"]) == 80 - len(names["reference"])
    for place in names:
        assert {path.stem for path in (tmp_path / place / "labels").iterdir()} == names[place]
    for data in REFERENCE:
        of_field = fields(shared_data / data)
        learnt, judged = (
            {of_field[name.partition("-")[2]] for name in names[place] if name.startswith(data)} for place in names
        )
        assert learnt
        assert judged
        assert not learnt & judged


@pytest.mark.parametrize("how", CORRUPTIONS)
def test_corrupted_images_keep_their_dtype_and_lose_what_they_are_named_by(how: str) -> None:
    y, x = np.mgrid[:80, :80]
    image = (1000 + 8000 * ((y // 16 + x // 16) % 2))[None].astype(np.uint16)
    worse = corrupted(image, how, 1)
    assert (worse.dtype, worse.shape) == (image.dtype, image.shape)
    assert np.array_equal(corrupted(image, how, 1), worse)
    bright = worse[image == 9000].astype(float)
    if how.startswith("Gaussian"):
        assert bright.std() == pytest.approx(800, rel=0.05)
    elif "photons" in how:
        assert bright.std() == pytest.approx(8000 / np.sqrt(20), rel=0.05)
    elif how.startswith("gain"):
        assert np.array_equal(worse, np.rint(0.3 * image).astype(np.uint16))
    else:
        # Half of a Gaussian's integral lies on either side of an edge.
        assert worse[0, 8, 15:17].mean() == pytest.approx(5000, rel=0.01)
        assert abs(int(worse[0, 8, 8]) - int(image[0, 8, 8])) < 10
