"""Common base of exported networks: one input, one or more outputs, and sizes that may be fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from chorus.pipeline.core.geometry import shown_size
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, MemberEntry, ModuleMember
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.weight_file import read, stem

Size = int | None
"""Size of a dimension; None if it may be any."""


class ExportEntry(MemberEntry):
    """A network that was exported with its graph; it must keep a tile's size.

    Attributes
    ----------
    output : which of its outputs, by position or by name
    channels : which channels of that output, in this order; all where it is not given
    layout : of its input and output, channels first or last
    """

    output: Annotated[int, Field(ge=0)] | str = 0
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    layout: Literal["nchw", "nhwc"] = "nchw"

    def given(self, tiles: torch.Tensor) -> torch.Tensor:
        """Arrange tiles in the layout of the network.

        Parameters
        ----------
        tiles : (batch, channels, y, x) or (batch, channels, z, y, x)

        Returns
        -------
        torch.Tensor
            The same for ``nchw``, with the channels last for ``nhwc``.
        """
        return tiles if self.layout == "nchw" else tiles.movedim(1, -1)

    def taken(self, url: str, answer: torch.Tensor) -> torch.Tensor:
        """Select the channels of the chosen output, with channels first.

        Parameters
        ----------
        url : of the file, for messages
        answer : the output in the network's layout

        Returns
        -------
        torch.Tensor
            (batch, outputs, ...) float32.

        Raises
        ------
        RefusedError
            If the output does not have these channels.
        """
        if self.layout == "nhwc" and answer.ndim in (4, 5):
            answer = answer.movedim(-1, 1)
        if self.channels is not None:
            if answer.ndim not in (4, 5) or max(self.channels) >= answer.shape[1]:
                raise RefusedError(
                    f"{url}: its output has shape {tuple(answer.shape)} and no channel {max(self.channels)}; correct "
                    f"the member's channels, output or layout in ensemble.yaml"
                )
            answer = answer[:, list(self.channels)]
        return answer.float()

    def position(self, url: str, names: Sequence[str]) -> int:
        """Return the index of the chosen output among `names`; raise RefusedError if there is no such output."""
        if isinstance(self.output, int) and self.output < len(names):
            return self.output
        if self.output in names:
            return names.index(str(self.output))
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
        raise RefusedError(f"{url}: has no output {self.output}; correct the member's output to one of {known}")

    def chosen(self, url: str, answer: object) -> torch.Tensor:
        """Pick the output from what a network returned: a tensor, several, or several by name.

        Returns
        -------
        torch.Tensor
            The output as the network returned it.

        Raises
        ------
        RefusedError
            If there is no such output, or it is no tensor.
        """
        if isinstance(answer, torch.Tensor):
            answer = (answer,)
        if isinstance(answer, Mapping):
            one = list(answer.values())[self.position(url, [str(name) for name in answer])]
        elif isinstance(answer, tuple | list):
            one = answer[self.position(url, [str(i) for i in range(len(answer))])]
        else:
            one = answer
        if not isinstance(one, torch.Tensor):
            raise RefusedError(
                f"{url}: its output {self.output} is no tensor but {type(one).__name__}; export the network so that "
                f"it returns tensors"
            )
        return one


class SelectedMember(ModuleMember):
    """A torch module of which one output is taken, as its entry says; which there are is known once it is called."""

    def __init__(self, module: torch.nn.Module, device: torch.device, entry: ExportEntry, url: str) -> None:
        super().__init__(module, device, entry.activation)
        self.entry, self.url = entry, url

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Predict a batch; see `chorus.pipeline.members.contract.Member`.

        Raises
        ------
        RefusedError
            If there is no such output.
        """
        answer = self.module(self.entry.given(tiles))
        return self.entry.taken(self.url, self.entry.chosen(self.url, answer))


@dataclass(frozen=True)
class InputShape:
    """Sizes that a network was exported for.

    Attributes
    ----------
    batch : tiles at once
    """

    batch: Size

    @classmethod
    def checked(cls, url: str, shape: Sequence[Size], entry: ExportEntry, asked: LoadRequest) -> InputShape:
        """Check the input's dimensions; raise RefusedError if they are not those of the ensemble's tiles."""
        if len(shape) != 2 + len(asked.shape):
            raise RefusedError(f"{url}: takes {len(shape)} dimensions, {_wanted(len(shape), len(asked.shape))}")
        batch, *rest = shape
        channels, size = (rest[0], rest[1:]) if entry.layout == "nchw" else (rest[-1], rest[:-1])
        if batch not in (None, 1):
            raise RefusedError(f"{url}: takes {batch} tiles at once; export it for one, or for any number")
        if channels not in (None, asked.channels):
            raise RefusedError(
                f"{url}: takes {channels} channels, ensemble.yaml has {asked.channels}; correct input.channels, or the "
                f"member's layout where channels come last"
            )
        if any(length not in (None, own) for length, own in zip(size, asked.shape, strict=True)):
            own_size = " x ".join("any" if length is None else str(length) for length in size)
            raise RefusedError(
                f"{url}: takes tiles of {own_size} pixels, not {shown_size(asked.tile)}; set the tile to that, or "
                f"export it for any size"
            )
        return cls(batch)

    def batches(self, tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split tiles into the batches that the network accepts.

        Parameters
        ----------
        tiles : (batch, channels, ...)

        Returns
        -------
        tuple[torch.Tensor, ...]
            One tile each if the network takes only one at once, else all together.
        """
        return torch.split(tiles, 1) if self.batch == 1 else (tiles,)


def _wanted(dimensions: int, axes: int) -> str:
    """Say what a network with another number of dimensions needs, for an ensemble with so many axes."""
    if dimensions == 5 and axes == 2:
        return "not (batch, channels, y, x): it is a network of volumes; set `input.axes: zyx` in ensemble.yaml"
    if dimensions == 4 and axes == 3:
        return "not (batch, channels, z, y, x): it is a network of planes; set `input.axes: yx` in ensemble.yaml"
    names = "z, y, x" if axes == 3 else "y, x"
    return f"not (batch, channels, {names}); export the {axes}D network with a batch dimension"


def describe_export(entry: type[ExportEntry], kind: str, url: str) -> tuple[ModelDescription, ...]:
    """Describe the exported network at `url` as a member; its file holds nothing else that an ensemble needs."""
    member = entry(kind=kind, weights=url, sha256=hashlib.sha256(read(url)).hexdigest())
    return (ModelDescription(entry=member, name=stem(url)),)
