"""A network's operations recorded as a CUDA graph, which is launched with a single call.

If calls are small, the CPU launches operations more slowly than a GPU computes them: some hundred operations of a few
microseconds each. A recording is launched at once. It reads its input and writes its answers at the memory addresses of
the recording.
"""

from __future__ import annotations

import torch

from chorus.pipeline.backends.conversion import Run, WithStage
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.inference.oom_splitting import is_out_of_memory


def recorded(network: WithStage, example: torch.Tensor) -> Run:
    """Return the network as a CUDA graph for inputs of the example's shape.

    Parameters
    ----------
    network : to record
    example : (batch, channels, tile, tile) float32, on a GPU

    Raises
    ------
    RefusedError
        If the network, or on this device no network, can be recorded.
    """
    recorder = device_of(example.device).recorder
    if recorder is None:
        raise RefusedError(f"operations on {example.device.type} cannot be recorded; use --backend eager")
    tiles = example.clone(memory_format=torch.channels_last)
    try:
        answers, replay = recorder.record(lambda: network(tiles))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise RefusedError(
            f"PyTorch cannot record {type(network.network).__name__} as a CUDA graph ({first_line(error)}); use "
            f"--backend eager"
        ) from error

    def run(given: torch.Tensor) -> list[torch.Tensor]:
        tiles.copy_(given)
        replay()
        # The next call, also of another network, writes into the same memory.
        return [answer.clone() for answer in answers]

    return run
