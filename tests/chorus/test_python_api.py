"""The names of `chorus`: load, segment, predict, results; and that help shows them."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import chorus
from tests.support.making import pixels, write_image, write_light_ensemble


def test_an_array_and_a_data_set_get_the_same_from_one_ensemble(tmp_path: Path) -> None:
    ensemble = chorus.load(write_light_ensemble(tmp_path / "e", members=2, width=4))
    data = pixels((90, 100))
    write_image(tmp_path / "in/a.zarr", data)
    results = chorus.predict(
        tmp_path / "in", ensemble, tmp_path / "out", objects="watershed", executor="serial", device="cpu"
    )
    assert results.state == "complete"
    assert (tmp_path / "out/report/index.html").exists()
    result = ensemble.segment(data, objects="watershed", progress=False)
    image = results.image("a.ome.zarr")
    assert np.array_equal(image.labels, result.labels)
    assert np.array_equal(image.probability, result.probability)
    assert image.objects is not None
    assert result.objects is not None
    assert np.array_equal(image.objects["nucleus"], result.objects["nucleus"])
    again = chorus.open_results(tmp_path / "out")
    assert again.scores.equals(results.scores)


def test_a_bar_is_shown_unless_it_is_told_to_be_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ensemble = str(write_light_ensemble(tmp_path / "e", members=1, width=4))
    image = str(write_image(tmp_path / "a.zarr", pixels((40, 40))))
    chorus.predict(image, ensemble, tmp_path / "silent", executor="serial", report=False, progress=False)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "silent/report").exists()
    chorus.predict([image], ensemble, tmp_path / "shown", executor="serial", report=False)
    assert "1/1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": 7}, "give at least 32 pixels for tiles of planes"),
        ({"tiles": 64}, "unexpected keyword argument 'tiles'; `chorus predict --help` lists all options"),
        ({"ensemble": "nuclei"}, "ensemble nuclei: neither a folder here nor an ensemble that Chorus brings"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options: dict[str, object], reason: str, tmp_path: Path) -> None:
    known: dict[str, object] = {"ensemble": "nuclei-fluo"}
    with pytest.raises(chorus.ChorusError, match=reason):
        chorus.predict("nothing.zarr", out=tmp_path / "out", **known | options)  # type: ignore[arg-type]


def test_what_load_does_not_know_is_one_sentence() -> None:
    with pytest.raises(chorus.ChorusError, match=r"--overlap: Input should be less than 1"):
        chorus.load("nuclei-fluo", overlap=1.0)
    with pytest.raises(chorus.ChorusError, match="ensemble nuclei: neither a folder here nor"):
        chorus.load("nuclei")


def test_help_shows_every_name_with_an_example() -> None:
    text = pydoc.plain(pydoc.render_doc(chorus))
    for name in chorus.__all__:
        assert name.replace("__version__", "VERSION") in text, name
    assert 'ensemble = chorus.load("nuclei-fluo")' in text
    assert "segment(self, array" in text
    for function in (chorus.load, chorus.predict, chorus.open_results, chorus.LoadedEnsemble.segment):
        assert ">>> " in (function.__doc__ or ""), function


def test_the_version_is_that_of_the_distribution() -> None:
    assert chorus.__version__ == version("chorus-bioimage")
    with pytest.raises(AttributeError, match="module 'chorus' has no attribute 'nothing'"):
        _ = chorus.nothing


def test_importing_chorus_imports_nothing_else() -> None:
    code = "import chorus, sys; print([m for m in sys.modules if m.startswith('chorus.') or m in ('torch', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_segmenting_an_array_starts_no_ray(tmp_path: Path) -> None:
    path = write_light_ensemble(tmp_path / "e", members=1, width=4)
    code = (
        "import chorus, sys, numpy as np\n"
        f"chorus.load({str(path)!r}).segment(np.ones((30, 30), 'uint8'), progress=False)\n"
        "ray = sys.modules.get('ray')\n"
        "print(ray is None or not ray.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
