"""The network of Cellpose 1 to 3: a residual U-Net whose decoder is told the style of the tile."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from chorus.pipeline.core.provenance import About, Citation, DataReference
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage

TILE = 224
"""What `CellposeModel.eval` takes; any multiple of `ResidualDesign.multiple` will do."""
DIAMETERS = ("diam_mean", "diam_labels")
NAMES = frozenset({"downsample.down.res_down_0.conv.conv_0.0.weight", "output.2.weight"})
"""Names in the state dicts of all of these networks, and in no others."""
_OUTPUTS = 3  # dy, dx, cell
# Files of Cellpose 1 do not tell; there the name decides.
_NUCLEI_SIZE, _USUAL_SIZE = 17.0, 30.0
_ADVICE = "take cyto, cyto2, cyto3, nuclei or a file fine-tuned from them"


@dataclass(frozen=True)
class ResidualDesign:
    """Properties of a network that are inferred from its state dict.

    Attributes
    ----------
    widths : channels of the input, then of each level from fine to coarse: (2, 32, 64, 128, 256) as published
    kernel : edge of its convolutions in pixels
    diameter_px : to which objects were scaled in training
    trained_px : mean diameter of the objects of its training data before they were scaled; None where unknown
    """

    widths: tuple[int, ...]
    kernel: int
    diameter_px: float
    trained_px: float | None

    @classmethod
    def of(cls, url: str, state: dict[str, torch.Tensor]) -> ResidualDesign:
        """Infer the design from a state dict; raise RefusedError if it is not that of a segmentation network in 2D."""
        found = (re.fullmatch(r"downsample\.down\.res_down_(\d+)\.conv\.conv_0\.2\.weight", name) for name in state)
        levels = sorted(int(match[1]) for match in found if match)
        convolutions = [state[f"downsample.down.res_down_{level}.conv.conv_0.2.weight"] for level in levels]
        if not convolutions or levels != list(range(len(levels))):
            raise RefusedError(
                f"{url}: a network of Cellpose 1 or 2 without residual blocks, which Chorus does not build; {_ADVICE}"
            )
        if any(weight.ndim != 4 for weight in convolutions):
            raise RefusedError(f"{url}: a Cellpose network with convolutions in 3D, which sees no planes; {_ADVICE}")
        outputs = len(state["output.2.weight"])
        if outputs != _OUTPUTS:
            raise RefusedError(
                f"{url}: has {outputs} outputs, not {_OUTPUTS} (flows and cell probability): a network of Cellpose 3 "
                f"that restores images; {_ADVICE}"
            )
        mean, labels = (state[name].item() if name in state else None for name in DIAMETERS)
        usual = _NUCLEI_SIZE if "nuclei" in storage.basename(url) else _USUAL_SIZE
        return cls(
            widths=(convolutions[0].shape[1], *(weight.shape[0] for weight in convolutions)),
            kernel=convolutions[0].shape[2],
            diameter_px=mean or usual,
            trained_px=labels,
        )

    @property
    def multiple(self) -> int:
        """Edges of tiles are a multiple of this: each level but the first halves them."""
        return int(2 ** (len(self.widths) - 2))

    @property
    def about(self) -> About:
        """What is known of a network of this design."""
        trained = f", {self.trained_px:.1f} px before they were scaled" if self.trained_px else ""
        return About(
            description=(
                f"A network of Cellpose 1 to 3: cell probability and flows, for objects of {self.diameter_px:g} px"
                f"{trained}."
            ),
            limits=(
                "Cellpose's own weights (cyto, cyto2, cyto3, nuclei), and so what was fine-tuned from them, were "
                "trained on data licensed under CC-BY-NC: clear commercial use with their authors."
            ),
            data=[DataReference(name="Cellpose", url="https://github.com/MouseLand/cellpose", licence="CC-BY-NC")],
            cite=[
                Citation(
                    text="Stringer, Wang, Michaelos and Pachitariu. Cellpose: a generalist algorithm for cellular "
                    "segmentation. Nature Methods, 2021.",
                    doi="10.1038/s41592-020-01018-x",
                )
            ],
        )

    def network(self, url: str, state: dict[str, torch.Tensor]) -> ResidualUNet:
        """Build the network with these weights; raise RefusedError if they do not fit or are not all of it."""
        network = ResidualUNet(self.widths, self.kernel)
        weights = {name: value for name, value in state.items() if name not in DIAMETERS}
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise RefusedError(
                f"{url}: these weights do not fit Cellpose's residual network ({lines[min(1, len(lines) - 1)][:200]}); "
                f"{_ADVICE}"
            ) from error
        return network


class ResidualUNet(nn.Module):
    """``cellpose.resnet_torch.CPnet`` of Cellpose 3.1, with its names of parameters.

    Each level has two residual pairs of batch normalisation, ReLU and convolution. The style is the coarsest level's
    mean over the tile, scaled to length 1; all convolutions of the decoder but the first of each level add a linear
    function of it to what they take.

    Parameters
    ----------
    widths, kernel : see `ResidualDesign`

    References
    ----------
    Stringer et al., Nature Methods 2021 (Cellpose), Methods, *Neural network architecture*.
    """

    def __init__(self, widths: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        self.channels, levels = widths[0], widths[1:]
        downs = [_Down(given, made, kernel) for given, made in itertools.pairwise(widths)]
        ups = [_Up(given, made, levels[-1], kernel) for made, given in itertools.pairwise((*levels, levels[-1]))]
        # The names in the files: downsample.down.res_down_0, ...
        self.downsample = nn.ModuleDict({"down": _named("res_down", downs)})
        self.upsample = nn.ModuleDict({"up": _named("res_up", ups)})
        self.style = Style(levels[-1])
        self.output = _convolution(levels[0], _OUTPUTS, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Compute flows and cell probability.

        Parameters
        ----------
        tiles : (batch, channels, y, x) float32, edges a multiple of `ResidualDesign.multiple`

        Returns
        -------
        torch.Tensor
            (batch, 3, y, x): dy and dx, 5 times the unit vector, and the cell's logit.
        """
        stages: list[torch.Tensor] = []
        for down in self.downsample["down"].children():
            stages.append(down(nn.functional.max_pool2d(stages[-1], 2) if stages else tiles))
        style = self.style(stages[-1])[0].flatten(1)
        x = stages[-1]
        for up, stage in zip(reversed([*self.upsample["up"].children()]), reversed(stages), strict=True):
            x = x if x is stage else nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = up(x, stage, style)
        result: torch.Tensor = self.output(x)
        return result


class Style(nn.Module):
    """The style of a tile, in the place of an encoder of segmentation-models-pytorch: its features are the style.

    Attributes
    ----------
    out_channels : its length
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.out_channels = [length]

    def forward(self, stage: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the style.

        Parameters
        ----------
        stage : (batch, features, y, x), the coarsest level

        Returns
        -------
        tuple[torch.Tensor]
            (batch, features, 1, 1) of length 1, alone.
        """
        mean = stage.float().mean(dim=(2, 3), keepdim=True)
        return (nn.functional.normalize(mean, dim=1),)


class ResidualMember(nn.Module):
    """The network as members answer: (batch, 1 or 3, y, x) float32, the cell's logit, then dy, dx."""

    def __init__(self, network: ResidualUNet, channels: int, *, flows: bool) -> None:
        super().__init__()
        self.network = network
        self.encoder = network.style
        self._missing = network.channels - channels
        self._order = [2, 0, 1] if flows else [2]

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Run the network with zeros for channels that the ensemble does not have, and reorder its outputs.

        Parameters
        ----------
        tiles : (batch, channels, y, x) float32

        Returns
        -------
        torch.Tensor
            (batch, 1, y, x) float32, the cell's logit; (batch, 3, y, x) with flows, followed by dy and dx.
        """
        if self._missing:
            tiles = nn.functional.pad(tiles, (0, 0, 0, 0, 0, self._missing))
        return self.network(tiles)[:, self._order].float()  # type: ignore[no-any-return]


class _Down(nn.Module):
    def __init__(self, given: int, made: int, kernel: int) -> None:
        super().__init__()
        self.conv = _named("conv", [_convolution(made if index else given, made, kernel) for index in range(4)])
        self.proj = _projection(given, made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x) + self.conv[1](self.conv[0](x))
        return x + self.conv[3](self.conv[2](x))  # type: ignore[no-any-return]


class _Styled(nn.Module):
    def __init__(self, made: int, style: int, kernel: int) -> None:
        super().__init__()
        self.conv = _convolution(made, made, kernel)
        self.full = nn.Linear(style, made)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        return self.conv(x + self.full(style)[:, :, None, None])  # type: ignore[no-any-return]


class _Up(nn.Module):
    def __init__(self, given: int, made: int, style: int, kernel: int) -> None:
        super().__init__()
        self.conv = _named(
            "conv", [_convolution(given, made, kernel), *(_Styled(made, style, kernel) for _ in range(3))]
        )
        self.proj = _projection(given, made)

    def forward(self, x: torch.Tensor, stage: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        x = self.proj(x) + self.conv[1](self.conv[0](x) + stage, style)
        return x + self.conv[3](self.conv[2](x, style), style)  # type: ignore[no-any-return]


def _named(name: str, modules: Iterable[nn.Module]) -> nn.Sequential:
    """Return modules under the names `name`_0, `name`_1, ..."""
    return nn.Sequential(OrderedDict((f"{name}_{index}", module) for index, module in enumerate(modules)))


def _convolution(given: int, made: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(given), nn.ReLU(), nn.Conv2d(given, made, kernel, padding=kernel // 2))


def _projection(given: int, made: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(given), nn.Conv2d(given, made, 1))
