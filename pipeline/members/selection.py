"""Common base of exported networks: one input, one or more outputs, and sizes that may be fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, MemberEntry
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
        tiles : (batch, channels, y, x)

        Returns
        -------
        torch.Tensor
            The same for ``nchw``, (batch, y, x, channels) for ``nhwc``.
        """
        return tiles if self.layout == "nchw" else tiles.permute(0, 2, 3, 1)

    def taken(self, url: str, answer: torch.Tensor) -> torch.Tensor:
        """Select the channels of the chosen output, with channels first.

        Parameters
        ----------
        url : of the file, for messages
        answer : the output in the network's layout

        Returns
        -------
        torch.Tensor
            (batch, outputs, y, x) float32.

        Raises
        ------
        RefusedError
            If the output does not have these channels.
        """
        if self.layout == "nhwc" and answer.ndim == 4:
            answer = answer.permute(0, 3, 1, 2)
        if self.channels is not None:
            if answer.ndim != 4 or max(self.channels) >= answer.shape[1]:
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
        """Check the input's dimensions; raise RefusedError if they are not those of the ensemble's 2D tiles."""
        if len(shape) != 4:
            raise RefusedError(
                f"{url}: takes {len(shape)} dimensions, not (batch, channels, y, x); export the 2D network with a "
                f"batch dimension"
            )
        batch, first, second, third = shape
        channels, size = (first, (second, third)) if entry.layout == "nchw" else (third, (first, second))
        if batch not in (None, 1):
            raise RefusedError(f"{url}: takes {batch} tiles at once; export it for one, or for any number")
        if channels not in (None, asked.channels):
            raise RefusedError(
                f"{url}: takes {channels} channels, ensemble.yaml has {asked.channels}; correct input.channels, or the "
                f"member's layout where channels come last"
            )
        if any(length not in (None, asked.tile) for length in size):
            raise RefusedError(
                f"{url}: takes tiles of {size[0]} x {size[1]} pixels, not {asked.tile}; set the tile to that, or "
                f"export it for any size"
            )
        return cls(batch)

    def batches(self, tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split tiles into the batches that the network accepts.

        Parameters
        ----------
        tiles : (batch, channels, y, x)

        Returns
        -------
        tuple[torch.Tensor, ...]
            One tile each if the network takes only one at once, else all together.
        """
        return torch.split(tiles, 1) if self.batch == 1 else (tiles,)


def describe_export(entry: type[ExportEntry], kind: str, url: str) -> tuple[ModelDescription, ...]:
    """Describe the exported network at `url` as a member; its file holds nothing else that an ensemble needs."""
    member = entry(kind=kind, weights=url, sha256=hashlib.sha256(read(url)).hexdigest())
    return (ModelDescription(entry=member, name=stem(url)),)
