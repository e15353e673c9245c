"""Members: weights are fetched, checked and loaded without running anything that a file brings along."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from safetensors.torch import save

from chorus.pipeline.ensembles.ensemble import Ensemble, check_answer, read_ensemble
from chorus.pipeline.errors import RefusedError
from tests.support.making import network, write_ensemble

CPU = torch.device("cpu")
NARROW = {"decoder_channels": [8] * 5}
VIT = {"img_size": 64, "decoder_intermediate_channels": [16] * 4, "decoder_fusion_channels": 16}
ENCODERS = [
    "densenet121", "efficientnet-b0", "mit_b0", "mobilenet_v2", "mobileone_s0", "resnet18", "xception",
    "timm-efficientnet-b0", "timm-mobilenetv3_small_minimal_100", "timm-skresnet18",
    "tu-convnext_atto", "tu-mobilenetv3_small_050", "tu-resnet10t",
]  # fmt: skip


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An ensemble of one member in `tmp_path`."""
    write_ensemble(tmp_path, members=1, tile=32)
    return tmp_path


def change_member(folder: Path, **changes: Any) -> Ensemble:
    """Change fields of member 0 (None removes one) and read the ensemble anew."""
    path = folder / "ensemble.yaml"
    content = yaml.safe_load(path.read_text())
    entry = content["members"][0] | changes
    content["members"][0] = {key: value for key, value in entry.items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return read_ensemble(str(folder))


def put_weights(folder: Path, name: str, data: bytes, **changes: Any) -> Ensemble:
    (folder / name).write_bytes(data)
    return change_member(folder, weights=name, sha256=hashlib.sha256(data).hexdigest(), **changes)


def saved(content: Any, path: Path) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


def scripted(module: torch.nn.Module, path: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and yet what users have
        torch.jit.save(torch.jit.script(module), path)
    return path.read_bytes()


def refusal(ensemble: Ensemble, *names: str) -> str:
    """The one sentence with which loading member 0 is refused; it has `names` in it."""
    with pytest.raises(RefusedError) as caught:
        ensemble.load_member(0, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable(), repr(message)
    for name in names:
        assert name in message
    return message


def test_missing_weights_are_refused(bundle: Path) -> None:
    (bundle / "member-0.safetensors").unlink()
    refusal(read_ensemble(str(bundle)), str(bundle / "member-0.safetensors"), "not found", "relative to ensemble.yaml")


def test_weights_with_another_hash_are_refused(bundle: Path) -> None:
    weights = bundle / "member-0.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    refusal(read_ensemble(str(bundle)), str(weights), "sha256", "restore the file or correct the hash")


def test_a_member_without_a_hash_is_told_its_hash(bundle: Path) -> None:
    found = hashlib.sha256((bundle / "member-0.safetensors").read_bytes()).hexdigest()
    refusal(change_member(bundle, sha256=None), f"add `sha256: {found}`")


def test_the_hash_may_be_written_in_capitals(bundle: Path) -> None:
    digest = hashlib.sha256((bundle / "member-0.safetensors").read_bytes()).hexdigest()
    change_member(bundle, sha256=digest.upper()).load_member(0, CPU)


def test_loading_draws_no_random_numbers_for_the_weights_to_replace(bundle: Path) -> None:
    ensemble = read_ensemble(str(bundle))
    before = torch.get_rng_state()
    ensemble.load_member(0, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_other_shapes_are_refused(bundle: Path) -> None:
    ensemble = put_weights(bundle, "other.pt", saved(network(0, outputs=5).state_dict(), bundle / "x"))
    refusal(ensemble, "other.pt", "do not fit", "1 input channels and 2 outputs", "correct")


def test_an_unknown_architecture_or_encoder_is_refused(bundle: Path) -> None:
    refusal(change_member(bundle, architecture="Ynet"), "Ynet", "ensemble.yaml")
    refusal(change_member(bundle, architecture="Unet", encoder="resnet-1"), "resnet-1", "ensemble.yaml")
    refusal(change_member(bundle, encoder="resnet18", options={"decoder_channels": "wide"}), "decoder_channels")


@pytest.mark.parametrize("kind", ["pickle", "torch", "torchscript"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(kind: str, bundle: Path) -> None:
    trap = bundle / "sprung"
    content = {"state_dict": Trap(trap)}
    data = pickle.dumps(content) if kind == "pickle" else saved(content, bundle / "x")
    if kind == "torchscript":
        ensemble = put_weights(
            bundle, "evil.pt", data, kind="torchscript", architecture=None, encoder=None, options=None
        )
    else:
        ensemble = put_weights(bundle, "evil.pt", data)
    refusal(ensemble, "evil.pt")
    assert not trap.exists()


@pytest.mark.parametrize("name", ["garbage.safetensors", "garbage.pt"])
@pytest.mark.parametrize("data", [b"", b"not weights at all", b"\xff" * 64, b"PK\x03\x04" + bytes(60)])
def test_garbage_is_refused(name: str, data: bytes, bundle: Path) -> None:
    refusal(put_weights(bundle, name, data), name)


def test_a_file_of_something_else_is_refused(bundle: Path) -> None:
    refusal(put_weights(bundle, "list.pt", saved([1, 2, 3], bundle / "x")), "list.pt", "model.state_dict()")


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict"])
def test_a_saved_state_dict_loads_and_answers_as_its_network(wrap: str | None, bundle: Path) -> None:
    module = network(3)
    state = module.state_dict()
    ensemble = put_weights(bundle, "m.pt", saved({wrap: state, "epoch": 7} if wrap else state, bundle / "x"))
    x = torch.randn((2, 1, 32, 32))
    with torch.inference_mode():
        torch.testing.assert_close(ensemble.load_member(0, CPU)(x), module(x), atol=1e-5, rtol=1e-4)


def test_a_torchscript_member_answers_as_its_network(bundle: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    fields = {"kind": "torchscript", "architecture": None, "encoder": None, "options": None}
    ensemble = put_weights(bundle, "m.pt", scripted(module, bundle / "x"), **fields)
    member, x = ensemble.load_member(0, CPU), torch.randn((1, 1, 32, 32))
    with torch.inference_mode():
        torch.testing.assert_close(member(x), module(x))
    assert member.parameters_bytes() == 4 * (4 * 9 + 4 + 4 * 2 + 2)
    check_answer(ensemble, 0, member, 32, CPU)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (torch.nn.Conv2d(1, 3, 1), "gives (3, 32, 32) for a tile, not (2, 32, 32)"),
        (torch.nn.Conv2d(2, 2, 1), "cannot take 1 channels"),
        (torch.nn.Conv2d(1, 2, 3), "gives (2, 30, 30)"),
    ],
)
def test_members_that_disagree_with_the_ensemble_are_refused(module: torch.nn.Module, said: str, bundle: Path) -> None:
    fields = {"kind": "torchscript", "architecture": None, "encoder": None, "options": None}
    ensemble = put_weights(bundle, "m.pt", scripted(module, bundle / "x"), **fields)
    with pytest.raises(RefusedError) as caught:
        check_answer(ensemble, 0, ensemble.load_member(0, CPU), 32, CPU)
    message = str(caught.value)
    assert said in message
    assert "member 0 (m.pt)" in message
    assert "\n" not in message


def test_a_member_that_answers_with_what_is_no_number_is_refused(bundle: Path) -> None:
    state = network(0).state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    ensemble = put_weights(bundle, "nan.pt", saved(state, bundle / "x"))
    with pytest.raises(RefusedError, match=r"member 0 \(nan\.pt\).*NaN"):
        check_answer(ensemble, 0, ensemble.load_member(0, CPU), 32, CPU)


def test_members_are_in_evaluation_mode(bundle: Path) -> None:
    member, x = read_ensemble(str(bundle)).load_member(0, CPU), torch.randn((4, 1, 32, 32))
    with torch.inference_mode():
        assert torch.equal(member(x), member(x))
        torch.testing.assert_close(member(x)[:1], member(x[:1]), atol=1e-5, rtol=1e-4)


def answers_as(module: torch.nn.Module, folder: Path, tile: int, channels: int = 1, **fields: Any) -> None:
    """A member with the weights of `module` gives what it gives, bit for bit."""
    module.eval()
    ensemble = put_weights(folder, "m.safetensors", save(module.state_dict()), **fields)
    x = torch.randn((1, channels, tile, tile))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        member = ensemble.load_member(0, CPU)
        expected = module.to(memory_format=torch.channels_last)(x)
        assert expected.std() > 0
        assert torch.equal(member(x), expected)


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    """Running statistics of batch normalisation that are not those of a new network."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return module


@pytest.mark.parametrize("name", list(smp.MODEL_ARCHITECTURES_MAPPING))
def test_every_architecture_is_a_member(name: str, bundle: Path) -> None:
    # PAN pools its deepest features (1/16) three times; DPT takes nothing but vision transformers.
    tile = 128 if name == "pan" else 64
    encoder, options = ("tu-vit_tiny_patch16_224", VIT) if name == "dpt" else ("tu-mobilenetv3_small_050", {})
    module = smp.create_model(name, encoder, encoder_weights=None, in_channels=1, classes=2, **options)
    answers_as(perturbed(module), bundle, tile, architecture=name, encoder=encoder, options=options)


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_of_every_family_make_members(encoder: str, bundle: Path) -> None:
    module = smp.create_model("Unet", encoder, encoder_weights=None, in_channels=1, classes=2, **NARROW)
    answers_as(perturbed(module), bundle, 64, architecture="Unet", encoder=encoder, options=NARROW)


def test_flows_are_two_more_outputs(bundle: Path) -> None:
    path = bundle / "ensemble.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"format": "chorus-ensemble/2", "flows": True}))
    answers_as(network(0, outputs=4), bundle, 64)
    check_answer(read_ensemble(str(bundle)), 0, read_ensemble(str(bundle)).load_member(0, CPU), 64, CPU)


def test_half_precision_weights_are_computed_with_in_float32(bundle: Path) -> None:
    halved = {k: v.half() if v.is_floating_point() else v for k, v in network(0).state_dict().items()}
    member, x = put_weights(bundle, "h.safetensors", save(halved)).load_member(0, CPU), torch.randn((1, 1, 64, 64))
    reference = network(0)
    reference.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in halved.items()})
    with torch.inference_mode():
        assert member(x).dtype == torch.float32
        assert torch.equal(member(x), reference.to(memory_format=torch.channels_last)(x))


def test_a_second_head_for_the_whole_image_is_left_out(bundle: Path) -> None:
    options = NARROW | {"aux_params": {"classes": 3}}
    module = smp.create_model("Unet", "resnet18", encoder_weights=None, in_channels=1, classes=2, **options).eval()
    fields = {"architecture": "Unet", "encoder": "resnet18", "options": options}
    member = put_weights(bundle, "m.safetensors", save(module.state_dict()), **fields).load_member(0, CPU)
    x = torch.randn((1, 1, 64, 64))
    with torch.inference_mode():
        torch.testing.assert_close(member(x), module(x)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet10t"])
@pytest.mark.parametrize("option", ["decoder_chanels", "encoder_weights"])
def test_an_option_that_the_architecture_does_not_know_is_refused(option: str, encoder: str, bundle: Path) -> None:
    refusal(change_member(bundle, architecture="Unet", encoder=encoder, options={option: 8}), option, "ensemble.yaml")
