"""State dicts of Cellpose 1 to 3 with weights of a seed, as ``cellpose.resnet_torch.CPnet`` names them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

NARROW = (2, 8, 16)
"""Channels of the input and of each level; published networks have (2, 32, 64, 128, 256)."""


def residual_state(
    seed: int = 0, widths: tuple[int, ...] = NARROW, outputs: int = 3, diameter: float = 30.0, trained: float = 22.5
) -> dict[str, torch.Tensor]:
    """Return the state dict of a network whose answers tell places and styles apart."""
    rng = np.random.RandomState(seed)

    def numbers(mean: float, spread: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy((mean + spread * rng.standard_normal(shape)).astype(np.float32))

    state: dict[str, torch.Tensor] = {}
    for name, shape in _layers(widths, outputs):
        if len(shape) == 1:  # batch normalisation
            state[f"{name}.weight"] = numbers(1.0, 0.1, *shape)
            state[f"{name}.bias"] = numbers(0.1, 0.1, *shape)
            state[f"{name}.running_mean"] = numbers(0.0, 0.2, *shape)
            state[f"{name}.running_var"] = numbers(1.0, 0.1, *shape).abs()
            state[f"{name}.num_batches_tracked"] = torch.tensor(100)
            continue
        gain = 6.0 if name == "output.2" else 1.0
        state[f"{name}.weight"] = numbers(0.0, gain * np.prod(shape[1:]) ** -0.5, *shape)
        state[f"{name}.bias"] = numbers(0.0, 0.1, shape[0])
    return state | {"diam_mean": torch.tensor([diameter]), "diam_labels": torch.tensor([trained])}


def _layers(widths: tuple[int, ...], outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each layer: (channels,) of a normalisation, else that of the weights."""
    for level, (given, made) in enumerate(itertools.pairwise(widths)):
        start = f"downsample.down.res_down_{level}"
        for index in range(4):
            into = made if index else given
            yield f"{start}.conv.conv_{index}.0", (into,)
            yield f"{start}.conv.conv_{index}.2", (made, into, 3, 3)
        yield f"{start}.proj.0", (given,)
        yield f"{start}.proj.1", (made, given, 1, 1)
    levels = widths[1:]
    for level, (made, given) in enumerate(itertools.pairwise((*levels, levels[-1]))):
        start = f"upsample.up.res_up_{level}"
        yield f"{start}.conv.conv_0.0", (given,)
        yield f"{start}.conv.conv_0.2", (made, given, 3, 3)
        for index in range(1, 4):
            yield f"{start}.conv.conv_{index}.conv.0", (made,)
            yield f"{start}.conv.conv_{index}.conv.2", (made, made, 3, 3)
            yield f"{start}.conv.conv_{index}.full", (made, levels[-1])
        yield f"{start}.proj.0", (given,)
        yield f"{start}.proj.1", (made, given, 1, 1)
    yield "output.0", (levels[0],)
    yield "output.2", (outputs, levels[0], 1, 1)
