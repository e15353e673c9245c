"""Tiles per call of a member: a batch, or fewer after a call ran out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.retries import RETRIES

Answer = tuple[torch.Tensor, torch.Tensor]
"""Outputs of all views of some tiles, (views x tiles, channels, y, x), and their features, (tiles, features)."""

# Messages of libraries that raise a plain RuntimeError: torch on a CPU and on MPS, cuBLAS, Level Zero, and ONNX
# Runtime, within TorchScript or outside.
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
    """Return whether an error means that the device or the machine ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _SAID)


class OomSplitter:
    """Call members with batches of tiles, split into equal parts that shrink when memory runs out, and stay small.

    Parameters
    ----------
    batch : tiles per batch, and per call at first
    views : per tile
    short : called each time that a call ran out of memory
    """

    def __init__(self, batch: int, views: int, short: Callable[[], None] | None = None) -> None:
        self.tiles = batch
        self._batch, self._views, self._short = batch, views, short

    def answer(self, ask: Callable[[torch.Tensor], Answer], views: torch.Tensor) -> Answer:
        """Return what `ask` answers for all views, in one call or in several smaller ones.

        Parameters
        ----------
        ask : called with the views of one part
        views : (views x batch, channels, y, x) float32, all tiles of one view after those of another

        Returns
        -------
        Answer
            Outputs, (views x batch, channels, y, x), and features, (batch, features) int64.

        Raises
        ------
        torch.OutOfMemoryError, RuntimeError, MemoryError
            If there is too little memory even for the smallest part.
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
            # Outside of the except clause, in which the error still refers to the tensors computed so far.
            self.tiles = max(RETRIES.memory_least_tiles, self.tiles // RETRIES.memory_divisor)
            log.warning("out of memory: members now get %d of %d tiles a call", self.tiles, self._batch)
            device_of(views.device).release_memory()

    def _parts(self, views: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield parts of one shape; the last is padded with zeros, so that a tile's bits ignore its position."""
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
