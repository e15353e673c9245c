"""Weights of a BioImage.IO package: state dicts with a named architecture, TorchScript, ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from chorus.pipeline.backends.conversion import OPSET
from chorus.pipeline.core.outputs import Activation
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest
from chorus.pipeline.members.kind import PackedModule, PackedOnnx, PackedTorchScript

IMAGE, PREDICTION = "image", "prediction"


class AveragedMembers(torch.nn.Module):
    """An ensemble as one network: the mean of its members' probabilities, and of their flows.

    Parameters
    ----------
    members : networks of the members
    activations : of each member
    classes : number of classes with a probability; if a member gives one less, the first is 1 less the sum of the
        others
    flows : whether (dy, dx) follow the classes
    """

    def __init__(
        self, members: Sequence[torch.nn.Module], activations: Sequence[Activation], classes: int, *, flows: bool
    ) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)
        self.activations, self.classes, self.flows = tuple(activations), classes, 2 * flows

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mean outputs of the members.

        Parameters
        ----------
        image : (batch, channels, y, x) float32, prepared pixels

        Returns
        -------
        torch.Tensor
            (batch, classes and flows, y, x) float32.
        """
        answers = [self._answer(member(image), how) for member, how in zip(self.members, self.activations, strict=True)]
        return torch.stack(answers).mean(dim=0)

    def _answer(self, outputs: torch.Tensor, activation: Activation) -> torch.Tensor:
        split = outputs.shape[1] - self.flows
        probability, flows = outputs[:, :split], outputs[:, split:]
        if activation == "softmax":
            probability = probability.softmax(dim=1)
        elif activation == "sigmoid":
            probability = probability.sigmoid()
        if split != self.classes:
            probability = torch.cat([1 - probability.sum(dim=1, keepdim=True), probability], dim=1)
        return torch.cat([probability, flows], dim=1)


def weights(
    packed: PackedModule | PackedTorchScript | PackedOnnx, asked: LoadRequest, folder: Path
) -> tuple[dict[str, Any], bool]:
    """Write files of weights into `folder`.

    Returns
    -------
    descriptions : by format, of `bioimageio.spec.model.v0_5`
    any_batch : whether they accept several tiles at once

    Raises
    ------
    RefusedError
        If a network cannot be exported.
    """
    if isinstance(packed, PackedModule):
        first = state_dict(packed, folder)
        second = onnx(asked.url, packed.module, asked, folder, parent="pytorch_state_dict")
        return {"pytorch_state_dict": first, "onnx": second}, True
    if isinstance(packed, PackedTorchScript):
        return {"torchscript": torchscript(packed, folder)}, True
    return onnx_copy(packed, folder)


def state_dict(packed: PackedModule, folder: Path) -> Any:
    """Return the `PytorchStateDictWeightsDescr` of a network that a library builds."""
    from bioimageio.spec.common import FileDescr
    from bioimageio.spec.model.v0_5 import ArchitectureFromLibraryDescr, PytorchStateDictWeightsDescr, Version

    path, environment = folder / "weights.pt", folder / "environment.yaml"
    torch.save({name: tensor.contiguous() for name, tensor in packed.module.state_dict().items()}, path)
    version = torch.__version__.split("+")[0]
    packages = [f"pytorch=={version}", "pip", {"pip": [packed.requirement]}]
    environment.write_text(yaml.safe_dump({"channels": ["conda-forge"], "dependencies": packages}))
    built: dict[str, Any] = {
        "callable": packed.callable, "import_from": packed.library, "kwargs": dict(packed.arguments),
    }  # fmt: skip
    return PytorchStateDictWeightsDescr(
        source=path,
        architecture=ArchitectureFromLibraryDescr(**built),
        pytorch_version=Version(version),
        dependencies=FileDescr(source=environment),
    )


def torchscript(packed: PackedTorchScript, folder: Path) -> Any:
    """Return the `TorchscriptWeightsDescr` of the member's own file."""
    from bioimageio.spec.model.v0_5 import TorchscriptWeightsDescr, Version

    path = folder / "weights-torchscript.pt"
    path.write_bytes(packed.data)
    return TorchscriptWeightsDescr(source=path, pytorch_version=Version(torch.__version__.split("+")[0]))


def onnx_copy(packed: PackedOnnx, folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the `OnnxWeightsDescr` of the member's own file, by format, and whether it accepts batches of tiles."""
    import onnx
    from bioimageio.spec.model.v0_5 import OnnxWeightsDescr

    path = folder / "weights.onnx"
    path.write_bytes(packed.data)
    model = onnx.load_from_string(packed.data)
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    return {"onnx": OnnxWeightsDescr(source=path, opset_version=opset)}, not fixed


def onnx(
    url: str,
    module: torch.nn.Module,
    asked: LoadRequest,
    folder: Path,
    parent: Literal["pytorch_state_dict"] | None = None,
) -> Any:
    """Return the `OnnxWeightsDescr` of a torch module, for any batch of the ensemble's tiles.

    The tile size is fixed: with free sizes the export of networks with encoders of timm does not terminate, since its
    expressions of sizes grow with each layer (seen in torch 2.15).

    Raises
    ------
    RefusedError
        If the network cannot be exported.
    """
    try:
        import onnxscript  # noqa: F401 - required by torch.onnx
    except ImportError as error:
        raise RefusedError(f"{url}: writing ONNX needs onnxscript; `pip install 'chorus-bioimage[onnx]'`") from error
    from bioimageio.spec.model.v0_5 import OnnxWeightsDescr

    path = folder / "weights.onnx"
    example = torch.zeros(2, asked.channels, asked.edge, asked.edge)
    try:
        program = torch.onnx.export(
            module.to(memory_format=torch.contiguous_format).eval(),
            (example,),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            input_names=[IMAGE],
            output_names=[PREDICTION],
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise RefusedError(f"{url}: torch cannot export it as ONNX ({reason}); pack its members one by one") from error
    assert program is not None  # it is None only if a file name was given
    program.save(path, external_data=False)
    return OnnxWeightsDescr(source=path, opset_version=OPSET, parent=parent)
