"""What members tell of their encoders: the last stage as the network itself has it, and nothing left behind."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from chorus.pipeline.members.contract import Encoding, LoadRequest, ModuleMember
from chorus.pipeline.members.kinds.deepflash2 import Deepflash2Member
from chorus.pipeline.members.kinds.torchscript import TorchScriptMember
from tests.support.engines import outputs_of
from tests.support.making import network

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("Unet", "resnet18"),
        ("FPN", "tu-tf_mobilenetv3_small_minimal_100"),
        ("DeepLabV3Plus", "tu-tf_mobilenetv3_small_minimal_100"),
        ("PSPNet", "resnet18"),
        ("Linknet", "mobilenet_v2"),
        ("MAnet", "mobileone_s0"),
        ("Segformer", "mit_b0"),
        ("UPerNet", "tu-convnext_atto"),
    ],
)
def test_features_are_the_last_stage_of_the_encoder_and_answers_stay(architecture: str, encoder: str) -> None:
    torch.manual_seed(0)
    module = smp.create_model(architecture, encoder, encoder_weights=None, in_channels=2, classes=3).eval()
    tiles = torch.randn((2, 2, 64, 64))
    member = ModuleMember(module, CPU)
    with torch.inference_mode():
        wanted, answer = module.encoder(tiles)[-1], module(tiles)
        assert torch.equal(member(tiles), answer)
    assert isinstance(member, Encoding)
    assert member.features == wanted.shape[1] > 0
    # Also where a decoder would work in place.
    assert torch.equal(member.encoded(), wanted)
    assert not any(layer._forward_hooks for layer in module.modules())
    with pytest.raises(RuntimeError, match="asked last"):
        member.encoded()


def test_an_encoder_of_tokens_gives_those_of_its_places() -> None:
    options = {"dynamic_img_size": True, "decoder_intermediate_channels": (8, 8, 8, 8), "decoder_fusion_channels": 8}
    name = "tu-vit_tiny_patch16_224"
    module = smp.create_model("DPT", name, encoder_weights=None, in_channels=1, classes=2, **options).eval()
    member = ModuleMember(module, CPU)
    tiles = torch.randn((1, 1, 64, 64))
    with torch.inference_mode():
        member(tiles)
        wanted = module.encoder(tiles)[0][-1]
    assert member.features == wanted.shape[1] == 192
    assert torch.equal(member.encoded(), wanted)


def test_a_call_that_fails_leaves_no_hook_behind() -> None:
    member = ModuleMember(network(0), CPU)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        member(torch.zeros((1, 3, 64, 64)))
    assert not member.module.encoder._forward_hooks


def test_compiled_graphs_have_no_features(tmp_path: Path) -> None:
    # A traced network has an `encoder` all the same, but calls no hook.
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network(0), torch.zeros((1, 1, 64, 64)))
        torch.jit.save(traced, tmp_path / "m.pt")
    assert hasattr(traced, "encoder")
    digest = hashlib.sha256((tmp_path / "m.pt").read_bytes()).hexdigest()
    entry = TorchScriptMember(kind="torchscript", weights="m.pt", sha256=digest)
    member = entry.load(LoadRequest(str(tmp_path / "m.pt"), 1, outputs_of(2), 64), CPU)
    assert isinstance(member, Encoding)
    assert member.features == ModuleMember(traced, CPU).features == ModuleMember(torch.nn.Identity(), CPU).features == 0


def test_a_checkpoint_of_deepflash2_has_features(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2).eval()
    content = {"model": module.state_dict(), "arch": "Unet", "encoder_name": "resnet18", "in_channels": 1, "classes": 2}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (tmp_path / "m.pth").write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    entry = Deepflash2Member(kind="deepflash2", weights="m.pth", sha256=digest)
    member = entry.load(LoadRequest(str(tmp_path / "m.pth"), 1, outputs_of(2), 64), CPU)
    tiles = torch.randn((1, 1, 64, 64))
    with torch.inference_mode():
        member(tiles)
        assert isinstance(member, Encoding)
        torch.testing.assert_close(member.encoded(), module.encoder(tiles)[-1], atol=1e-4, rtol=1e-4)
    assert member.features == 512
