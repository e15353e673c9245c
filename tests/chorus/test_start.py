"""How little is imported by commands that need little: people wait for what they asked for alone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

HEAVY = {
    "matplotlib", "numba", "ome_zarr", "pandas", "ray", "scipy", "skimage", "sklearn", "torch", "torchvision", "zarr",
    "SimpleITK", "segmentation_models_pytorch", "tifffile", "imagecodecs", "fastapi", "aiohttp",
}  # fmt: skip
CODE = """
import json, sys
sys.argv = ["chorus", *sys.argv[1:]]
from chorus.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def imported(code: str, *words: str) -> tuple[str, set[str]]:
    """What a program prints, and the packages that it has imported at its end."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    return "\n".join(said), set(json.loads(last))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    rows = [("a", "done", 0.1, 0.9), ("b", "done", 0.2, 0.8), ("c", "failed", None, None)]
    frame = pd.DataFrame(rows, columns=["name", "status", "uncertainty", "pairwise_dice"])
    frame.assign(epistemic=frame["uncertainty"] / 2, message="").to_parquet(out / "scores.parquet")
    return out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "predict"),
        (["--version"], version("chorus-bioimage")),
        (["ensemble", "--help"], "sentinel"),
        (["ensemble", "list"], "nuclei-fluo"),
        (["predict", "--help"], "--ensemble"),
    ],
    ids=" ".join,
)
def test_what_is_only_looked_up_imports_nothing_heavy(words: list[str], said: str) -> None:
    out, packages = imported(CODE, *words)
    assert said in out
    assert packages & HEAVY == set()
    assert "pyarrow" not in packages


@pytest.mark.parametrize("more", [[], ["--above", "0.15"], ["--json"]], ids=" ".join)
def test_rank_imports_arrow_and_nothing_heavier(results: Path, more: list[str]) -> None:
    out, packages = imported(CODE, "rank", str(results), *more)
    assert "uncertainty" in out
    assert packages & HEAVY == set()


def test_import_chorus_imports_nothing_else() -> None:
    code = "import chorus, json, sys; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    _, packages = imported(code)
    assert packages & (HEAVY | {"numpy", "pydantic", "typer", "rich", "pyarrow", "yaml"}) == set()


def test_the_version_is_that_of_the_package() -> None:
    import chorus

    assert chorus.__version__ == version("chorus-bioimage")
    assert "__version__" in dir(chorus)
