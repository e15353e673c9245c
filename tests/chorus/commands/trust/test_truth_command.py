"""`chorus truth` on the command line: what it says, and one sentence for what is wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.support.running import Chorus


@pytest.fixture
def truth(chorus: Chorus, tmp_path: Path) -> Chorus:
    """`chorus truth` on the serial executor."""
    return partial(chorus, "truth", tmp_path / "in", "--out", tmp_path / "out", "--executor", "serial")


@pytest.fixture(autouse=True)
def drawings(tmp_path: Path) -> Path:
    """Three experts; the third drew one image of two and what nobody else did."""
    for expert, shift in (("x", 0), ("y", 1), ("z", 25)):
        mask = np.zeros((50, 50), np.uint8)
        mask[5 + shift : 20 + shift, 5 : 20 + shift] = 255
        (tmp_path / "in" / expert).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "in" / expert / "a.tif", mask)
        if expert != "z":
            tifffile.imwrite(tmp_path / "in" / expert / "b.tif", mask)
    return tmp_path / "in"


def test_it_says_who_agrees_who_is_missing_and_what_to_look_at(truth: Chorus, tmp_path: Path) -> None:
    result = truth("--method", "vote", "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert (content["state"], [row["name"] for row in content["rows"]]) == ("complete", ["a", "b"])
    assert [one["expert"] for one in content["summary"]["experts"]] == ["x", "y", "z"]
    for said in (
        "2 images: 2 done, 0 failed",
        "not drawn by all: b (z)",
        "warning: a: the drawing of z agrees with nobody",
        "Dice with the truth",
        f"look at  {tmp_path / 'out'}/agreement.svg",
        "chorus train IMAGES --labels",
    ):
        assert said in result.err


def test_experts_are_chosen_by_name_and_pattern(truth: Chorus, tmp_path: Path) -> None:
    result = truth("--expert", "x", "--expert", "[yY]")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["inputs"] == {"experts": ["x", "y"], "left_out": ["z"], "images": 2}


def test_failed_images_are_named_and_the_exit_code_says_so(truth: Chorus, drawings: Path) -> None:
    (drawings / "x" / "a.tif").write_bytes(b"no")
    result = truth()
    assert result.code == 1
    assert f"failed: {drawings}/x/a.tif: " in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--expert", "w"], "--expert w is none of its folders (x, y, z)"),
        (["--instances", "--method", "staple"], "STAPLE is for pixels, not for objects"),
        (["--instances", "--classes", "3"], "instances have no classes"),
        (["--classes", "1"], "--classes: Input should be greater than or equal to 2"),
        (["--method", "best"], "is not one of"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    arguments: list[str], said: str, truth: Chorus, tmp_path: Path
) -> None:
    result = truth(*arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()
