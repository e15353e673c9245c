"""Statistics of whole images by sketches, which are updated block by block and merged in any order.

They are exact, so every partition of the image gives the same bits::

    sketch = Moments.begin(channels)           or RadixSearch.begin(percents, channels, dtype)
    while it is not a tuple of values:         one pass over the image each time, two at most
        update(block) ..., merge(other) ...
        sketch = sketch.conclude()

Statistics are those of the float32 values that normalisation works on: integers of 32 bits and more, and float64, are
rounded to float32 first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError

_HALF = 16
_BUCKETS = 1 << _HALF
# float32 values are whole multiples of 2^-149.
_UNIT_BITS = 149
_SIGN = 1 << 31
# Pixels per piece: few enough for the cache, and for float64 sums of products of mantissas to be exact.
_PIECE = 1 << 18


# Per channel, in the order that the sketch defines.
Values = tuple[tuple[float, ...], ...]
Corner = tuple[int, int, int, int]
"""Index (t, z, y, x) of a block's first pixel in the image."""
ORIGIN: Corner = (0, 0, 0, 0)


class Sketch(Protocol):
    """The data that one pass over an image collects. `merge` is associative and commutative, to the bit."""

    def update(self, block: NDArray[Any], corner: Corner = ORIGIN) -> None:
        """Add the pixels of a block.

        Parameters
        ----------
        block : (channels, y, x) of any real dtype
        corner : where it lies, for statistics that depend on that
        """

    def merge(self, other: Self) -> Self:
        """Return the sketch of both sketches' pixels; neither is changed."""

    def conclude(self) -> Sketch | Values:
        """Return the results, or the empty sketch for another pass over the same pixels."""


@dataclass
class Moments:
    """Sums for mean and standard deviation (population), as exact Python integers.

    Attributes
    ----------
    pixels : number of pixels per channel
    total : per channel, sum of the values in units of 2^-149, of which every float32 is a multiple
    squares : per channel, sum of their squares in units of 2^-298
    """

    pixels: int
    total: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def begin(cls, channels: int) -> Moments:
        """Return an empty sketch."""
        return cls(0, (0,) * channels, (0,) * channels)

    def update(self, block: NDArray[Any], corner: Corner = ORIGIN) -> None:
        """Add the pixels of a block.

        Parameters
        ----------
        block : (channels, y, x) of any real dtype
        corner : not used

        Raises
        ------
        ImageError
            If a value is NaN, infinite or too large for float32.
        """
        sums = [[_exact_sums(piece) for piece in _pieces(channel)] for channel in block]
        self.total = tuple(a + sum(s for s, _ in b) for a, b in zip(self.total, sums, strict=True))
        self.squares = tuple(a + sum(q for _, q in b) for a, b in zip(self.squares, sums, strict=True))
        self.pixels += block[0].size

    def merge(self, other: Moments) -> Moments:
        """Return the sketch of both sketches' pixels; neither is changed."""
        return Moments(
            self.pixels + other.pixels,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def conclude(self) -> Values:
        """Return mean and standard deviation of each channel."""
        sums = zip(self.total, self.squares, strict=True)
        return tuple(mean_and_std(self.pixels, total, squares) for total, squares in sums)


def mean_and_std(pixels: int, total: int, squares: int) -> tuple[float, float]:
    """Return mean and population standard deviation from exact sums; see `Moments` for their units."""
    # True division of Python integers is rounded once, however large they are.
    variance = (pixels * squares - total * total) / (pixels * pixels << 2 * _UNIT_BITS)
    return total / (pixels << _UNIT_BITS), math.sqrt(variance)


@dataclass
class RadixSearch:
    """Percentiles by a radix search on order-preserving keys of the values (see `_keys`), 16 bits per pass.

    The first pass counts pixels by the leading 16 bits of their key; the second counts the pixels whose leading bits
    are those of a percentile by the trailing 16 bits. Integers of 8 and 16 bits have 16-bit keys and need one pass.

    Attributes
    ----------
    percents : percentiles to find, 0 to 100
    dtype : of the pixels
    shift : number of key bits below those that this pass counts by, 16 or 0
    counts : per channel, by prefix of the key (bits above those that are counted by): (65536,) int64
    sought : per channel, (prefix, rank among its pixels) of the two neighbours of each percentile in turn; None in
        the first pass
    pixels : number of pixels per channel, so far
    """

    percents: tuple[float, ...]
    dtype: np.dtype[Any]
    shift: int
    counts: tuple[dict[int, NDArray[np.int64]], ...]
    sought: tuple[tuple[tuple[int, int], ...], ...] | None = None
    pixels: int = 0

    @classmethod
    def begin(cls, percents: tuple[float, ...], channels: int, dtype: np.dtype[Any]) -> RadixSearch:
        """Return an empty sketch for the first pass over pixels of `dtype`."""
        counts = tuple({0: np.zeros(_BUCKETS, np.int64)} for _ in range(channels))
        return cls(percents, dtype, 0 if _is_short(dtype) else _HALF, counts)

    def update(self, block: NDArray[Any], corner: Corner = ORIGIN) -> None:
        """Add the pixels of a block.

        Parameters
        ----------
        block : (channels, y, x) of the sketch's dtype
        corner : not used

        Raises
        ------
        ValueError
            If the block has another dtype.
        ImageError
            If a value is NaN, infinite or too large for float32.
        """
        if block.dtype != self.dtype:
            raise ValueError(f"a block of {block.dtype} in an image of {self.dtype}")
        for counts, channel in zip(self.counts, block, strict=True):
            for piece in _pieces(channel):
                keys = _keys(piece)
                prefixes = keys >> (self.shift + _HALF)
                for prefix, row in counts.items():
                    digits = (keys[prefixes == prefix] >> self.shift) & (_BUCKETS - 1)
                    row += np.bincount(digits, minlength=_BUCKETS)
        self.pixels += block[0].size

    def merge(self, other: RadixSearch) -> RadixSearch:
        """Return the sketch of both sketches' pixels in the same pass; neither is changed."""
        counts = tuple(
            {prefix: row + theirs[prefix] for prefix, row in ours.items()}
            for ours, theirs in zip(self.counts, other.counts, strict=True)
        )
        return replace(self, counts=counts, pixels=self.pixels + other.pixels)

    def conclude(self) -> RadixSearch | Values:
        """Return the percentiles of each channel, or the sketch for the second pass."""
        neighbours = tuple((0, rank) for q in self.percents for rank in self._position(q)[:2])
        sought = self.sought or (neighbours,) * len(self.counts)
        percentiles = tuple(
            tuple(_descend(counts[prefix], prefix, rank) for prefix, rank in channel)
            for counts, channel in zip(self.counts, sought, strict=True)
        )
        if self.shift == 0:
            return tuple(self._between([key for key, _ in channel]) for channel in percentiles)
        wanted = tuple({prefix: np.zeros(_BUCKETS, np.int64) for prefix, _ in channel} for channel in percentiles)
        return RadixSearch(self.percents, self.dtype, self.shift - _HALF, wanted, percentiles)

    def _position(self, percent: float) -> tuple[int, int, float]:
        """Return the ranks of a percentile's two neighbours, and its position between them, 0 to 1."""
        position = (self.pixels - 1) * (percent / 100)
        below = math.floor(position)
        return below, min(below + 1, self.pixels - 1), position - below

    def _between(self, keys: list[int]) -> tuple[float, ...]:
        """Return the percentiles of a channel from the keys of their two neighbours, linear between them in float64."""
        values = _values(np.asarray(keys), self.dtype)
        fractions = [self._position(percent)[2] for percent in self.percents]
        return tuple(
            _between(a, b, fraction) for a, b, fraction in zip(values[::2], values[1::2], fractions, strict=True)
        )


def _is_short(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biu" and dtype.itemsize <= 2


def _is_small(values: NDArray[Any]) -> bool:
    """Return whether all values are integers that float32 represents, and int64 holds the sum of squares of a piece."""
    return values.dtype.kind in "iu" and values.size > 0 and max(-int(values.min()), int(values.max())) <= 1 << 22


def _pieces(channel: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = channel.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]


def _float_bits(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the bit patterns of the values as float32; raise ImageError if one is not finite."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise ImageError(
            "the image has pixels that are NaN, infinite or too large for float32, so that its statistics are "
            "undefined; replace them, or choose a normalisation with fixed values"
        )
    return single.view(np.uint32).astype(np.int64)


def _keys(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return unsigned integers in the order of the values.

    They have 16 bits for short integers, else they are the 32 bits of the value as float32, made monotonic.
    """
    if _is_short(values.dtype):
        lowest = 0 if values.dtype.kind in "bu" else int(np.iinfo(values.dtype).min)
        return values.astype(np.int64) - lowest
    bits = _float_bits(values)
    # Positive floats are ordered like their bits; negative ones the other way round, and below.
    return np.where(bits < _SIGN, bits + _SIGN, 2 * _SIGN - 1 - bits)


def _values(keys: NDArray[np.int64], dtype: np.dtype[Any]) -> list[float]:
    """Return the values that have these keys, exactly."""
    if _is_short(dtype):
        lowest = 0 if dtype.kind in "bu" else int(np.iinfo(dtype).min)
        return [float(key + lowest) for key in keys]
    bits = np.where(keys >= _SIGN, keys - _SIGN, 2 * _SIGN - 1 - keys)
    return [float(value) for value in bits.astype(np.uint32).view(np.float32)]


def _descend(counts: NDArray[np.int64], prefix: int, rank: int) -> tuple[int, int]:
    """Return the prefix of the pixel of `rank`, 16 bits longer, and its rank among the pixels with that prefix."""
    cumulated = np.cumsum(counts)
    digit = int(np.searchsorted(cumulated, rank, side="right"))
    return prefix << _HALF | digit, rank - int(cumulated[digit] - counts[digit])


def _between(a: float, b: float, fraction: float) -> float:
    """Interpolate linearly from `a` to `b`, starting from the nearer end, as NumPy does."""
    return a + (b - a) * fraction if fraction < 0.5 else b - (b - a) * (1 - fraction)


def _exact_sums(values: NDArray[Any]) -> tuple[int, int]:
    """Return the exact sum in units of 2^-149, and of squares in units of 2^-298, of one piece's values as float32."""
    if _is_short(values.dtype) or _is_small(values):
        whole = values.astype(np.int64)
        return int(whole.sum()) << _UNIT_BITS, int(whole @ whole) << 2 * _UNIT_BITS
    bits = _float_bits(values)
    exponent = bits >> 23 & 0xFF
    mantissa = bits & 0x7FFFFF | (exponent > 0).astype(np.int64) << 23
    upper, lower = mantissa >> 12, mantissa & 0xFFF
    signed = np.where(bits < _SIGN, mantissa, -mantissa)
    # Value = mantissa * 2^place units. All products are integers below 2^25, so their float64 sums are exact.
    shift = np.maximum(exponent, 1) - 1
    sums, high, middle, low = (
        np.bincount(shift, weights) for weights in (signed, upper * upper, 2 * upper * lower, lower * lower)
    )
    total = squares = 0
    for power in np.flatnonzero(np.bincount(shift)).tolist():
        total += int(sums[power]) << power
        square = (int(high[power]) << 24) + (int(middle[power]) << 12) + int(low[power])
        squares += square << 2 * power
    return total, squares
