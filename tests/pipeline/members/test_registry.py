"""Kinds of members: each is declared once, and another package can bring one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr

from chorus.pipeline.ensembles.spec import EnsembleSpec
from chorus.pipeline.members.registry import Registry, registry
from tests.support.making import pixels, write_image
from tests.support.paths import ROOT

PLUG_IN = ROOT / "tests/support/plugin"
BUILT_IN = [
    "bioimageio",
    "cellpose",
    "deepflash2",
    "exported",
    "nnunet",
    "onnx",
    "python",
    "smp",
    "stardist",
    "torchscript",
    "unet",
]
RUN = """
import sys
from chorus.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["chorus", *line.split()]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(ended.code)
"""


def install(folder: Path, name: str, source: str, module: str) -> Path:
    """A package `module` in `folder` that brings a kind called `name`."""
    (folder / f"{module}.py").write_text(source)
    facts = folder / f"{module}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[chorus.members]\n{name} = {module}:KIND\n")
    return folder


def read_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of a process that has the packages in `folder` as well."""
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return registry.__wrapped__()


def test_the_kinds_of_chorus_are_those_of_the_schema() -> None:
    kinds = registry().kinds
    assert list(kinds) == BUILT_IN
    mapping = EnsembleSpec.model_json_schema()["properties"]["members"]["items"]["discriminator"]["mapping"]
    assert mapping == {name: f"#/$defs/{kind.entry.__name__}" for name, kind in kinds.items()}


def test_a_plug_in_is_a_kind_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_with(PLUG_IN, monkeypatch)
    assert list(found.kinds) == sorted([*BUILT_IN, "threshold"])
    assert found.distributions == {"threshold": ("chorus-threshold", "0.1")}
    assert found.failures == ()


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("broken", "raise OSError('no such library')", "no such library"),
        ("broken", "KIND = 3", "is no chorus.pipeline.members.kind.MemberKind"),
        ("smp", "from chorus.pipeline.members.kinds.smp import KIND", "there is a kind smp already"),
        ("other", "from chorus.pipeline.members.kinds.smp import KIND", "its kind is smp, its entry point other"),
    ],
)
def test_a_plug_in_that_fails_is_named_and_stops_no_other(
    name: str, source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"plug_in_{abs(hash((name, source)))}"
    found = read_with(install(tmp_path, name, source, module), monkeypatch)
    assert list(found.kinds) == BUILT_IN
    assert len(found.failures) == 1
    assert said in found.failures[0]
    assert module in found.failures[0]
    assert found.failures[0] in found.unknown


def test_an_ensemble_of_a_plug_in_is_made_checked_and_predicts(tmp_path: Path) -> None:
    """Chorus itself is not changed: the package is found on the path of a new process."""
    for index, at in enumerate((400, 600)):
        (tmp_path / f"m{index}.threshold").write_text(json.dumps({"at": at}))
    data = pixels((80, 96), seed=3)
    write_image(tmp_path / "a.ome.zarr", data, pixel_size=0.5)
    lines = [
        f"ensemble add {tmp_path}/e {tmp_path}/m0.threshold {tmp_path}/m1.threshold --pixel-size 0.5",
        f"ensemble check {tmp_path}/e",
        f"predict {tmp_path}/a.ome.zarr --ensemble {tmp_path}/e --out {tmp_path}/out --executor serial --strict",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PLUG_IN), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env=environment,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "all members load and answer" in done.stdout
    members = yaml.safe_load((tmp_path / "e/ensemble.yaml").read_text())["members"]
    assert [(entry["kind"], entry["weights"]) for entry in members] == [
        ("threshold", "m0.threshold"),
        ("threshold", "m1.threshold"),
    ]
    labels = zarr.open_array(str(tmp_path / "out/images/a.ome.zarr/labels/semantic/s0"), mode="r")[:]
    above = 1 / (1 + np.exp(-0.02 * (data.astype(np.float64)[None] - np.array([400, 600])[:, None, None])))
    expected = above.mean(axis=0) > 0.5
    clear = np.abs(above.mean(axis=0) - 0.5) > 1e-3
    np.testing.assert_array_equal(np.squeeze(labels)[clear], expected[clear])
    assert 0 < expected.mean() < 1
    versions = json.loads((tmp_path / "out/run.json").read_text())["versions"]
    assert versions["chorus-threshold"] == "0.1"
