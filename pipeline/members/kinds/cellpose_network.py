"""Members that are networks of Cellpose, of any version: cell probability and flows, with its own normalisation."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from chorus.pipeline.core.devices import fp32_policy_kept
from chorus.pipeline.core.outputs import CLASSES, FLOWS
from chorus.pipeline.core.provenance import About, Citation, DataReference
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage_failures import failure_sentence
from chorus.pipeline.members.contract import LoadRequest, Member, MemberEntry, ModuleMember, fetch_weights
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.kind import MemberKind
from chorus.pipeline.members.kinds import cellpose_residual
from chorus.pipeline.members.kinds.cellpose_residual import ResidualDesign, ResidualMember
from chorus.pipeline.members.kinds.cellpose_size import SIZE_SUFFIX, SizeModel, read_size_model, size_model_url
from chorus.pipeline.members.outputs import ClassesOutput, FlowsOutput
from chorus.pipeline.members.safety.pickles import load_tensors
from chorus.pipeline.members.weight_file import WeightFile
from chorus.pipeline.preprocessing.normalisation import ChannelScaling, apply
from chorus.pipeline.preprocessing.preparation import Measure, Preparation, Statistics

_MOST_CHANNELS = 3
# A channel whose percentiles are closer than this becomes zero (cellpose.transforms.normalize99).
_LEAST_SPREAD = 1e-3
_LOW, _HIGH = 1.0, 99.0
# Parameters of the file that the network does not compute with: mean diameters, always 30 in Cellpose 4.
_DIAMETERS = {"diam_labels", "diam_mean"}
_DIAMETER = 30.0
# Of every network of Cellpose 4, whatever its backbone.
_NAMES = {"W2", "encoder.patch_embed.proj.weight"}
_DINO_TILE = 384  # what CellposeModel.eval takes; others do as well


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
        state = _state_dict(url, fetch_weights(url, self.sha256, beside=asked.beside))
        if state.keys() >= cellpose_residual.NAMES:
            return _residual(asked, state, device)
        design = Design.of(url, state)
        if not design.takes(asked.edge):
            raise RefusedError(
                f"{url}: this Cellpose network takes tiles of {design.tiles}, not {asked.edge}; set `tile: "
                f"{design.tile}` in ensemble.yaml and leave out --tile"
            )
        network = _network(url, state, design)
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


def describe(url: str) -> ModelDescription:
    """Describe a file of Cellpose as a member, reading all of it; raise RefusedError if it is none."""
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise RefusedError(f"weights {failure_sentence(error, url) or url}; give a file or a URL") from error
    state = _state_dict(url, data)
    size = size_model_url(url) if storage.exists(size_model_url(url)) else None
    if size is not None:
        of_size = storage.read_bytes(size)
        read_size_model(size, of_size)
    entry = CellposeMember(
        kind="cellpose",
        weights=url,
        sha256=hashlib.sha256(data).hexdigest(),
        size_sha256=None if size is None else hashlib.sha256(of_size).hexdigest(),
    )
    if state.keys() >= cellpose_residual.NAMES:
        residual = ResidualDesign.of(url, state)
        return _described(entry, residual.about, cellpose_residual.TILE, residual.diameter_px)
    design = Design.of(url, state)
    about = About(
        description=f"A network of Cellpose 4 ({design.backbone}): cell probability and flows.",
        limits=(
            "Cellpose's own weights (cpsam, cpsam_v2, cpdino), and so what was fine-tuned from them, were trained on "
            "data licensed under CC-BY-NC: clear commercial use with their authors."
        ),
        data=[DataReference(name="Cellpose-SAM", url="https://github.com/MouseLand/cellpose", licence="CC-BY-NC")],
        cite=[
            Citation(
                text="Pachitariu, Rariden and Stringer. Cellpose-SAM: superhuman generalization for cellular "
                "segmentation. bioRxiv, 2025.",
                doi="10.1101/2025.04.28.651001",
            )
        ],
    )
    return _described(entry, about, design.tile, _DIAMETER)


def _described(entry: CellposeMember, about: About, tile: int, diameter: float) -> ModelDescription:
    return ModelDescription(
        entry=entry,
        name=storage.basename(entry.weights),
        classes=["background", "cell"],
        activation="sigmoid",
        outputs=(ClassesOutput(), FlowsOutput()),
        tile=tile,
        diameter_px=diameter,
        about=about,
    )


def import_cellpose(part: str) -> Any:
    """Import a module of the optional Cellpose package; raise RefusedError if it is not installed."""
    try:
        with fp32_policy_kept():  # it lets fp32 mean TF32 for the whole process when it is imported
            return importlib.import_module(f"cellpose.{part}")
    except ImportError as error:
        raise RefusedError(
            f"Cellpose is not installed ({error}); install it with `pip install 'chorus-bioimage[cellpose]'`"
        ) from error


def _state_dict(url: str, data: bytes) -> dict[str, torch.Tensor]:
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


def _network(url: str, state: dict[str, torch.Tensor], design: Design) -> torch.nn.Module:
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
        mean = {key: torch.tensor([_DIAMETER]) for key in _DIAMETERS if key not in state}
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


def _recognises(file: WeightFile) -> bool:
    names = {name.removeprefix("module.") for name in file.strings}
    return not file.code and (names >= _NAMES or names >= cellpose_residual.NAMES)


KIND = MemberKind(
    entry=CellposeMember,
    describe=lambda url, _: (describe(url),),
    recognises=_recognises,
)
