"""U-Nets of volumes as members: their design follows the voxels, and what does not fit is refused in a sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chorus.pipeline.core.outputs import Outputs, classes_of
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest
from chorus.pipeline.members.kinds.unet import UnetDesign, UnetMember, first_names, under_all_names, usual_design
from chorus.pipeline.training.fitting.networks import member_weights

CPU = torch.device("cpu")
DESIGN: dict[str, Any] = {
    "features": [4, 8],
    "strides": [(1, 1, 1), (1, 2, 2)],
    "kernels": [(1, 3, 3), (3, 3, 3)],
    "convolutions": 1,
}


def written(folder: Path, architecture: str = "PlainConvUNet", **changes: Any) -> tuple[UnetMember, torch.nn.Module]:
    """A member with random weights, and its network."""
    torch.manual_seed(0)
    network = UnetDesign(**DESIGN, architecture=architecture).build(1, 2).eval()
    path = folder / "m.safetensors"
    path.write_bytes(member_weights(network, "float32"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"kind": "unet", "weights": str(path), "sha256": digest, "architecture": architecture, **DESIGN, **changes}
    return UnetMember.model_validate(entry), network


def asked(folder: Path, tile: Any = (4, 8, 8), channels: int = 1) -> LoadRequest:
    outputs = Outputs((classes_of(["background", "cell"], "softmax", width=2),))
    return LoadRequest(str(folder / "m.safetensors"), channels, outputs, tile)


@pytest.mark.parametrize("architecture", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_member_answers_as_the_network_that_was_written(tmp_path: Path, architecture: str) -> None:
    entry, network = written(tmp_path, architecture)
    member = entry.load(asked(tmp_path), CPU)
    tiles = torch.randn(2, 1, 4, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(member(tiles), network(tiles))
    assert member.features == 8
    assert member.encoded().shape == (2, 8, 4, 4, 4)


@pytest.mark.parametrize(
    ("tile", "channels", "said"),
    [
        (64, 1, "its network takes volumes; set `input.axes: zyx`"),
        ((4, 8, 9), 1, "takes tiles that are multiples of 1 x 2 x 2, not of 4 x 8 x 9 voxels; correct `tile`"),
        ((4, 8, 8), 2, "do not fit PlainConvUNet of this design with 2 input channels and 2 outputs"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, tile: Any, channels: int, said: str) -> None:
    entry, _ = written(tmp_path)
    with pytest.raises(RefusedError, match=said):
        entry.load(asked(tmp_path, tile, channels), CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 3}, "depth"),
        ({"features": [4, 8, 16]}, "give one of each per stage"),
        ({"strides": [(2, 2, 2), (1, 2, 2)]}, "give 1, 1, 1 for the first stage"),
        ({"kernels": [(1, 2, 3), (3, 3, 3)]}, "give odd numbers"),
    ],
)
def test_a_design_is_strict(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        written(tmp_path, **changes)


def test_a_file_has_every_tensor_once_and_is_loaded_under_all_names() -> None:
    network = UnetDesign(**DESIGN).build(1, 2)
    names = first_names(network)
    state = network.state_dict()
    stored = {name: state[name] for name in names.values()}
    assert len(stored) < len(state)
    complete = under_all_names(network, stored)
    assert complete.keys() == state.keys()
    assert all(torch.equal(complete[name], value) for name, value in state.items())


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.integers(1, 12)] * 3).map(lambda edges: tuple(8 * edge for edge in edges)),
    st.tuples(*[st.floats(0.1, 2)] * 3),
)
def test_a_usual_design_halves_the_fine_axes_until_all_are_alike(
    patch: tuple[int, ...], sizes: tuple[float, ...]
) -> None:
    design = usual_design(patch, sizes, "PlainConvUNet")
    assert all(edge % step == 0 and edge // step >= 4 for edge, step in zip(patch, design.stride, strict=True))
    spacing = list(sizes)
    for stride, kernel in zip(design.strides, design.kernels, strict=True):
        coarse = [size > 2 * min(spacing) for size in spacing]
        assert not any(step == 2 and far for step, far in zip(stride, coarse, strict=True))
        spacing = [size * step for size, step in zip(spacing, stride, strict=True)]
        assert [width == 1 for width in kernel] == [size > 2 * min(spacing) for size in spacing]


def test_an_anisotropic_volume_is_halved_in_the_plane_first() -> None:
    design = usual_design((32, 64, 64), (0.284, 0.127, 0.127), "PlainConvUNet")
    assert design.strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert design.kernels == [(1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
