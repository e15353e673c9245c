"""``outputs`` of ``ensemble.yaml``: what is declared, what it means, and what is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chorus.pipeline.core.outputs import (
    AFFINITIES,
    BOUNDARY,
    CLASSES,
    DISTANCE,
    FLOWS,
    RAYS,
    ROLES,
    VALUES,
    Foreground,
    Outputs,
    rays_of,
)
from chorus.pipeline.ensembles.editing import written
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.ensembles.spec import EnsembleSpec
from chorus.pipeline.errors import RefusedError

MEMBER = {"kind": "torchscript", "weights": "m.pt", "sha256": "0" * 64}
CONTENT: dict[str, Any] = {
    "format": "chorus-ensemble/2",
    "name": "test",
    "classes": [{"name": "background"}, {"name": "cell"}],
    "input": {"channels": ["dna"], "normalisation": {"kind": "mean_std", "mean": [0.0], "std": [1.0]}},
    "tile": 64,
    "members": [MEMBER],
}


def spec(*outputs: dict[str, Any], **changes: Any) -> EnsembleSpec:
    return EnsembleSpec.model_validate(CONTENT | ({"outputs": list(outputs)} if outputs else {}) | changes)


def answers(*outputs: dict[str, Any], **changes: Any) -> Outputs:
    return spec(*outputs, **changes).answers


def test_flows_true_is_short_for_classes_and_flows_and_keeps_the_hash(tmp_path: Path) -> None:
    short, long = spec(flows=True), spec({"role": "classes"}, {"role": "flows"})
    assert short.answers == long.answers
    assert short.answers.roles == (CLASSES, FLOWS)
    assert spec(flows=False).answers == spec().answers
    hashes = []
    for given in ({"flows": True}, {"outputs": [{"role": "classes"}, {"role": "flows"}]}, {}, {"flows": False}):
        (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(CONTENT | given))
        hashes.append(read_ensemble(str(tmp_path)).hash)
    # As before there were other outputs.
    assert hashes[0] == hashes[1] == "bbab00e5342c66b6167eac157f81e443a2033615606114dd298456536c10e56f"
    assert hashes[2] == hashes[3] == "d426df0ac5763818ec5e57f2f92b52576cec3060188c08907e2d2954bb5f7caf"
    assert written(short)["outputs"] == [{"role": "classes"}, {"role": "flows"}]


def test_every_role_can_be_declared_and_takes_its_channels_in_the_order_of_the_list() -> None:
    given = answers(
        {"role": "boundary"},
        {"role": "rays", "channels": 32},
        {"role": "classes"},
        {"role": "flows"},
        {"role": "distance", "names": ["centre", "boundary"], "unit": "px", "range": [0, 30]},
        {"role": "affinities", "offsets": [[-1, 0], [0, -1], [-3, 0], [0, -3]]},
        {"role": "values", "names": ["actin"], "range": [0, 4000]},
    )
    assert set(given.roles) == set(ROLES.values())
    assert given.channels == 1 + 32 + 2 + 2 + 2 + 4 + 1
    assert given.slices(44) == {
        BOUNDARY: slice(0, 1), RAYS: slice(1, 33), CLASSES: slice(33, 35), FLOWS: slice(35, 37),
        DISTANCE: slice(37, 39), AFFINITIES: slice(39, 43), VALUES: slice(43, 44),
    }  # fmt: skip
    # A member may leave out the background.
    assert given.slices(43)[CLASSES] == slice(33, 34)
    assert given[RAYS] == rays_of(32, (0.0, 64.0))
    assert given[AFFINITIES].names == ("-1,0", "0,-1", "-3,0", "0,-3")
    assert (given[DISTANCE].unit, given[DISTANCE].extent) == ("px", (0, 30))
    assert [output.activation for output in given] == ["sigmoid", "none", "softmax", "none", "none", "sigmoid", "none"]


DISTANCES = {"role": "distance", "names": ["centre", "boundary"]}


@pytest.mark.parametrize(
    ("outputs", "foreground"),
    [
        ([{"role": "boundary"}], Foreground(BOUNDARY, (0,), "complement")),
        (
            [{"role": "affinities", "offsets": [[-3, 0], [-1, 0], [0, -1], [0, -3]]}],
            Foreground(AFFINITIES, (1, 2), "same"),
        ),
        (
            [DISTANCES | {"foreground": {"channel": "boundary", "below": 0.5}}, {"role": "boundary"}],
            Foreground(DISTANCE, (1,), "below", 0.5),
        ),
        (
            [DISTANCES | {"foreground": {"channel": "centre", "above": 2}}, {"role": "rays", "channels": 8}],
            Foreground(DISTANCE, (0,), "above", 2.0),
        ),
        ([DISTANCES, {"role": "boundary"}], Foreground(BOUNDARY, (0,), "complement")),
    ],
)
def test_without_classes_the_foreground_follows_by_a_declared_rule(
    outputs: list[dict[str, Any]], foreground: Foreground
) -> None:
    given = answers(*outputs)
    assert given[CLASSES].foreground == foreground
    assert given[CLASSES].names == ("background", "cell")
    assert CLASSES not in given.roles
    assert given.channels == sum(len(given[role].names) for role in given.roles)


CLASSES_ = {"role": "classes"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"outputs": [{"role": "rays", "channels": 8}]}, "no foreground follows from them"),
        ({"outputs": [DISTANCES]}, "no foreground follows from them"),
        ({"outputs": [{"role": "boundary"}], "classes": [{"name": n} for n in "abc"]}, "one class beside"),
        ({"outputs": [CLASSES_, CLASSES_]}, "each role at most once"),
        ({"outputs": [CLASSES_, {"role": "flows"}], "flows": True}, "leave flows out"),
        ({"flows": "yes"}, "give true or false"),
        ({"outputs": [CLASSES_, {"role": "rays"}]}, "give channels"),
        ({"outputs": [CLASSES_, {"role": "rays", "directions": [[1, 0], [0, 2], [0, 1]]}]}, "unit vectors"),
        ({"outputs": [CLASSES_, {"role": "rays", "directions": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}]}, "2 components"),
        ({"outputs": [CLASSES_, {"role": "affinities", "offsets": [[1, 0, 0]]}]}, "2 components"),
        ({"outputs": [CLASSES_, {"role": "affinities", "offsets": [[0, 0]]}]}, "none that is zero"),
        ({"outputs": [CLASSES_, {"role": "values", "names": ["a"], "range": [1, 0]}]}, "least value"),
        ({"outputs": [CLASSES_, {"role": "values", "names": ["a"], "range": [0, 1], "vector": True}]}, "2 components"),
        ({"outputs": [CLASSES_, {"role": "distance", "names": ["a", "a"]}]}, "the same name"),
        ({"outputs": [CLASSES_, {"role": "distance", "names": ["../a"]}]}, "plain name"),
        ({"outputs": [CLASSES_, {"role": "heat"}]}, "heat"),
        ({"outputs": [CLASSES_, {"role": "rays", "channels": 7}]}, "augmentation hflip cannot be used with rays"),
        ({"answer": {"grid": 3}}, "a tile of 64 less 0 on both sides is no multiple of grid 3"),
        ({"answer": {"grid": 2, "crop": 3}}, "crop 3 is not a multiple of grid 2"),
        ({"answer": {"crop": [1, 2, 3]}}, "one for each"),
        (
            {"answer": {"crop": [4, 8]}, "augmentations": ["identity", "rot90"]},
            "rot90 exchanges y and x, which needs the same grid and crop",
        ),
        (
            {
                "outputs": [CLASSES_, {"role": "affinities", "offsets": [[-1, 0]]}],
                "answer": {"grid": 2},
            },
            "affinities are of pairs of pixels",
        ),
        (
            {
                "outputs": [CLASSES_, {"role": "affinities", "offsets": [[-1, 0]]}],
                "augmentations": ["identity", "rot90"],
            },
            "augmentation rot90 cannot be used with affinities",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(content: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(CONTENT | content))
    with pytest.raises(RefusedError) as refused:
        read_ensemble(str(tmp_path))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_shape_of_answers_is_part_of_what_defines_an_ensemble_and_rays_align_tiles(tmp_path: Path) -> None:
    hashes = set()
    for given in ({}, {"answer": {"grid": 1}}, {"answer": {"grid": 2}}, {"answer": {"crop": 8}}):
        (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(CONTENT | given))
        hashes.add(read_ensemble(str(tmp_path)).hash)
    assert len(hashes) == 3
    rays = spec(CLASSES_, {"role": "rays", "channels": 32, "grid": [2, 4]}, overlap=0.3)
    grid = rays.answer_shape.tiles((300, 300), rays.tile, 0.3)
    assert (grid.y.step % 2, grid.x.step % 4) == (0, 0)
    assert spec(overlap=0.3).answer_shape.tiles((300, 300), 64, 0.3).y.step == 45
