"""Members that StarDist trained: what they answer on Chorus's tiles, and how their folders are described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from chorus.pipeline.core.answers import between
from chorus.pipeline.core.outputs import RAYS
from chorus.pipeline.core.provenance import About, Citation
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kinds.stardist.folder import ModelFolder, checked_folder, read_folder
from chorus.pipeline.members.kinds.stardist.keras_weights import read_layers
from chorus.pipeline.members.kinds.stardist.network import build_network
from chorus.pipeline.members.kinds.stardist.settings import Design
from chorus.pipeline.members.outputs import ClassesOutput, RaysOutput, StarThresholds
from chorus.pipeline.preprocessing.normalisation import NormalisedInput, Percentile
from chorus.pipeline.preprocessing.preparation import Preparation

_TILE = 512  # about; a multiple of what the network needs
# Of each channel, as in all examples of StarDist.
_NORMALISATION = Percentile(low=1, high=99.8)


class StarDistMember(MemberEntry):
    """``{kind: stardist, weights: nuclei, sha256: ...}``: a model folder as StarDist saves it, of planes.

    Each channel's percentiles 1 and 99.8 become 0 and 1, not clipped, whatever the ensemble's normalisation. It answers
    with the probability of an object, or of each class of objects, and with the rays from each pixel to the outline.

    Attributes
    ----------
    sha256 : of ``config.json`` and the weights; thresholds of objects are kept in ``ensemble.yaml``
    """

    kind: Literal["stardist"]
    activation: Literal["none"] | None = None

    def preparation(self, asked: LoadRequest) -> Preparation:
        """Return StarDist's normalisation."""
        return NormalisedInput(_NORMALISATION, asked.channels)

    def load(self, asked: LoadRequest, device: torch.device) -> Member:
        """Load the network; raise RefusedError if the folder is missing, differs, or does not fit the ensemble."""
        folder = checked_folder(asked.url, self.sha256, beside=asked.beside)
        design = _of_planes(folder)
        if design.n_channel_in != asked.channels:
            raise RefusedError(
                f"{folder.url}: takes {design.n_channel_in} channels, the ensemble has {asked.channels}; correct "
                "input.channels in ensemble.yaml"
            )
        divisor = max(design.divisor)
        if asked.edge % divisor:
            raise RefusedError(
                f"{folder.url}: takes tiles of a multiple of {divisor} pixels, not {asked.edge}; correct the tile"
            )
        with_rays = RAYS in asked.outputs
        if with_rays and len(asked.outputs[RAYS].names) != design.n_rays:
            raise RefusedError(
                f"{folder.url}: gives {design.n_rays} rays, the ensemble has {len(asked.outputs[RAYS].names)}; members "
                "must agree on the rays"
            )
        network = build_network(design, read_layers(folder.weights_url, folder.weights))
        classes = design.n_classes or 1
        answers = EveryPixel(network, design.grid, None if with_rays else classes)
        return ModuleMember(answers, device, "none")


class EveryPixel(nn.Module):
    """A network that answers for points of a grid, made to answer for every pixel between them.

    A point of the grid is the first pixel of its cell: it keeps its value, and pixels between points are interpolated,
    so that tiles that were flipped or turned, whose points lie elsewhere, can be averaged. Beyond the last points of a
    tile their value is taken.

    Attributes
    ----------
    network : (batch, channels, y, x) to (batch, answers, y / grid, x / grid)
    """

    def __init__(self, network: nn.Module, grid: Sequence[int], channels: int | None) -> None:
        super().__init__()
        self.network, self._grid, self._channels = network, tuple(grid), channels

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Parameters
        ----------
        tiles : (batch, channels, y, x) float32

        Returns
        -------
        torch.Tensor
            (batch, answers, y, x) float32; of the answers the first channels alone where so many were asked for.
        """
        answers: torch.Tensor = self.network(tiles)[:, : self._channels]
        for axis, step in enumerate(self._grid, start=2):
            answers = between(answers, axis, step)
        return answers


def describe(url: str) -> ModelDescription:
    """Describe a model folder as a member; raise RefusedError if it is none, or of volumes."""
    folder = read_folder(url)
    design, thresholds = _of_planes(folder), folder.thresholds
    count, divisor = design.n_classes or 1, max(design.divisor)
    rays = RaysOutput(
        role="rays",
        channels=design.n_rays,
        grid=(design.grid[0], design.grid[1]),
        objects=StarThresholds(prob_threshold=thresholds.prob, nms_threshold=thresholds.nms),
    )
    return ModelDescription(
        entry=StarDistMember(kind="stardist", weights=url, sha256=folder.sha256),
        name=storage.basename(url),
        channels=[f"channel-{channel}" for channel in range(design.n_channel_in)],
        classes=["background", *(["object"] if count == 1 else [f"class-{index + 1}" for index in range(count)])],
        activation="none",
        outputs=(ClassesOutput(), rays),
        tile=-(-_TILE // divisor) * divisor,
        about=About(
            description=f"A StarDist model of {design.n_rays} rays, grid {' x '.join(map(str, design.grid))}.",
            cite=[
                Citation(
                    text="Schmidt et al. Cell Detection with Star-Convex Polygons. MICCAI, 2018.",
                    doi="10.1007/978-3-030-00934-2_30",
                )
            ],
        ),
    )


def _of_planes(folder: ModelFolder) -> Design:
    """Return the design of a model of planes; raise RefusedError for one of volumes."""
    if folder.design.n_dim != 2:
        raise RefusedError(
            f"{folder.url}: a StarDist model of volumes, whose objects are polyhedra; Chorus takes those of planes: "
            "train one with Config2D"
        )
    return folder.design
