"""Exported networks: ONNX, torch.export and TorchScript answer as the network that was exported, or are refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from chorus.pipeline.ensembles.ensemble import Ensemble, check_answer, read_ensemble
from chorus.pipeline.errors import RefusedError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CPU = torch.device("cpu")
TILE = 32
ANY = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


class Net(torch.nn.Module):
    """Gives a probability of the foreground and distances along rays, as StarDist does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU())
        self.probability, self.rays = torch.nn.Conv2d(4, 1, 1), torch.nn.Conv2d(4, 8, 1)

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.layers(tiles)
        return torch.sigmoid(self.probability(features)), self.rays(features)


BYTES = 4 * (4 * 9 + 4 + 4 + 1 + 8 * 4 + 8)


def ensemble_of(
    folder: Path, name: str, data: bytes, *, trust: bool = True, inputs: int = 1, **fields: Any
) -> Ensemble:
    (folder / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    content = {
        "format": "chorus-ensemble/2",
        "name": "test",
        "classes": [{"name": "background"}, {"name": "nucleus"}],
        "input": {"channels": [f"c{c}" for c in range(inputs)], "normalisation": {"kind": "none"}},
        "tile": TILE,
        "members": [{"weights": name, "sha256": digest} | fields],
    }
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(content))
    return read_ensemble(str(folder), trust_code=trust)


def as_onnx(weights: Net, shape: tuple[Any, ...], *, half: bool = False, last: bool = False, opset: int = 17) -> bytes:
    """The network as an ONNX graph, written operator by operator; channels last with `last`."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    state = {name: value.numpy().astype(dtype) for name, value in weights.state_dict().items()}

    def convolution(data: str, layer: str, result: str, pad: int) -> Any:
        return helper.make_node("Conv", [data, f"{layer}.weight", f"{layer}.bias"], [result], pads=[pad] * 4)

    nodes = [
        convolution("first", "layers.0", "a", 1),
        helper.make_node("Relu", ["a"], ["features"]),
        convolution("features", "probability", "logit", 0),
        helper.make_node("Sigmoid", ["logit"], ["p"]),
        convolution("features", "rays", "r", 0),
    ]
    forth, back = (0, 3, 1, 2), (0, 2, 3, 1)
    move = (lambda a, b, order: helper.make_node("Transpose", [a], [b], perm=order)) if last else None
    copy = lambda a, b: helper.make_node("Identity", [a], [b])  # noqa: E731
    ends = [("tiles", "first", forth), ("p", "prob", back), ("r", "dist", back)]
    moved = [move(a, b, order) if move else copy(a, b) for a, b, order in ends]
    outputs = [helper.make_tensor_value_info(name, kind, [None] * 4) for name in ("prob", "dist")]
    graph = helper.make_graph(
        [moved[0], *nodes, *moved[1:]],
        "net",
        [helper.make_tensor_value_info("tiles", kind, list(shape))],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in state.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()


def as_program(net: torch.nn.Module, example: torch.Tensor, dynamic: dict[int, Any] | None) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net.eval(), (example,), dynamic_shapes=(dynamic,)), buffer)
    return buffer.getvalue()


def as_script(net: torch.nn.Module, example: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and yet what users have
        torch.jit.save(torch.jit.trace(net.eval(), example), buffer)
    return buffer.getvalue()


MAKERS: dict[str, Callable[[], bytes]] = {
    "onnx": lambda: as_onnx(Net(), ("batch", 1, "y", "x")),
    "onnx of one tile": lambda: as_onnx(Net(), (1, 1, TILE, TILE)),
    "exported": lambda: as_program(Net(), torch.zeros(2, 1, 64, 64), ANY),
    "exported of one tile": lambda: as_program(Net(), torch.zeros(1, 1, TILE, TILE), None),
    "torchscript": lambda: as_script(Net(), torch.zeros(2, 1, TILE, TILE)),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """Kind of member and its file, for any size and for one tile of one size."""
    return request.param.split()[0], MAKERS[request.param]()


def refusal(ensemble: Ensemble, *names: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_answer(ensemble, 0, ensemble.load_member(0, CPU), TILE, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in names), message


def test_an_export_answers_as_its_network_whatever_the_batch(made: tuple[str, bytes], tmp_path: Path) -> None:
    ensemble = ensemble_of(tmp_path, "m", made[1], kind=made[0], activation="none")
    member, net = ensemble.load_member(0, CPU), Net()
    check_answer(ensemble, 0, member, TILE, CPU)
    assert member.activation == "none"
    assert member.parameters_bytes() == BYTES
    with torch.inference_mode():
        for batch in (1, 3):
            tiles = torch.randn((batch, 1, TILE, TILE))
            torch.testing.assert_close(member(tiles), net(tiles)[0], atol=1e-6, rtol=1e-5)
            assert torch.equal(member(tiles), member(tiles))


def test_an_output_and_channels_of_it_are_chosen(made: tuple[str, bytes], tmp_path: Path) -> None:
    ensemble = ensemble_of(tmp_path, "m", made[1], kind=made[0], output=1, channels=[5, 0])
    tiles = torch.randn((2, 1, TILE, TILE))
    with torch.inference_mode():
        wanted = Net()(tiles)[1][:, [5, 0]]
        torch.testing.assert_close(ensemble.load_member(0, CPU)(tiles), wanted, atol=1e-6, rtol=1e-5)


def test_outputs_and_channels_that_are_not_there_are_refused(made: tuple[str, bytes], tmp_path: Path) -> None:
    fields = {"kind": made[0]}
    refusal(ensemble_of(tmp_path, "m", made[1], **fields, output=2), "has no output 2", "one of 0 (")
    refusal(ensemble_of(tmp_path, "m", made[1], **fields, output="mask"), "has no output mask")
    refusal(ensemble_of(tmp_path, "m", made[1], **fields, channels=[3]), "no channel 3")


@pytest.mark.parametrize("kind", ["onnx", "exported", "torchscript"])
@pytest.mark.parametrize("data", [b"", b"no network at all", b"PK\x03\x04" + bytes(60)])
def test_garbage_is_refused(kind: str, data: bytes, tmp_path: Path) -> None:
    refusal(ensemble_of(tmp_path, "garbage.bin", data, kind=kind), "garbage.bin")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 1, TILE, TILE), "takes 4 tiles at once"),
        (("n", 3, "y", "x"), "takes 3 channels, ensemble.yaml has 1"),
        (("n", 1, 256, 256), "takes tiles of 256 x 256 pixels, not 32"),
        (("n", 1, "z", "y", "x"), "takes 5 dimensions"),
    ],
)
def test_fixed_sizes_that_are_not_the_ensembles_are_refused(shape: tuple[Any, ...], said: str, tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, list(shape))]
    outputs = [helper.make_tensor_value_info("copy", TensorProto.FLOAT, list(shape))]
    graph = helper.make_graph([helper.make_node("Identity", ["tiles"], ["copy"])], "net", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    refusal(ensemble_of(tmp_path, "m.onnx", model.SerializeToString(), kind="onnx"), "m.onnx", said)
    fixed = [length if isinstance(length, int) else TILE for length in shape]
    program = as_program(torch.nn.ReLU(), torch.zeros([1, *fixed[1:]] if shape[0] == "n" else fixed), None)
    refusal(ensemble_of(tmp_path, "m.pt2", program, kind="exported"), "m.pt2", said)


def test_channels_last_and_half_precision_are_read(tmp_path: Path) -> None:
    tiles = torch.rand((2, 1, TILE, TILE))
    data = as_onnx(Net(), (None, None, None, 1), half=True, last=True)
    ensemble = ensemble_of(tmp_path, "m", data, kind="onnx", layout="nhwc", output="dist", channels=[0, 3])
    member = ensemble.load_member(0, CPU)
    with torch.inference_mode():
        assert member(tiles).dtype == torch.float32
        torch.testing.assert_close(member(tiles), Net()(tiles)[1][:, [0, 3]], atol=5e-3, rtol=1e-2)
    assert member.parameters_bytes() == BYTES // 2


class ChannelsLast(torch.nn.Module):
    def forward(self, tiles: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"all": tiles, "logits": tiles[..., :2] * 2}


@pytest.mark.parametrize("kind", ["exported", "torchscript"])
def test_named_outputs_with_channels_last_are_read(kind: str, tmp_path: Path) -> None:
    example = torch.zeros((1, TILE, TILE, 3))
    if kind == "exported":
        data = as_program(ChannelsLast(), example, None)
    else:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and yet what users have
            torch.jit.save(torch.jit.script(ChannelsLast()), buffer)
        data = buffer.getvalue()
    ensemble = ensemble_of(tmp_path, "m", data, kind=kind, layout="nhwc", output="logits", inputs=3)
    tiles = torch.randn((2, 3, TILE, TILE))
    member = ensemble.load_member(0, CPU)
    torch.testing.assert_close(torch.cat([member(tile) for tile in tiles.split(1)]), 2 * tiles[:, :2])


def test_an_onnx_operator_or_opset_that_is_not_known_is_refused(tmp_path: Path) -> None:
    data = as_onnx(Net(), ("n", 1, "y", "x"))
    model = onnx.load_from_string(data)
    model.graph.node[1].op_type = "Rectify"
    refusal(ensemble_of(tmp_path, "m.onnx", model.SerializeToString(), kind="onnx"), "m.onnx", "Rectify", "opset")
    future = as_onnx(Net(), ("n", 1, "y", "x"), opset=99)
    refusal(ensemble_of(tmp_path, "m.onnx", future, kind="onnx"), "m.onnx", "opset")


def test_onnx_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "parts.onnx"
    model = onnx.load_from_string(as_onnx(Net(), ("n", 1, "y", "x")))
    onnx.save(model, path, save_as_external_data=True, location="secret", size_threshold=0)
    refusal(ensemble_of(tmp_path, "m.onnx", path.read_bytes(), kind="onnx"), "in another file", "onnx.save")


def test_a_torch_export_file_loads_with_trusted_code_alone(tmp_path: Path) -> None:
    data = MAKERS["exported of one tile"]()
    refusal(ensemble_of(tmp_path, "m.pt2", data, kind="exported", trust=False), "m.pt2", "--trust-code")


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_torch_export_file_would_run_and_does_not_unless_it_is_trusted(tmp_path: Path) -> None:
    trap, archive, evil = tmp_path / "sprung", io.BytesIO(MAKERS["exported of one tile"]()), io.BytesIO()
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("model_constants_config.json"):
                data = json.dumps({"config": {"x": entry}}).encode()
                target.writestr(f"{name.rsplit('/', 1)[0]}/opaque_obj_0", pickle.dumps(Trap(trap)))
            target.writestr(name, data)
    refusal(ensemble_of(tmp_path, "m.pt2", evil.getvalue(), kind="exported", trust=False), "--trust-code")
    assert not trap.exists()
    torch.export.load(io.BytesIO(evil.getvalue()))
    assert trap.exists()  # which is why


@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports_as_onnx_is_a_member(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    net, path = Net().eval(), tmp_path / "torch.onnx"
    example, dynamic = (torch.zeros(2, 1, 64, 64),), (ANY,)
    torch.onnx.export(net, example, path, dynamic_shapes=dynamic, external_data=False, dynamo=True, verbose=False)
    member = ensemble_of(tmp_path, "m.onnx", path.read_bytes(), kind="onnx", output=1).load_member(0, CPU)
    tiles = torch.randn((3, 1, TILE, TILE))
    with torch.inference_mode():
        torch.testing.assert_close(member(tiles), net(tiles)[1], atol=1e-5, rtol=1e-4)
    assert member.parameters_bytes() >= BYTES


def test_a_device_that_onnxruntime_has_not_is_refused(tmp_path: Path) -> None:
    ensemble = ensemble_of(tmp_path, "m.onnx", as_onnx(Net(), ("n", 1, "y", "x")), kind="onnx")
    with pytest.raises(RefusedError, match="cannot run on cuda; install onnxruntime-gpu"):
        ensemble.load_member(0, torch.device("cuda"))
