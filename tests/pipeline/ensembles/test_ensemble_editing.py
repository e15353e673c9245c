"""Ensembles made and edited from files of weights: what is recognised, what is refused, what is left on disk."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from chorus.pipeline.ensembles.creation import Wanted
from chorus.pipeline.ensembles.editing import Edited, add, remove
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.ensembles.entries import ClassEntry
from chorus.pipeline.ensembles.schema import json_schema
from chorus.pipeline.ensembles.spec import FORMAT
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.members.detection import Network, describe, members_in, recognise
from chorus.pipeline.preprocessing.normalisation import MeanStd
from tests.support.cellpose_networks import residual_state
from tests.support.making import ARCHITECTURE, OPTIONS, LightNetwork, network, write_ensemble
from tests.support.paths import ROOT

SMP = Network(ARCHITECTURE["architecture"], ARCHITECTURE["encoder"], OPTIONS)
CLASSES = (ClassEntry(name="background"), ClassEntry(name="nucleus", color="#112233"))
ALL = Wanted(
    name="made",
    classes=CLASSES,
    channels=("dna",),
    tile=64,
    activation="softmax",
    normalisation=MeanStd(kind="mean_std", mean=(500.0,), std=(300.0,)),
)
# The background and the rest are in the file of deepflash2; its tiles of 512 are slow to try.
SMALL = Wanted(tile=64)


def write_deepflash2(
    path: Path, seed: int, *, channels: int = 1, classes: int = 2, stats: Any = ([0.2], [0.1])
) -> Path:
    """A checkpoint as ``deepflash2.models.save_smp_model`` writes it."""
    content = {
        "model": network(seed, channels=channels, outputs=classes).state_dict(),
        "arch": ARCHITECTURE["architecture"],
        "stats": stats,
        "encoder_name": ARCHITECTURE["encoder"],
        "encoder_weights": "imagenet",
        "in_channels": channels,
        "classes": classes,
        **OPTIONS,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def write_script(path: Path, seed: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and yet what users have
        torch.jit.save(torch.jit.script(LightNetwork(seed, 4)), path)
    return path


def write_state(path: Path, seed: int, *, channels: int = 1, outputs: int = 2) -> Path:
    state = network(seed, channels=channels, outputs=outputs).state_dict()
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds; tests do not change them."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in range(2):
        write_deepflash2(folder / f"deepflash2/model-{seed}.pth", seed)
    write_script(folder / "script.pt", 0)
    write_script(folder / "other.pt", 1)
    write_state(folder / "plain.pth", 3)
    write_state(folder / "plain.safetensors", 4)
    write_state(folder / "two-channels.pth", 5, channels=2)
    write_state(folder / "three-outputs.pth", 6, outputs=3)
    torch.save({"W2": torch.zeros(1, 1, 8, 8), "encoder.patch_embed.proj.weight": torch.zeros(1)}, folder / "cpsam")
    torch.save(residual_state(), folder / "cyto3")
    torch.save({"module.W2": torch.zeros(1), "module.encoder.patch_embed.proj.weight": torch.zeros(1)}, folder / "dp")
    torch.save(network(0).state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "network.onnx").write_bytes(b"onnx")
    return folder


def refused(call: Callable[[], object], *said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for text in said:
        assert text in message, message


def names(edited: Edited) -> list[str]:
    return [member.weights for member in edited.ensemble.spec.members]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("deepflash2/model-0.pth", "deepflash2"),
        ("script.pt", "torchscript"),
        ("plain.pth", "smp"),
        ("old.pth", "smp"),
        ("plain.safetensors", "smp"),
        ("cpsam", "cellpose"),
        ("cyto3", "cellpose"),
        ("dp", "cellpose"),
        ("network.onnx", "onnx"),
        ("network.pt2", "exported"),
        ("package.zip", "bioimageio"),
        ("package/rdf.yaml", "bioimageio"),
    ],
)
def test_a_kind_is_recognised_by_the_file(file: str, kind: str, weights: Path) -> None:
    assert recognise(str(weights / file)) == kind


def test_an_inference_ensemble_of_deepflash2_is_told_from_other_torchscript(tmp_path: Path) -> None:
    class InferenceEnsemble(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.models = torch.nn.ModuleList([torch.nn.Conv2d(1, 2, 1)])
            self.norm = torch.nn.Identity()
            self.num_classes, self.tile_shape = 2, (64, 64)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            for model in self.models:
                image = model(self.norm(image)) * self.num_classes * self.tile_shape[0]
            return image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(InferenceEnsemble()), tmp_path / "ensemble.pt")
    assert recognise(str(tmp_path / "ensemble.pt")) == "deepflash2"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02K\x01.", bytes(1000), b"PK\x05\x06" + bytes(18)])
def test_an_unknown_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "thing.bin").write_bytes(data)
    refused(lambda: describe(str(tmp_path / "thing.bin")), "thing.bin", "no file of a network", "--kind")


def test_a_pickle_is_looked_at_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"layer.weight": torch.zeros(1), "trap": Trap()}, tmp_path / "trap.pth")
    assert recognise(str(tmp_path / "trap.pth")) == "smp"
    refused(lambda: describe(str(tmp_path / "trap.pth"), network=SMP), "trap.pth", "not a plain state dict")
    assert not (tmp_path / "sprung").exists()


def test_a_folder_gives_its_weights_by_name_and_a_package_is_one(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    for name in ("b.pth", "a.pt", "notes.txt", "package/rdf.yaml", "package/weights.pt"):
        (tmp_path / name).write_bytes(b"")
    assert members_in(str(tmp_path)) == [str(tmp_path / name) for name in ("a.pt", "b.pth", "package")]
    assert members_in(str(tmp_path / "package")) == [str(tmp_path / "package")]
    (tmp_path / "empty").mkdir()
    refused(lambda: members_in(str(tmp_path / "empty")), "no weights in this folder", ".pth")
    refused(lambda: members_in(str(tmp_path / "nowhere.pth")), "nowhere.pth", "not found")


def test_a_folder_of_deepflash2_models_becomes_an_ensemble(weights: Path, tmp_path: Path) -> None:
    edited = add(str(tmp_path / "cfos"), [str(weights / "deepflash2")], SMALL)
    read = read_ensemble(str(tmp_path / "cfos"))
    assert read.hash == edited.ensemble.hash
    assert (read.spec.format, read.spec.name, read.spec.activation) == (FORMAT, "cfos", "softmax")
    assert [entry.name for entry in read.spec.classes] == ["background", "class-1"]
    assert read.spec.input.normalisation.kind == "member"
    for index, member in enumerate(read.spec.members):
        source = weights / f"deepflash2/model-{index}.pth"
        assert (member.kind, member.weights) == ("deepflash2", source.name)
        assert member.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
        assert (tmp_path / "cfos" / source.name).read_bytes() == source.read_bytes()
    # The network that it came from says the same.
    tile = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(read.load_member(1, torch.device("cpu"))(tile), network(1)(tile), atol=1e-3, rtol=0)


def test_an_ensemble_may_be_made_beside_its_weights(tmp_path: Path) -> None:
    write_deepflash2(tmp_path / "model.pth", 0)
    before = tree(tmp_path)
    edited = add(str(tmp_path), [str(tmp_path)], SMALL)
    assert names(edited) == ["model.pth"]
    assert tree(tmp_path).keys() - before.keys() == {"ensemble.yaml"}


def test_a_plain_state_dict_needs_its_architecture_and_the_rest(weights: Path, tmp_path: Path) -> None:
    url, file = str(tmp_path / "e"), str(weights / "plain.pth")
    refused(lambda: add(url, [file], ALL), "plain.pth", "--architecture and --encoder")
    # Its channels can be counted; nothing says the rest.
    refused(lambda: add(url, [file], Wanted(), network=SMP), "--class", "--activation", "--normalisation")
    refused(
        lambda: add(url, [file], Wanted(activation="softmax"), network=SMP), "--class (the background first) and --n"
    )
    assert not (tmp_path / "e").exists()
    edited = add(url, [file, str(weights / "plain.safetensors")], ALL, network=SMP)
    assert [member.weights for member in edited.ensemble.spec.members] == ["plain.pth", "plain.safetensors"]
    assert edited.ensemble.spec.members[0].model_dump()["options"] == OPTIONS
    assert edited.ensemble.spec.classes[1].color == "#112233"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("two-channels.pth", ["takes 2 channels", "has 1 (dna)", "members must agree on the channels"]),
        ("three-outputs.pth", ["three-outputs.pth", "do not fit", "2 outputs"]),
    ],
)
def test_a_member_that_does_not_fit_is_refused_and_nothing_changes(
    file: str, said: Sequence[str], weights: Path, tmp_path: Path
) -> None:
    url = str(tmp_path / "e")
    add(url, [str(weights / "plain.pth")], ALL, network=SMP)
    before = tree(tmp_path)
    refused(lambda: add(url, [str(weights / file)], Wanted(), network=SMP), *said)
    assert tree(tmp_path) == before


def test_classes_and_channels_that_a_file_names_must_be_those_of_the_ensemble(weights: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "e")
    add(url, [str(weights / "deepflash2/model-0.pth")], SMALL)
    three = write_deepflash2(tmp_path / "three.pth", 1, classes=3)
    refused(lambda: add(url, [str(three)], Wanted()), "gives 3 classes", "has 2 (background, class-1)")
    two = write_deepflash2(tmp_path / "two.pth", 1, channels=2, stats=([0.2, 0.2], [0.1, 0.1]))
    refused(lambda: add(url, [str(two)], Wanted()), "takes 2 channels", "has 1 (channel-0)")
    bare = write_deepflash2(tmp_path / "bare.pth", 1, stats=None)
    refused(lambda: add(url, [str(bare)], Wanted()), "brings no normalisation of its own", "input.normalisation")


def test_a_member_that_is_there_already_is_refused(weights: Path, tmp_path: Path) -> None:
    url, file = str(tmp_path / "e"), weights / "script.pt"
    twin = tmp_path / "twin.pt"
    twin.write_bytes(file.read_bytes())
    refused(lambda: add(url, [str(file), str(twin)], ALL), "twin.pt", "already")
    assert not (tmp_path / "e").exists()
    add(url, [str(file)], ALL)
    refused(lambda: add(url, [str(twin)], Wanted()), "twin.pt", "is a member of", "already", url)


def test_options_of_a_new_ensemble_are_refused_for_one_that_exists(weights: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "e")
    add(url, [str(weights / "script.pt")], ALL)
    wanted = Wanted(tile=128, classes=CLASSES)
    refused(lambda: add(url, [str(weights / "other.pt")], wanted), "exists", "(--class, --tile) do not change it")


def test_weights_of_the_same_name_are_kept_apart(weights: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "e")
    add(url, [str(weights / "script.pt")], ALL)
    (tmp_path / "x").mkdir()
    other = write_script(tmp_path / "x/script.pt", 9)
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    assert names(add(url, [str(other)], Wanted())) == ["script.pt", f"script-{digest[:8]}.pt"]
    read = read_ensemble(url)
    for index in range(2):
        read.load_member(index, torch.device("cpu"))


def test_a_link_keeps_the_place_of_the_weights(weights: Path, tmp_path: Path) -> None:
    edited = add(str(tmp_path / "e"), [str(weights / "script.pt")], ALL, link=True)
    assert names(edited) == [str(weights / "script.pt")]
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["ensemble.yaml"]
    remove_all = [str(weights / "script.pt")]
    add(str(tmp_path / "e"), [str(weights / "other.pt")], Wanted())
    remove(str(tmp_path / "e"), remove_all, delete=True)
    assert (weights / "script.pt").exists()


def test_an_ensemble_is_made_and_edited_in_other_storage(weights: Path, tmp_path: Path) -> None:
    url = f"memory://editing/{tmp_path.name}"
    storage.write_bytes(f"{url}-weights/remote.pt", (weights / "other.pt").read_bytes())
    add(url, [str(weights / "script.pt"), f"{url}-weights/remote.pt"], ALL)
    local = add(str(tmp_path / "e"), [str(weights / "script.pt"), str(weights / "other.pt")], ALL)
    read = read_ensemble(url)
    assert [member.sha256 for member in read.spec.members] == [m.sha256 for m in local.ensemble.spec.members]
    read.load_member(1, torch.device("cpu"))
    remove(url, ["remote"], delete=True)
    assert not storage.exists(f"{url}/remote.pt")
    assert len(read_ensemble(url).spec.members) == 1


def test_members_are_removed_by_index_or_name_and_weights_on_request(tmp_path: Path) -> None:
    url = str(write_ensemble(tmp_path, members=4, tile=32))
    kept = read_ensemble(url).spec.members[3]
    remove(url, ["0"])
    assert (tmp_path / "member-0.safetensors").exists()
    edited = remove(url, ["member-1.safetensors", "member-2"], delete=True)
    assert edited.removed == ("member-1.safetensors", "member-2.safetensors")
    assert read_ensemble(url).spec.members == [kept]
    assert not (tmp_path / "member-1.safetensors").exists()
    assert (tmp_path / "member-3.safetensors").exists()
    before = tree(tmp_path)
    refused(lambda: remove(url, ["0"]), "needs a member")
    refused(lambda: remove(url, ["7"]), "no member 7", "0 (member-3.safetensors)")
    assert tree(tmp_path) == before


def test_the_schema_in_docs_is_that_of_the_code() -> None:
    """`chorus ensemble schema > docs/ensemble.schema.json` makes it anew."""
    text = (ROOT / "docs/ensemble.schema.json").read_text()
    assert json.loads(text) == json_schema()
    assert "//" not in json_schema()["$id"]


def test_the_schema_accepts_what_is_written(weights: Path, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    edited = add(str(tmp_path / "e"), [str(weights / "deepflash2")], SMALL)
    content = yaml.safe_load(Path(edited.ensemble.url).read_text())
    jsonschema.validate(content, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"tile": 0}, json_schema())


def test_a_package_becomes_an_ensemble_by_itself(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bioimageio.core")
    name = "unet2d_nuclei_broad"
    edited = add(str(tmp_path / "e"), [str(shared_data / "models" / name)], Wanted(), trust_code=True)
    read = read_ensemble(str(tmp_path / "e"), trust_code=True)
    assert read.spec.members[0].kind == "bioimageio"
    assert names(edited) == [name]
    assert read.spec.about.licence
    assert read.spec.name not in (name, "e")
    read.load_member(0, torch.device("cpu"))
    refused(
        lambda: add(str(tmp_path / "e"), [str(shared_data / "models" / name)], Wanted(), trust_code=True), "already"
    )
