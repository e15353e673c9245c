"""How many tiles a call of a member gets: a batch, or less where that takes more memory than there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.retries import RETRIES

Answer = tuple[torch.Tensor, torch.Tensor]
"""Outputs of all views of some tiles, (views x tiles, channels, y, x), and their features, (tiles, features)."""

# What libraries say that have no type for it: torch on a CPU and on MPS, cuBLAS, Level Zero, and ONNX Runtime, in
# TorchScript or outside.
_SAID = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Failed to allocate memory",
    "OUT_OF_DEVICE_MEMORY",
    "OUT_OF_HOST_MEMORY",
)
log = logging.getLogger("chorus")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


class Calls:
    """Calls members with batches of tiles, in equal parts that get smaller when memory is short, and stay so.

    Parameters
    ----------
    batch : tiles that come at once, and that a call gets at first
    views : of each tile
    short : told each time that there was too little memory
    """

    def __init__(self, batch: int, views: int, short: Callable[[], None] | None = None) -> None:
        self.tiles = batch
        self._batch, self._views, self._short = batch, views, short

    def answer(self, ask: Callable[[torch.Tensor], Answer], views: torch.Tensor) -> Answer:
        """What `ask` says of `views`, (views x batch, channels, y, x), those of one view after those of another.

        Raises
        ------
        torch.OutOfMemoryError, RuntimeError, MemoryError
            If there is too little memory for the fewest tiles.
        """
        while True:
            try:
                return self._joined([ask(part) for part in self._parts(views)])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._short is not None:
                    self._short()
                if self.tiles <= RETRIES.memory_least_tiles:
                    raise
            # Not in the clause above, where the error still holds what was computed so far.
            self.tiles = max(RETRIES.memory_least_tiles, self.tiles // RETRIES.memory_divisor)
            log.warning("out of memory: members now get %d of %d tiles a call", self.tiles, self._batch)
            device_of(views.device).release_memory()

    def _parts(self, views: torch.Tensor) -> Iterator[torch.Tensor]:
        """All of one shape: the last is filled up with zeros, so that a tile's bits do not depend on its place."""
        if self.tiles == self._batch:
            yield views
            return
        by_tile = views.reshape(self._views, self._batch, *views.shape[1:])
        for first in range(0, self._batch, self.tiles):
            part = by_tile[:, first : first + self.tiles]
            if part.shape[1] < self.tiles:
                missing = self.tiles - part.shape[1]
                part = torch.cat([part, part.new_zeros((self._views, missing, *part.shape[2:]))], dim=1)
            yield part.flatten(0, 1)

    def _joined(self, answers: list[Answer]) -> Answer:
        if len(answers) == 1:
            return answers[0]
        outputs = torch.cat([one.reshape(self._views, self.tiles, *one.shape[1:]) for one, _ in answers], dim=1)
        features = torch.cat([one for _, one in answers])
        return outputs[:, : self._batch].flatten(0, 1), features[: self._batch]
