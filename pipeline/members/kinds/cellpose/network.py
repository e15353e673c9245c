"""The networks of Cellpose 4, built by the Cellpose package: cell probability and flows."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch

from chorus.pipeline.core.devices import fp32_policy_kept
from chorus.pipeline.errors import RefusedError

# Parameters of the file that the network does not compute with: mean diameters, always 30 in Cellpose 4.
_DIAMETERS = {"diam_labels", "diam_mean"}
DIAMETER_PX = 30.0
# Of every network of Cellpose 4, whatever its backbone.
NAMES = {"W2", "encoder.patch_embed.proj.weight"}
_DINO_TILE = 384  # what CellposeModel.eval takes; others do as well


class CellposeNetwork(torch.nn.Module):
    """A network of Cellpose as members answer: (batch, 1 or 3, y, x) float32, the cell's logit, then dy, dx."""

    def __init__(self, network: torch.nn.Module, dtype: torch.dtype, *, flows: bool) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype
        # Cellpose's last three are dy, dx, cell; a network with more, which it ignores too, has those before them.
        self._order = [-1, -3, -2] if flows else [-1]

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Run the network and reorder its outputs.

        Parameters
        ----------
        tiles : (batch, channels, y, x) float32, at most three channels

        Returns
        -------
        torch.Tensor
            (batch, 1, y, x) float32, the cell's logit; (batch, 3, y, x) with flows, followed by dy and dx.
        """
        # With fewer channels than three it uses the weights of the first ones: as if the others were zero.
        outputs: torch.Tensor = self.network(tiles.to(self._dtype))[0]
        return outputs[:, self._order].to(torch.float32)


@dataclass(frozen=True)
class Design:
    """Properties of a network that are inferred from its state dict.

    Attributes
    ----------
    backbone : SAM's ViT-L, or DINOv3's ViT-L or ViT-B
    patch : edge of a token in pixels
    outputs : channels, of which the last three count
    tile : edge in pixels; for DINOv3 the usual one, any multiple of `patch` will do
    """

    backbone: Literal["sam_vitl", "dino_vitl", "dino_vitb"]
    patch: int
    outputs: int
    tile: int
    dtype: torch.dtype

    @classmethod
    def of(cls, url: str, state: dict[str, torch.Tensor]) -> Design:
        """Infer the design from a state dict; raise RefusedError if it is not that of a Cellpose 4 network."""
        missing = [key for key in ("W2", "out.weight", "encoder.patch_embed.proj.weight") if key not in state]
        if missing or state["W2"].ndim != 4:
            raise RefusedError(
                f"{url}: no network of Cellpose that Chorus knows (neither {(missing or ['W2'])[0]} of Cellpose 4 nor "
                "the residual blocks of older ones); take cyto3, cpsam_v2, cpdino or a file fine-tuned from them"
            )
        outputs, patch = state["W2"].shape[1:3]
        dtype = state["out.weight"].dtype
        if "encoder.cls_token" in state:
            wide = state["encoder.patch_embed.proj.weight"].shape[0] == 1024
            return cls("dino_vitl" if wide else "dino_vitb", patch, outputs, _DINO_TILE, dtype)
        if "encoder.pos_embed" not in state:
            raise RefusedError(f"{url}: not a network of Cellpose 4 (no encoder.pos_embed); fetch the file again")
        return cls("sam_vitl", patch, outputs, state["encoder.pos_embed"].shape[1] * patch, dtype)

    @property
    def tiles(self) -> str:
        """The sizes of tiles that it takes, in words."""
        return f"{self.tile}" if self.backbone == "sam_vitl" else f"a multiple of {self.patch}"

    def takes(self, tile: int) -> bool:
        """Return whether tiles fit: SAM's positional embedding has one size, DINOv3 needs multiples of the patch."""
        return tile == self.tile if self.backbone == "sam_vitl" else tile % self.patch == 0


def import_cellpose(part: str) -> Any:
    """Import a module of the optional Cellpose package; raise RefusedError if it is not installed."""
    try:
        with fp32_policy_kept():  # it lets fp32 mean TF32 for the whole process when it is imported
            return importlib.import_module(f"cellpose.{part}")
    except ImportError as error:
        raise RefusedError(
            f"Cellpose is not installed ({error}); install it with `pip install 'chorus-bioimage[cellpose]'`"
        ) from error


def build_network(url: str, state: dict[str, torch.Tensor], design: Design) -> torch.nn.Module:
    """Build Cellpose's own network class with these weights, in their dtype."""
    if design.backbone != "sam_vitl" and importlib.util.find_spec("dinov3") is None:
        raise RefusedError(
            f"{url}: a network with DINOv3's backbone, which is not installed; install it with "
            "`pip install git+https://github.com/facebookresearch/dinov3`"
        )
    vit = import_cellpose("vit")
    sizes = {"ps": design.patch, "nout": design.outputs}
    try:
        if design.backbone == "sam_vitl":
            with torch.device("meta"):  # no 1.2 GB of random numbers that the weights then replace
                network: torch.nn.Module = vit.CPSAM(bsize=design.tile, **sizes)
        else:
            network = vit.CPDINO(model_name=design.backbone.removeprefix("dino_"), **sizes)
        mean = {key: torch.tensor([DIAMETER_PX]) for key in _DIAMETERS if key not in state}
        # What the file has beyond the network is left aside, as Cellpose does; what it lacks is not made up.
        missing = network.load_state_dict(state | mean, strict=False, assign=True).missing_keys
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RefusedError(
            f"{url}: these weights do not fit Cellpose's {design.backbone} ({lines[min(1, len(lines) - 1)][:200]}); "
            "take a file that Cellpose 4 saved"
        ) from error
    absent = sorted(set(missing) & {name for name, _ in network.named_parameters()})
    if absent:
        raise RefusedError(f"{url}: lacks {len(absent)} of the network's weights ({absent[0]}, ...); fetch it again")
    return network.to(design.dtype)
