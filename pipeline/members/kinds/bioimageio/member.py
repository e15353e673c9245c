"""Members that are BioImage.IO packages: prepared, run and postprocessed as the package declares, on Chorus's tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field

from chorus.pipeline.core.outputs import Activation
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry
from chorus.pipeline.members.kinds.bioimageio.networks import Network, load_network
from chorus.pipeline.members.kinds.bioimageio.package import (
    Package,
    WeightFormat,
    check_files,
    choose_format,
    open_package,
    weight_files,
)
from chorus.pipeline.members.kinds.bioimageio.processing import (
    PackagePreparation,
    Step,
    postprocessing,
    preparation,
    raw_output,
)
from chorus.pipeline.members.kinds.bioimageio.shapes import Port, check_output, check_tile, port
from chorus.pipeline.members.safety.script import check_source
from chorus.pipeline.members.safety.trial import check_trial


class BioimageioMember(MemberEntry):
    """``{kind: bioimageio, weights: nuclei.zip, format: torchscript, output: probability, sha256: ...}``.

    `weights` is a folder, a zip archive, a URL of either or of an rdf, or an id of the collection. The ensemble's
    channels are dealt to the input tensors in their order. What the package's postprocessing gives is taken as
    probabilities unless `activation` says otherwise.

    A package's halo is not cropped: tiles overlap, and the weights of blending let a tile's rim count for little.

    Attributes
    ----------
    sha256 : of the rdf and the files of `format`, see `bioimageio_package.WeightFiles.sha256`
    format : of the weights; by default the one that runs best (`bioimageio_package.choose_format`)
    output : name of the output tensor; the first by default
    channels : of the output, in the order of the ensemble's classes (and flows); all by default
    """

    kind: Literal["bioimageio"]
    format: WeightFormat | None = None
    output: str | None = None
    channels: tuple[int, ...] | None = Field(default=None, min_length=1)

    def preparation(self, asked: LoadRequest) -> PackagePreparation:
        """Return the package's preprocessing; its weights are not read."""
        package = _opened(asked.url, self.weights, self.sha256)
        inputs = package.description.inputs
        prepared = preparation(package.url, inputs)
        if prepared.channels != asked.channels:
            raise RefusedError(
                f"{package.url}: takes {prepared.channels} channels "
                f"({', '.join(str(tensor.id) for tensor in inputs)}), the ensemble has {asked.channels}; correct "
                "input.channels in ensemble.yaml"
            )
        return prepared

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network with its postprocessing; raise RefusedError if its hash differs or it cannot run."""
        self.preparation(asked)
        package = _opened(asked.url, self.weights, self.sha256)
        inputs = package.description.inputs
        index, output = self._output(package)
        check_tile(package.url, inputs, asked.edge)
        check_output(package.url, inputs, output, asked.edge)
        ports = [port(package.url, tensor) for tensor in inputs]
        post = postprocessing(package.url, output, asked.outputs.roles)
        out = port(package.url, output)
        self._check_channels(package, out, raw=raw_output(output) in asked.outputs.roles)
        files = weight_files(package, choose_format(package, self.format))
        check_files(package, files, self.sha256, beside=asked.beside)
        if files.format == "torchscript" and not asked.trust_code:
            where = f"{package.url}: {files.entry.source}"
            check_source(where, files.weights)
            if not asked.tried:
                laid = [one.lay(torch.zeros((1, one.channels, asked.edge, asked.edge))) for one in ports]
                check_trial(where, files.weights, [tensor.shape for tensor in laid])
        network = load_network(package, files, device, trust_code=asked.trust_code)
        types = [_last_dtype(tensor) for tensor in inputs]
        return PackageMember(network, ports, types, index, out, post, self.channels, self.activation or "none")

    def _output(self, package: Package) -> tuple[int, Any]:
        outputs = package.description.outputs
        names = [str(tensor.id) for tensor in outputs]
        if self.output is not None and self.output not in names:
            raise RefusedError(
                f"{package.url}: has no output {self.output!r}, its outputs are {', '.join(names)}; correct `output`"
            )
        index = 0 if self.output is None else names.index(self.output)
        return index, outputs[index]

    def _check_channels(self, package: Package, out: Port, *, raw: bool) -> None:
        # Of flows and rays, the description is of the objects that come of them, not of what the network gives.
        if self.channels is not None and not raw and not all(0 <= c < out.channels for c in self.channels):
            raise RefusedError(
                f"{package.url}: output {out.name} has channels 0 to {out.channels - 1}; correct `channels` in "
                "ensemble.yaml"
            )


@lru_cache(maxsize=64)
def _opened(url: str, written: str, sha256: str | None) -> Package:
    """Open a package once in a process: preparations are requested more often than weights are loaded."""
    return open_package(url, written)


def _last_dtype(tensor: Any) -> torch.dtype:
    """Return the dtype of the network's input: preprocessing ends with the dtype that it needs."""
    last = tensor.preprocessing[-1]
    dtype: torch.dtype = getattr(torch, str(last.kwargs.dtype)) if str(last.id) == "ensure_dtype" else torch.float32
    return dtype


class PackageMember:
    """A package's network between its ports; see `contract.Member`.

    Attributes
    ----------
    activation : of what postprocessing gives
    """

    def __init__(
        self,
        network: Network,
        inputs: Sequence[Port],
        types: Sequence[torch.dtype],
        index: int,
        output: Port,
        post: Step,
        channels: Sequence[int] | None,
        activation: Activation,
    ) -> None:
        self.activation: Activation | None = activation
        self._network, self._inputs, self._types = network, inputs, types
        self._index, self._output, self._post = index, output, post
        self._channels = None if channels is None else list(channels)
        self._single = output.single or any(one.single for one in inputs)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Predict a batch; see `chorus.pipeline.members.contract.Member`.

        Parameters
        ----------
        tiles : (batch, channels, y, x) float32, preprocessed

        Returns
        -------
        torch.Tensor
            (batch, outputs, y, x) float32, postprocessed, resized to the tiles' y and x where the network scales them.

        Raises
        ------
        RuntimeError
            If the network returns other outputs than the package declares.
        """
        batches = [tiles[i : i + 1] for i in range(len(tiles))] if self._single else [tiles]
        answer = torch.cat([self._answer(batch) for batch in batches])
        # One by one, so that a sample does not depend on its place in the batch (see
        # `chorus.pipeline.inference.engine`).
        answer = torch.stack([self._post(sample) for sample in answer.to(torch.float32)])
        if self._channels is not None:
            answer = answer[:, self._channels]
        if answer.shape[-2:] != tiles.shape[-2:]:
            answer = torch.nn.functional.interpolate(
                answer, size=tiles.shape[-2:], mode="bilinear", align_corners=False
            )
        return answer

    def _answer(self, tiles: torch.Tensor) -> torch.Tensor:
        laid, start = [], 0
        for one, dtype in zip(self._inputs, self._types, strict=True):
            laid.append(one.lay(tiles[:, start : start + one.channels]).to(dtype))
            start += one.channels
        answers = self._network(laid)
        if len(answers) <= self._index:
            raise RuntimeError(f"its network gives {len(answers)} outputs, so that there is no {self._output.name}")
        return self._output.take(answers[self._index])

    def parameters_bytes(self) -> int:
        """Return the bytes of weights that the network keeps on its device."""
        return self._network.parameters_bytes()
