"""Makes BioImage.IO packages for tests, and says what the library itself predicts with them."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bioimageio.core import create_prediction_pipeline, load_model_description
from bioimageio.core.digest_spec import create_sample_for_model

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member
from chorus.pipeline.members.kinds.bioimageio.member import BioimageioMember
from chorus.pipeline.members.kinds.bioimageio.package import choose_format, open_package, weight_files
from chorus.pipeline.preprocessing.preparation import Preparation, surveyed
from tests.support.engines import outputs_of

CPU = torch.device("cpu")


class Net(torch.nn.Module):
    """A convolution with biases; of all inputs together, `scale` times as large, several outputs with `outputs`."""

    def __init__(self, channels: int = 1, classes: int = 2, scale: float = 1.0, outputs: int = 1) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(channels, classes, 5, padding=2)
        self.scale, self.outputs = scale, outputs

    def forward(self, *inputs: torch.Tensor) -> Any:
        answer = self.convolution(torch.cat(inputs, 1))
        if self.scale != 1:
            answer = torch.nn.functional.interpolate(answer, scale_factor=self.scale, mode="bilinear")
        return answer if self.outputs == 1 else [answer * (k + 1) for k in range(self.outputs)]


def axes(size: Any, channels: int = 1, order: str = "bcyx", **batch: Any) -> list[dict[str, Any]]:
    names = [f"c{i}" for i in range(channels)]
    every = {
        "b": {"type": "batch"} | batch,
        "c": {"type": "channel", "channel_names": names},
        "y": {"type": "space", "id": "y", "size": size},
        "x": {"type": "space", "id": "x", "size": size},
        "z": {"type": "space", "id": "z", "size": {"min": 8, "step": 8}},
        "t": {"type": "time", "id": "time", "size": 1},
    }
    return [every[letter] for letter in order]


def reference(name: str, channels: int, order: str = "bcyx", **changes: Any) -> list[dict[str, Any]]:
    """Axes of an output that are those of the input `name`."""
    found = axes(0, channels, order)
    return [
        axis | {"size": {"tensor_id": name, "axis_id": axis["id"]}} | changes if axis["type"] == "space" else axis
        for axis in found
    ]


def pixels_of(tensor: dict[str, Any], tile: int, seed: int = 0) -> np.ndarray:
    sizes = {"batch": 1, "channel": 1, "space": tile, "time": 1}
    shape = [len(a["channel_names"]) if a["type"] == "channel" else sizes[a["type"]] for a in tensor["axes"]]
    values = np.random.default_rng(seed).gamma(2.0, 300.0, shape)
    return values.astype(tensor.get("data", {}).get("type", "float32"))


def write_package(
    folder: Path,
    *,
    module: torch.nn.Module | None = None,
    formats: tuple[str, ...] = ("torchscript",),
    inputs: list[dict[str, Any]] | None = None,
    outputs: list[dict[str, Any]] | None = None,
    tile: int = 64,
    architecture: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A package of `module` in `folder`, in format 0.5, with the weights of `formats`; `changes` replace fields."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    module = (module or Net()).eval()
    size = {"min": 16, "step": 16}
    inputs = inputs or [{"id": "raw", "axes": axes(size), "data": {"type": "float32"}}]
    outputs = outputs or [{"id": "mask", "axes": reference(str(inputs[0]["id"]), 2)}]
    tensors = []
    for number, tensor in enumerate([*inputs, *outputs]):
        name = f"test_{tensor['id']}.npy"
        np.save(folder / name, pixels_of(tensor, tile, number))
        tensors.append(tensor | {"test_tensor": {"source": name}})
    weights: dict[str, Any] = {}
    example = tuple(torch.from_numpy(pixels_of(tensor, tile).astype(np.float32)) for tensor in inputs)
    for name in formats:
        file = folder / f"weights-{name}"
        weights[name] = {"source": file.name}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and yet what packages hold
            if name == "torchscript":
                torch.jit.save(torch.jit.trace(module, example), file)
                weights[name] |= {"pytorch_version": "2.5"}
            elif name == "onnx":
                file = file.with_suffix(".onnx")
                torch.onnx.export(module, example, str(file), dynamo=True, verbose=False, external_data=False)
                weights[name] = {"source": file.name, "opset_version": 18}
            elif name == "pytorch_state_dict":
                torch.save(module.state_dict(), file)
                weights[name] |= {"pytorch_version": "2.5", "architecture": architecture}
            else:
                file.write_bytes(b"of another library")
                weights[name] |= {"tensorflow_version": "2.11"}
        weights[name]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    content = {
        "type": "model",
        "format_version": "0.5.4",
        "name": "small net",
        "description": "for tests",
        "license": "MIT",
        "authors": [{"name": "Ada"}],
        "cite": [{"text": "a paper", "doi": "10.1007/978-3-319-24574-4_28"}],
        "inputs": tensors[: len(inputs)],
        "outputs": tensors[len(inputs) :],
        "weights": weights,
    }
    (folder / "rdf.yaml").write_text(yaml.safe_dump(content | changes))
    return folder


def asked(url: object, *, channels: int = 1, outputs: int = 2, tile: int = 64, **changes: Any) -> LoadRequest:
    given = outputs_of(outputs, "none", flows=changes.get("flows", False))
    return LoadRequest(str(url), channels, given, tile, changes.get("trust_code", False))


def entry(url: Path | str, **fields: Any) -> BioimageioMember:
    """An entry with the right hash."""
    package = open_package(str(url))
    digest = weight_files(package, choose_format(package, fields.get("format"))).sha256(package)
    return BioimageioMember(kind="bioimageio", weights=str(url), **{"sha256": digest} | fields)


def refusal(url: Path | str, *names: str, make: Any = entry, **fields: Any) -> str:
    """The one sentence with which a member is refused; it has `names` in it."""
    question = {key: fields.pop(key) for key in ("tile", "channels", "trust_code") if key in fields}
    if "selection" in fields:
        fields["channels"] = fields.pop("selection")
    with pytest.raises(RefusedError) as caught:
        make(url, **fields).load(asked(url, **question), CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable(), repr(message)
    for name in names:
        assert name in message, message
    return message


def bare(url: Path | str, **fields: Any) -> BioimageioMember:
    return BioimageioMember(kind="bioimageio", weights=str(url), **{"sha256": "0" * 64} | fields)


def core_prediction(
    folder: Path, format: str, samples: dict[str, np.ndarray], output: str, *, padding: bool = True
) -> np.ndarray:
    """What core predicts of whole images; with `padding`, after adding halos that it cuts off again."""
    description = load_model_description(folder, perform_io_checks=False, format_version="latest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # core loads TorchScript, too
        pipeline = create_prediction_pipeline(description, weights_format=format)
        sample = create_sample_for_model(description, inputs=samples, sample_id="sample")
        with pipeline:
            result = pipeline.predict_sample_without_blocking(
                sample, skip_input_padding=not padding, skip_output_cropping=not padding
            )
    return result.members[output].data.values


def prepared(preparation: Preparation, raw: np.ndarray) -> np.ndarray:
    return preparation.apply(raw, surveyed(preparation.measures, [raw]))


def answer(member: Member, preparation: Preparation, raw: np.ndarray) -> np.ndarray:
    """What the member says of (channels, y, x) raw pixels that are one tile."""
    with torch.inference_mode():
        return member(torch.from_numpy(prepared(preparation, raw))[None])[0].numpy()
