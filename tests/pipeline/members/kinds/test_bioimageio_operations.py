"""The table of BioImage.IO's operations in docs/members.md, against the operations that the library declares."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

pytest.importorskip("bioimageio.spec")

from bioimageio.spec.model import v0_5

from chorus.pipeline.core.outputs import CLASSES, FLOWS, RAYS
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.kinds.bioimageio.processing import postprocessing, preparation, raw_output

DOCS = Path(__file__).parents[4] / "docs" / "members.md"
BEFORE, AFTER = (
    sorted({one.model_fields["id"].annotation.__args__[0] for one in get_args(get_args(union)[0])})
    for union in (v0_5.PreprocessingDescr, v0_5.PostprocessingDescr)
)
JOINTLY = {"axes": ["channel", "y", "x"]}
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "binarize": [{"threshold": 0.5}],
    "cellpose_flow_dynamics": [{"cellprob_threshold": 0.0, "flow_threshold": 0.4, "do_3D": False}],
    "clip": [{"min": 0.0, "max": 1.0}],
    "custom": [{}],
    "ensure_dtype": [{"dtype": "float32"}],
    "fixed_zero_mean_unit_variance": [{"mean": 1.0, "std": 2.0}],
    "scale_linear": [{"gain": 2.0}],
    "scale_mean_variance": [{"reference_tensor": "raw"} | JOINTLY],
    "scale_range": [JOINTLY, {"axes": ["batch", "channel", "y", "x"]}],
    "sigmoid": [{}],
    "softmax": [{"axis": "channel"}],
    "stardist_postprocessing": [
        {"prob_threshold": 0.5, "nms_threshold": 0.4, "n_rays": 32, "grid": [1, 1], "b": 2},
    ],
    "zero_mean_unit_variance": [JOINTLY, {"axes": ["batch", "channel", "y", "x"]}],
}


def table() -> dict[str, tuple[str, str]]:
    section = DOCS.read_text().split("\n## bioimageio\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|$", section, re.MULTILINE)
    return {name: (before.strip(), after.strip()) for name, before, after in rows}


def tensor(name: str, kwargs: dict[str, Any], field: str) -> Any:
    step = SimpleNamespace(id=name, kwargs=SimpleNamespace(**defaults(name) | kwargs))
    axes = [SimpleNamespace(type="channel", channel_names=["a", "b"])]
    return SimpleNamespace(id="raw", axes=axes, **{field: [step]})


def defaults(name: str) -> dict[str, Any]:
    """Values of an operation's fields that a package may leave out."""
    known = {
        "clip": {"min_percentile": None, "max_percentile": None},
        "scale_linear": {"offset": 0.0},
        "scale_range": {"min_percentile": 0.0, "max_percentile": 100.0, "reference_tensor": None},
    }
    return known.get(name, {})


def test_every_operation_of_the_format_has_a_row_and_no_other() -> None:
    rows = table()
    assert sorted(rows) == sorted({*BEFORE, *AFTER})
    assert sorted(name for name, (before, _) in rows.items() if before) == BEFORE
    assert sorted(name for name, (_, after) in rows.items() if after) == AFTER
    assert SAMPLES.keys() == rows.keys()


@pytest.mark.parametrize("name", BEFORE)
def test_what_the_table_says_is_done_before_the_network_is(name: str) -> None:
    assert table()[name][0].startswith("done")
    for kwargs in SAMPLES[name]:
        (count, steps), *more = preparation("package", [tensor(name, kwargs, "preprocessing")]).tensors
        assert (count, len(steps), more) == (2, 1, [])


@pytest.mark.parametrize("name", AFTER)
def test_what_the_table_says_of_operations_after_the_network_is_so(name: str) -> None:
    said = table()[name][1]
    for kwargs in SAMPLES[name]:
        output = tensor(name, kwargs, "postprocessing")
        taken = raw_output(output)
        if said.startswith("done"):
            assert taken is None
            postprocessing("package", output, (CLASSES,))
            continue
        with pytest.raises(RefusedError, match=f"^package: output raw: {name} "):
            postprocessing("package", output, (CLASSES,))
        if said.startswith("refused"):
            assert taken is None
        else:
            assert taken == (FLOWS if "flows" in said else RAYS)
            assert said.startswith(f"taken as {taken.name}")
            postprocessing("package", output, (CLASSES, taken))
