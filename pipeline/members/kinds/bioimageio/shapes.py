"""Tensors of BioImage.IO packages: accepted tile sizes, order of axes, and sizes of outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.kinds.bioimageio.processing import channel_count

TILES = range(32, 4097)
"""Edges that an ensemble's tile may have."""


@dataclass(frozen=True)
class Port:
    """An input or output tensor of a package.

    Attributes
    ----------
    name : its id
    axes : a letter each: ``b``, ``c``, ``y``, ``x``, and ``1`` for any other axis, which has size 1
    channels : 1 where it has no channel axis
    single : whether it holds one tile at a time
    """

    name: str
    axes: str
    channels: int
    single: bool

    def lay(self, tiles: torch.Tensor) -> torch.Tensor:
        """Arrange tiles in the axes of the package's tensor.

        Parameters
        ----------
        tiles : (batch, channels, y, x); a batch of 1 where the tensor has no batch axis

        Returns
        -------
        torch.Tensor
            The same values, contiguous, with the axes of `axes`.
        """
        letters = "bcyx"
        for letter in "bc":
            if letter not in self.axes:
                tiles, letters = tiles.squeeze(letters.index(letter)), letters.replace(letter, "")
        tiles = tiles.permute([letters.index(letter) for letter in self.axes if letter != "1"])
        for position, letter in enumerate(self.axes):
            if letter == "1":
                tiles = tiles.unsqueeze(position)
        return tiles.contiguous()

    def take(self, answer: torch.Tensor) -> torch.Tensor:
        """Arrange the package's output as (batch, channels, y, x).

        Parameters
        ----------
        answer : with the axes of `axes`

        Returns
        -------
        torch.Tensor
            (batch, channels, y, x), a view; of length 1 where the output has no batch or channel axis.

        Raises
        ------
        RuntimeError
            If the output has another number of axes.
        """
        if answer.ndim != len(self.axes):
            raise RuntimeError(f"output {self.name} has {answer.ndim} axes, not {len(self.axes)}")
        for position in reversed(range(len(self.axes))):
            if self.axes[position] == "1":
                answer = answer.squeeze(position)
        letters = self.axes.replace("1", "")
        for letter in "cb":
            if letter not in letters:
                answer, letters = answer.unsqueeze(0), letter + letters
        return answer.permute([letters.index(letter) for letter in "bcyx"])


def port(where: str, tensor: Any) -> Port:
    """Read the axes of `tensor` (`bioimageio.spec.model.v0_5`); raise RefusedError if it is not two-dimensional."""
    letters, single = "", True
    for axis in tensor.axes:
        if axis.type == "batch":
            letters, single = letters + "b", axis.size == 1
        elif axis.type == "channel":
            letters += "c"
        elif axis.type == "space" and str(axis.id) in ("y", "x"):
            letters += str(axis.id)
        elif _may_be_one(axis.size):
            letters += "1"
        elif axis.type == "space":
            raise RefusedError(
                f"{where}: {tensor.id} has a {axis.id} axis of size {_words(axis.size)}: a 3D model, and members see "
                "planes; use a model of y and x"
            )
        else:
            raise RefusedError(
                f"{where}: {tensor.id} has an axis {axis.id} of size {_words(axis.size)}; members see one "
                "plane at a time"
            )
    if sorted(letters.replace("1", "").replace("b", "").replace("c", "")) != ["x", "y"]:
        raise RefusedError(f"{where}: {tensor.id} has no y and x axes ({letters}); members map tiles to tiles")
    return Port(str(tensor.id), letters, channel_count(tensor), single)


def _may_be_one(size: Any) -> bool:
    if isinstance(size, int):
        return size == 1
    # A reference is to an axis of another tensor, which is looked at there; a size that depends on data may be one.
    return getattr(size, "min", 1) == 1


def _words(size: Any) -> str:
    return str(size) if isinstance(size, int) else f"{size.min} + n * {size.step}" if hasattr(size, "step") else "any"


def check_tile(where: str, inputs: Sequence[Any], tile: int) -> None:
    """Raise RefusedError if tiles of `tile` pixels do not fit the inputs; name the nearest size that does."""
    if tile_fits(inputs, tile):
        return
    nearest = nearest_tile(inputs, tile)
    if nearest is None:
        raise RefusedError(f"{where}: takes no square tiles of {TILES[0]} to {TILES[-1]} pixels; use another model")
    raise RefusedError(
        f"{where}: takes no tiles of {tile} pixels, the nearest that it takes have {nearest}; set `tile: {nearest}` in "
        f"ensemble.yaml or give --tile {nearest}"
    )


def tile_fits(inputs: Sequence[Any], tile: int) -> bool:
    """Return whether every input can have y and x axes of `tile` pixels."""
    axes = _axes(inputs)
    return all(_size(axes, key, tile) == tile for key, axis in axes.items() if axis.type == "space" and key[1] in "yx")


def nearest_tile(inputs: Sequence[Any], tile: int) -> int | None:
    """Return the edge nearest to `tile` that the inputs accept; None if there is none."""
    fitting = [edge for edge in TILES if tile_fits(inputs, edge)]
    return min(fitting, key=lambda edge: abs(edge - tile)) if fitting else None


def check_output(where: str, inputs: Sequence[Any], output: Any, tile: int) -> None:
    """Raise RefusedError if the output is not a scaled tile, for example after convolutions without padding."""
    axes = _axes([*inputs, output])
    for key, axis in axes.items():
        if key[0] != str(output.id) or axis.type != "space" or key[1] not in "yx":
            continue
        offset = getattr(axis.size, "offset", 0)
        size = _size(axes, key, tile)
        if offset or (size is not None and (size == 0 or max(size, tile) % min(size, tile))):
            raise RefusedError(
                f"{where}: output {output.id} has {size} of a tile's {tile} pixels in {key[1]} ({offset} more than its "
                "scale says); tiles must be answered whole: export the network with padded convolutions"
            )


def _axes(tensors: Sequence[Any]) -> dict[tuple[str, str], Any]:
    return {(str(tensor.id), str(axis.id)): axis for tensor in tensors for axis in tensor.axes}


def _size(axes: Mapping[tuple[str, str], Any], key: tuple[str, str], tile: int) -> int | None:
    """Return an axis's size; `tile` for a parametrised one (0 if impossible); None if it depends on the data."""
    axis = axes[key]
    size = axis.size
    if isinstance(size, int):
        return size
    if hasattr(size, "step"):
        return tile if tile >= size.min and (tile - size.min) % size.step == 0 else 0
    if hasattr(size, "tensor_id"):
        other = (str(size.tensor_id), str(size.axis_id))
        reference = _size(axes, other, tile)
        return None if reference is None else int(reference * axes[other].scale / axis.scale) + size.offset
    return None
