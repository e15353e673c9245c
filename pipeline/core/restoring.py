"""What a flip or turn does to quantities beyond moving them: vectors turn, rays and offsets change places.

A flip or turn is given by `Turn`: for each axis of the original orientation the component of the augmented tile that it
is, and its sign. That is the inverse of its linear part, a signed permutation, for any number of axes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from chorus.pipeline.core.outputs import Output

Turn = tuple[tuple[int, int], ...]
Vector = tuple[float, ...]
Source = tuple[int, bool]
"""A channel, and whether its vector turned around."""

_SAME = 1e-6


def restored(moved: torch.Tensor, output: Output, turn: Turn) -> torch.Tensor:
    """Restore the values of an augmented tile whose positions were moved back already.

    Affinities are of pairs of pixels. Where an offset turns around, a pair is found at its other pixel, so that the
    channel is shifted by the offset. Pairs that reach beyond the tile are undefined in every orientation; they take the
    nearest value of a pair that does not.

    Parameters
    ----------
    moved : (..., channels, *spatial) of any dtype
    output : that the channels are of
    turn : of the augmentation, one entry per spatial axis

    Returns
    -------
    torch.Tensor
        Same shape and dtype.

    Raises
    ------
    ValueError
        If the augmentation turns a ray or an offset into one that the output lacks, see `refusal`.
    """
    channel_axis = -len(turn) - 1
    if output.symmetry == "scalar" or _still(turn):
        return moved
    channels = moved.unbind(channel_axis)
    if output.symmetry == "vector":
        return torch.stack([channels[of] if sign > 0 else -channels[of] for of, sign in turn], dim=channel_axis)
    sources = _sources(output.vectors, turn, either=output.symmetry == "offsets")
    if sources is None:
        raise ValueError(f"{output.role.name}: not closed under {turn}")
    parts = [
        _shifted(channels[of], output.vectors[index]) if around else channels[of]
        for index, (of, around) in enumerate(sources)
    ]
    return torch.stack(parts, dim=channel_axis)


def refusal(output: Output, turn: Turn) -> str:
    """Return why an output cannot be restored after an augmentation, for a message; empty if it can."""
    if output.symmetry in ("scalar", "vector"):
        return ""
    if output.symmetry == "rays" and _sources(output.vectors, turn, either=False) is None:
        return f"it turns a ray into a direction that none of the {len(output.vectors)} rays has"
    if output.symmetry == "offsets" and _sources(output.vectors, turn, either=True) is None:
        return "it turns an offset into one that is not among the offsets"
    return ""


def _still(turn: Turn) -> bool:
    return all(of == axis and sign > 0 for axis, (of, sign) in enumerate(turn))


@lru_cache(maxsize=256)
def _sources(vectors: tuple[Vector, ...], turn: Turn, *, either: bool) -> tuple[Source, ...] | None:
    """Return for each vector the one of the augmented tile that it is; None if there is none for one of them.

    Parameters
    ----------
    either : whether a vector may also have turned around
    """
    turned = [tuple(sign * vector[of] for of, sign in turn) for vector in vectors]
    sources: list[Source] = []
    for vector in vectors:
        back = tuple(-component for component in vector)
        same = next((index for index, one in enumerate(turned) if math.dist(one, vector) < _SAME), None)
        around = next((index for index, one in enumerate(turned) if either and math.dist(one, back) < _SAME), None)
        if same is not None:
            sources.append((same, False))
        elif around is not None:
            sources.append((around, True))
        else:
            return None
    return tuple(sources)


def _shifted(values: torch.Tensor, offset: Vector) -> torch.Tensor:
    """Return at each pixel the value of the pixel at `offset`; the nearest one within the tile where that is beyond it.

    Parameters
    ----------
    values : (..., *spatial)
    offset : in pixels, whole numbers, along the spatial axes
    """
    for axis, step in enumerate(offset, -len(offset)):
        if step:
            length = values.shape[axis]
            index = (torch.arange(length, device=values.device) + int(step)).clamp_(0, length - 1)
            values = values.index_select(axis, index)
    return values
