"""``chorus ensemble``: what each command prints, leaves on disk and refuses; ensembles that are taken by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from chorus.cli import app
from chorus.commands.ensembles.options import NewEnsembleOptions, member_options
from chorus.console import options
from chorus.pipeline.ensembles import builtin as builtin_names
from chorus.pipeline.ensembles.builtin import builtin_ensembles
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.preprocessing.normalisation import MeanStd, Normalisation, Percentile, Unchanged
from tests.support.making import LightNetwork, pixels, scripted, write_image, write_light_ensemble
from tests.support.paths import ROOT
from tests.support.running import Chorus, Result

NEW = [
    "--name", "light", "--class", "background", "--class", "nucleus=#123456", "--channel", "dna", "--tile", "64",
    "--pixel-size", "0.65", "--activation", "softmax", "--normalisation", "percentile:1,99.8", "--scale", "dtype",
]  # fmt: skip
ABOUT = {
    "description": "Nuclei in fluorescence",
    "intended_use": "Cultured cells",
    "licence": "CC-BY-4.0",
    "data": [{"name": "BBBC039", "images": 100, "licence": "CC0-1.0"}],
    "training": {"images": 80, "objects": 4000, "folds": [{"dice": 0.91}, {"dice": 0.93}]},
    "scores": {"BBBC039 test": {"dice": 0.95, "AP@0.5": 0.9}},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for seed in range(3):
        scripted(LightNetwork(seed, 4), folder / f"net-{seed}.pt")
    return folder


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    return write_light_ensemble(tmp_path / "light", members=2, width=4, about=ABOUT)


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of built-in ensembles, with one called `light`; away from it, so that its name is no path."""
    monkeypatch.setattr(builtin_names, "BUILTIN", tmp_path / "builtin")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_light_ensemble(tmp_path / "builtin/light", members=2, width=4, about=ABOUT)
    return tmp_path / "builtin"


def refused(result: Result, *said: str) -> None:
    assert result.code == 2, result
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    for text in said:
        assert text in result.err, result.err


def test_one_command_makes_an_ensemble_of_a_folder_and_it_predicts(
    chorus: Chorus, weights: Path, tmp_path: Path
) -> None:
    made = chorus("ensemble", "add", tmp_path / "e", weights, *NEW)
    assert made.code == 0, made.err
    assert "3 members" in made.out
    read = read_ensemble(str(tmp_path / "e"))
    assert read.hash in made.out.replace("\n", "")
    entry = read.spec.input
    assert (entry.channels, entry.pixel_size_um, entry.scale) == (["dna"], 0.65, "dtype")
    assert entry.normalisation == Percentile(low=1, high=99.8)
    assert [(c.name, c.color) for c in read.spec.classes] == [("background", None), ("nucleus", "#123456")]
    checked = chorus("ensemble", "check", tmp_path / "e")
    assert checked.code == 0, checked.err
    assert "all members load and answer" in checked.out
    image = write_image(tmp_path / "a.ome.zarr", pixels((70, 80)))
    fixed = ["--executor", "serial", "--region", "64", "--chunk", "32", "--no-report", "--augment", "none"]
    run = chorus("predict", image, "-e", tmp_path / "e", "-o", tmp_path / "out", *fixed)
    assert run.code == 0, run.err
    assert read.hash in (tmp_path / "out/run.json").read_text()


def test_add_and_remove_speak_json(chorus: Chorus, weights: Path, tmp_path: Path) -> None:
    made = json.loads(chorus("ensemble", "add", tmp_path / "e", weights, *NEW, "--json").out)
    assert made["added"] == ["net-0.pt", "net-1.pt", "net-2.pt"]
    left = json.loads(chorus("ensemble", "remove", tmp_path / "e", 0, "net-2", "--delete", "--json").out)
    assert left["removed"] == ["net-0.pt", "net-2.pt"]
    assert [member["weights"] for member in left["members"]] == ["net-1.pt"]
    assert left["hash"] == read_ensemble(str(tmp_path / "e")).hash != made["hash"]
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["ensemble.yaml", "net-1.pt"]


def test_refusals_are_one_sentence_and_leave_nothing(chorus: Chorus, weights: Path, tmp_path: Path) -> None:
    e, file = tmp_path / "e", weights / "net-0.pt"
    (tmp_path / "words.txt").write_text("words")
    refused(chorus("ensemble", "add", e, file), "--class", "--channel", "--activation")
    refused(chorus("ensemble", "add", e, tmp_path / "nowhere.pt"), "nowhere.pt: not found")
    refused(chorus("ensemble", "add", e, tmp_path / "words.txt"), "words.txt: no file of a network")
    refused(chorus("ensemble", "add", e, file, *NEW, "--tile", 8), "field tile")
    refused(chorus("ensemble", "add", e, file, *NEW, "--class", "third"), "gives (2, 64, 64)", "nucleus, third")
    refused(chorus("ensemble", "add", e, file, *NEW, "--class", "x=green"), "--class x=green", "#rrggbb")
    refused(chorus("ensemble", "add", e, file, *NEW, "--flows"), "gives (2, 64, 64) for a tile, not (4, 64, 64)")
    refused(chorus("ensemble", "add", e, file, *NEW, "--channel", "er"), "cannot take 2 channels")
    two = ["--normalisation", "mean_std:1,2/3,4"]
    refused(chorus("ensemble", "add", e, file, *NEW, *two), "--normalisation", "2 means and stds for 1 channels (dna)")
    (tmp_path / "taken").write_bytes(b"")
    refused(chorus("ensemble", "add", tmp_path / "taken/e", file, *NEW), "copying weights to", "taken/e")
    refused(chorus("ensemble", "remove", e, 0), "ensemble.yaml: not found")
    assert not e.exists()


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("percentile:1,99.8", Percentile(low=1, high=99.8)),
        ("mean_std:0.5/2", MeanStd(mean=(0.5,), std=(2,))),
        ("mean_std:1,2/3,4", MeanStd(mean=(1, 2), std=(3, 4))),
        ("mean_std:image", MeanStd(per="image")),
        ("none", Unchanged(kind="none")),
        ("member", Unchanged(kind="member")),
    ],
)
def test_a_normalisation_is_written_in_a_word(text: str, means: Normalisation) -> None:
    assert NewEnsembleOptions(normalisation=text).wanted().normalisation == means


@pytest.mark.parametrize(
    "text", ["percentile", "percentile:5", "percentile:9,1", "mean_std:1", "mean_std:1/0", "zscore"]
)
def test_another_normalisation_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(RefusedError, match=r"--normalisation .*percentile:1,99\.8"):
        NewEnsembleOptions(normalisation=text).wanted()


def test_options_of_an_architecture_are_read_as_yaml() -> None:
    given = ["decoder_channels=[64, 32]", "decoder_use_norm=false", "decoder_attention_type=scse"]
    assert member_options(given) == {
        "decoder_channels": [64, 32],
        "decoder_use_norm": False,
        "decoder_attention_type": "scse",
    }
    with pytest.raises(RefusedError, match="--option depth"):
        member_options(["depth"])


def test_show_says_what_an_ensemble_is(chorus: Chorus, ensemble: Path) -> None:
    result = chorus("ensemble", "show", ensemble.parent, "--all")
    assert result.code == 0, result.err
    flat = " ".join(result.out.split())
    read = read_ensemble(str(ensemble))
    for text in (
        read.hash, "██ nucleus (#4daf4a)", "mean 500, std 300", "64 pixels, overlap 0.5", "2 members", "torchscript",
        "Nuclei in fluorescence", "CC-BY-4.0", "BBBC039", "80 images with 4000 objects", "fold 1 0.93", "0.95",
        str(read.spec.members[0].sha256)[:12],
    ):  # fmt: skip
        assert text in flat, (text, result.out)
    content = json.loads(chorus("ensemble", "show", ensemble, "--json").out)
    assert content["hash"] == read.hash
    assert content["about"]["scores"] == ABOUT["scores"]


def test_show_fits_a_screen_unless_all_is_asked_for(chorus: Chorus, ensemble: Path) -> None:
    result = chorus("ensemble", "show", ensemble)
    flat = " ".join(result.out.split())
    for text in ("2 members", "torchscript", "Nuclei in fluorescence", "CC-BY-4.0", "80 images", "--all says more"):
        assert text in flat, (text, result.out)
    assert "fold 1" not in flat
    assert "BBBC039, " not in flat


@pytest.mark.parametrize("words", [["show", "nuclei-fluo"], ["list"]], ids=" ".join)
def test_the_builtin_ensemble_fits_a_screen(words: list[str]) -> None:
    shown = CliRunner().invoke(app, ["ensemble", *words], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert 4 <= len(lines) <= 40
    assert not any("…" in line for line in lines)


def test_the_list_of_ensembles_says_what_their_files_say(chorus: Chorus) -> None:
    """It reads them without the networks' classes."""
    shown = " ".join(chorus("ensemble", "list").out.split())
    for name, url in builtin_ensembles().items():
        read = read_ensemble(url)
        about = read.spec.about
        assert f"{name} {len(read.spec.members)} {about.description}" in shown
        assert f"{next(iter(about.scores))}: dice" in shown


def test_show_does_not_need_the_weights(chorus: Chorus, ensemble: Path) -> None:
    (ensemble.parent / "member-0.pt").unlink()
    assert chorus("ensemble", "show", ensemble).code == 0
    refused(chorus("ensemble", "check", ensemble), "member-0.pt: not found")


def test_an_ensemble_of_a_newer_chorus_asks_for_an_update(chorus: Chorus, ensemble: Path) -> None:
    ensemble.write_text(yaml.safe_dump({"format": "chorus-ensemble/99", "new": True}))
    for command in (["show", ensemble], ["check", ensemble], ["remove", ensemble, "0"]):
        refused(chorus("ensemble", *command), "written by a newer Chorus", "update")


def test_the_schema_is_printed_as_in_docs(chorus: Chorus) -> None:
    docs = ROOT / "docs/ensemble.schema.json"
    assert chorus("ensemble", "schema").out == docs.read_text()


def test_a_builtin_ensemble_is_taken_by_its_name(chorus: Chorus, builtin: Path, tmp_path: Path) -> None:
    listed = json.loads(chorus("ensemble", "list", "--json").out)
    assert [(one["name"], one["description"]) for one in listed] == [("light", ABOUT["description"])]
    assert listed[0]["scores"] == ABOUT["scores"]
    assert "light" in chorus("ensemble", "list").out
    expected = read_ensemble(str(builtin / "light")).hash
    for command in ("show", "check"):
        assert json.loads(chorus("ensemble", command, "light", "--json").out)["hash"] == expected
    image = write_image(tmp_path / "a.ome.zarr", pixels((70, 80)))
    fixed = ["-e", "light", "-o", tmp_path / "out", "--executor", "serial", "--region", "64", "--chunk", "32"]
    assert json.loads(chorus("plan", image, *fixed, "--json").out)["cost"]["images"] == 1
    run = chorus("predict", image, *fixed, "--no-report", "--augment", "none")
    assert run.code == 0, run.err
    assert expected in (tmp_path / "out/run.json").read_text()


def test_a_folder_goes_before_a_builtin_ensemble_of_its_name(chorus: Chorus, builtin: Path) -> None:
    shutil.copytree(builtin / "light", "light")
    path = Path("light/ensemble.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"name": "mine"}))
    assert json.loads(chorus("ensemble", "show", "light", "--json").out)["name"] == "mine"


def test_an_unknown_name_is_refused_with_those_there_are(chorus: Chorus, builtin: Path, tmp_path: Path) -> None:
    refused(chorus("ensemble", "show", "lihgt"), "ensemble lihgt", "(light)")
    refused(chorus("predict", tmp_path, "-e", "lihgt", "-o", tmp_path / "out"), "ensemble lihgt", "(light)")


def test_predict_takes_trust_code_and_flows(builtin: Path, tmp_path: Path) -> None:
    request = options.RequestOptions(
        ["a.zarr"], ensemble="light", out="out", trust_code=True, save="flows,probability"
    ).request()
    assert request.run.trust_code
    assert request.settings.save == ["probability", "flows"]


@pytest.mark.parametrize("command", ["show", "check", "add", "remove", "list", "schema"])
def test_help_has_an_example(command: str, chorus: Chorus) -> None:
    result = chorus("ensemble", command, "--help")
    assert result.code == 0
    assert f"chorus ensemble {command}" in result.out.split("Usage", 1)[1].split("\n", 1)[1]
