"""A network's operations recorded as a CUDA graph, which a GPU carries out without being told each of them.

Where a call is small, a processor tells a GPU less than it could do: some hundred operations of a few microseconds. A
recording is launched at once. It reads its input and writes its answers where it did when it was recorded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from chorus.pipeline.backends.conversion import Run, WithStage
from chorus.pipeline.errors import RefusedError, first_line
from chorus.pipeline.inference.oom_splitting import is_out_of_memory

# Calls before the recording, in which libraries choose their algorithms and get their memory.
_WARMING = 3


def recorded(network: WithStage, example: torch.Tensor) -> Run:
    """The network on a GPU for inputs of the example's shape; raises RefusedError where it cannot be recorded."""
    tiles = example.clone(memory_format=torch.channels_last)
    computing = torch.cuda.current_stream(example.device)
    aside = torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]
    aside.wait_stream(computing)
    with torch.cuda.stream(aside):
        for _ in range(_WARMING):
            network(tiles)
    computing.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may go on with what they do on the device.
        with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
            answers = network(tiles)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise RefusedError(
            f"PyTorch cannot record {type(network.network).__name__} as a CUDA graph ({first_line(error)}); use "
            f"--backend eager"
        ) from error

    def run(given: torch.Tensor) -> list[torch.Tensor]:
        tiles.copy_(given)
        graph.replay()
        # The next call, also of another network, writes into the same memory.
        return [answer.clone() for answer in answers]

    return run


@cache
def _pool() -> Any:
    """Memory that all recordings share: one is carried out after the other."""
    return torch.cuda.graph_pool_handle()
