"""Members that are networks of Cellpose, of any version: cell probability and flows, with its own normalisation."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from chorus.pipeline.core.outputs import CLASSES, FLOWS
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember, fetch_weights
from chorus.pipeline.members.kinds.cellpose import residual as cellpose_residual
from chorus.pipeline.members.kinds.cellpose.network import CellposeNetwork, Design, build_network
from chorus.pipeline.members.kinds.cellpose.residual import ResidualDesign, ResidualMember
from chorus.pipeline.members.kinds.cellpose.size import SIZE_SUFFIX, SizeModel, read_size_model, size_model_url
from chorus.pipeline.members.safety.pickles import load_tensors
from chorus.pipeline.preprocessing.normalisation import ChannelScaling, apply
from chorus.pipeline.preprocessing.preparation import Measure, Preparation, Statistics

_MOST_CHANNELS = 3
# A channel whose percentiles are closer than this becomes zero (cellpose.transforms.normalize99).
_LEAST_SPREAD = 1e-3
_LOW, _HIGH = 1.0, 99.0


class CellposeMember(MemberEntry):
    """``{kind: cellpose, weights: cyto3, sha256: ...}``: a network of Cellpose 1 to 4, or fine-tuned from one.

    Weights are a path or a URL; the file decides the architecture and the type of the weights. Channels are
    normalised as Cellpose does, whatever the ensemble's normalisation: up to three in any order for Cellpose 4, for
    older ones that to segment, then the nuclei if there are any. What comes out is the logit of one class, ``cell``,
    and the flows. Networks with SAM's backbone take tiles of 256 only.

    Attributes
    ----------
    size_sha256 : of its size model, ``<weights>_size.npy`` or ``size_<weights>.npy`` beside it; None: it has none
    """

    kind: Literal["cellpose"]
    activation: Literal["sigmoid"] | None = None
    size_sha256: str | None = Field(default=None, exclude_if=lambda value: value is None)

    def companions(self) -> tuple[tuple[str, str], ...]:
        """Return the URL of the size model."""
        return () if self.size_sha256 is None else ((size_model_url(self.weights), SIZE_SUFFIX),)

    def size_regression(self, asked: LoadRequest) -> SizeModel | None:
        """Return the size model; raise RefusedError if it is missing, differs or is none."""
        if self.size_sha256 is None:
            return None
        url = size_model_url(asked.url)
        return read_size_model(url, fetch_weights(url, self.size_sha256, beside=asked.beside))

    def preparation(self, asked: LoadRequest) -> Preparation:
        """Return Cellpose's normalisation; raise RefusedError for more than three channels."""
        if asked.channels > _MOST_CHANNELS:
            raise RefusedError(
                f"{asked.url}: a Cellpose network takes 1 to {_MOST_CHANNELS} channels, not {asked.channels}; name "
                "fewer in input.channels"
            )
        return CellposeInput(asked.channels)

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network; raise RefusedError if the file is none of Cellpose or does not fit tiles or channels."""
        url = asked.url
        if asked.outputs.roles not in ((CLASSES,), (CLASSES, FLOWS)):
            raise RefusedError(
                f"{url}: a Cellpose network gives a class and flows; correct `outputs` in ensemble.yaml to "
                "`[{role: classes}, {role: flows}]`"
            )
        state = read_state_dict(url, fetch_weights(url, self.sha256, beside=asked.beside))
        if state.keys() >= cellpose_residual.NAMES:
            return _residual(asked, state, device)
        design = Design.of(url, state)
        if not design.takes(asked.edge):
            raise RefusedError(
                f"{url}: this Cellpose network takes tiles of {design.tiles}, not {asked.edge}; set `tile: "
                f"{design.tile}` in ensemble.yaml and leave out --tile"
            )
        network = build_network(url, state, design)
        return ModuleMember(CellposeNetwork(network, design.dtype, flows=FLOWS in asked.outputs), device, "sigmoid")


@dataclass(frozen=True)
class CellposeInput:
    """Each channel's percentiles 1 and 99 become 0 and 1, not clipped; a channel without spread becomes zero.

    They are taken over the whole image, all its planes together, and exactly. Cellpose itself takes a stack plane by
    plane unless it is 3D, estimates them from a part of the pixels beyond 224^3 of them, and before version 4 leaves
    a channel of one value as it is.

    References
    ----------
    ``cellpose.transforms.normalize_img`` and ``normalize99``, Cellpose 4.2.1.1, with the defaults of
    ``CellposeModel.eval``.
    """

    channels: int

    @property
    def measures(self) -> frozenset[Measure]:
        """The percentiles at both ends of each channel."""
        return frozenset(Measure("percentile", c, end) for c in range(self.channels) for end in (_LOW, _HIGH))

    def apply(self, raw: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """Scale each channel between its percentiles, each pixel by itself.

        Parameters
        ----------
        raw : (channels, y, x) of any real dtype
        statistics : all of `measures`

        Returns
        -------
        NDArray[np.float32]
            (channels, y, x); 0 for a channel whose percentiles are almost equal.
        """
        low, high = ([statistics[Measure("percentile", c, end)] for c in range(self.channels)] for end in (_LOW, _HIGH))
        spread = (b - a if b - a > _LEAST_SPREAD else 0.0 for a, b in zip(low, high, strict=True))
        return apply(raw, ChannelScaling.of(low, spread))


def _residual(asked: LoadRequest, state: dict[str, torch.Tensor], device: torch.device) -> Member:
    """Load a network of Cellpose 1 to 3; raise RefusedError if it does not fit the channels or the tiles."""
    design = ResidualDesign.of(asked.url, state)
    if asked.channels > design.widths[0]:
        raise RefusedError(
            f"{asked.url}: this Cellpose network takes {design.widths[0]} channels, the one to segment first and the "
            f"nuclei second, not {asked.channels}; name fewer in input.channels"
        )
    if asked.edge % design.multiple:
        raise RefusedError(
            f"{asked.url}: this Cellpose network takes tiles of a multiple of {design.multiple}, not {asked.edge}; set "
            f"`tile: {cellpose_residual.TILE}` in ensemble.yaml and leave out --tile"
        )
    network = ResidualMember(design.network(asked.url, state), asked.channels, flows=FLOWS in asked.outputs)
    return ModuleMember(network, device, "sigmoid")


def read_state_dict(url: str, data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by their names; raise RefusedError if it holds anything else."""
    try:
        loaded: Any = load_tensors(data)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            f"{url}: not a plain state dict, and Chorus never runs pickled code; take a file as Cellpose saves it"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise RefusedError(f"{url}: holds no state dict; take a file as Cellpose saves it")
    # Training on several GPUs puts a name before all others; Cellpose takes it off, too.
    return {key.removeprefix("module."): value for key, value in loaded.items()}
