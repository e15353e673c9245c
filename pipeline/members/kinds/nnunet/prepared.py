"""nnU-Net's normalisation as a preparation: each pixel by itself, with statistics of the image's non-zero crop.

References
----------
nnunetv2 2.8.1: ``preprocessing/normalization/default_normalization_schemes.py`` and ``cropping/cropping.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.errors import ImageError, RefusedError
from chorus.pipeline.members.kinds.nnunet.plans import Intensities, Plans
from chorus.pipeline.preprocessing.nonzero import Within
from chorus.pipeline.preprocessing.preparation import Measure, Statistics

_EPSILON = 1e-8

Name: TypeAlias = Literal[
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]


@dataclass(frozen=True)
class Scheme:
    """Normalisation of a channel.

    Attributes
    ----------
    masked : whether a z-score is of the non-zero pixels alone, and leaves the others at 0
    intensities : mean, std, and percentiles to clip to, for CT
    """

    name: Name
    masked: bool = False
    intensities: tuple[float, float, float, float] | None = None

    @property
    def within(self) -> Within:
        """The pixels that a z-score is of."""
        return "nonzero" if self.masked else "crop"

    def measures(self, channel: int) -> frozenset[Measure]:
        """Return the statistics that it needs."""
        if self.name == "ZScoreNormalization":
            return frozenset((self._mean(channel), self._std(channel)))
        if self.name == "RescaleTo01Normalization":
            return frozenset(self._ends(channel))
        return frozenset()

    def apply(
        self, pixels: NDArray[np.float32], channel: int, nonzero: NDArray[np.bool_], statistics: Statistics
    ) -> None:
        """Normalise a channel in place.

        Parameters
        ----------
        pixels : (y, x) or (z, y, x) as stored
        nonzero : where any channel is not 0; same shape
        statistics : all of `measures`

        Raises
        ------
        ImageError
            For colours outside of 0 to 255.
        """
        match self.name:
            case "ZScoreNormalization":
                where = nonzero if self.masked else True
                np.subtract(pixels, np.float32(statistics[self._mean(channel)]), out=pixels, where=where)
                np.divide(pixels, _spread(statistics[self._std(channel)]), out=pixels, where=where)
            case "CTNormalization":
                mean, std, low, high = self.intensities or (0.0, 1.0, -np.inf, np.inf)
                np.clip(pixels, np.float32(low), np.float32(high), out=pixels)
                pixels -= np.float32(mean)
                pixels /= _spread(std)
            case "RescaleTo01Normalization":
                low, high = (statistics[end] for end in self._ends(channel))
                pixels -= np.float32(low)
                pixels /= _spread(high - low)
            case "RGBTo01Normalization":
                if pixels.size and (pixels.min() < 0 or pixels.max() > 255):
                    raise ImageError(
                        f"channel {channel} has values outside of 0 to 255, and its members take it as a colour of 8 "
                        "bits (RGBTo01Normalization); convert the image, or choose the channel in the ensemble"
                    )
                pixels /= np.float32(255)

    def _mean(self, channel: int) -> Measure:
        return Measure("mean", channel, within=self.within)

    def _std(self, channel: int) -> Measure:
        return Measure("std", channel, within=self.within)

    def _ends(self, channel: int) -> tuple[Measure, Measure]:
        low, high = (Measure("percentile", channel, percent, within="crop") for percent in (0.0, 100.0))
        return low, high


@dataclass(frozen=True)
class NnunetInput:
    """The normalisation of each channel.

    The image is cropped for its statistics alone: pixels outside of the crop are prepared and predicted like others.
    Holes in a mask stay 0, where nnU-Net fills holes before it normalises.
    """

    schemes: tuple[Scheme, ...]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.schemes)

    @property
    def measures(self) -> frozenset[Measure]:
        """Statistics of all channels."""
        return frozenset().union(*(scheme.measures(channel) for channel, scheme in enumerate(self.schemes)))

    def apply(self, raw: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """Normalise pixels, each by itself.

        Parameters
        ----------
        raw : (channels, y, x) or (channels, z, y, x) of any real dtype
        statistics : all of `measures`

        Returns
        -------
        NDArray[np.float32]
            Same shape.

        Raises
        ------
        ImageError
            For colours outside of 0 to 255.
        """
        result = raw.astype(np.float32)
        nonzero = (raw != 0).any(axis=0)
        for channel, scheme in enumerate(self.schemes):
            scheme.apply(result[channel], channel, nonzero, statistics)
        return result


def preparation(url: str, plans: Plans, channels: int) -> NnunetInput:
    """Return the preparation that plans ask for; raise RefusedError if Chorus does not know a scheme.

    Parameters
    ----------
    url : of the plans, for messages
    channels : of the data set
    """
    own = plans.configuration
    if not len(own.normalization_schemes) == len(own.use_mask_for_norm) == channels:
        raise RefusedError(
            f"{url}: has {len(own.normalization_schemes)} normalisations for {channels} channels; take the folder as "
            "nnU-Net's training left it"
        )
    return NnunetInput(
        tuple(
            _scheme(url, name, masked=masked, found=plans.intensities.get(str(channel)))
            for channel, (name, masked) in enumerate(zip(own.normalization_schemes, own.use_mask_for_norm, strict=True))
        )
    )


def _scheme(url: str, name: str, *, masked: bool, found: Intensities | None) -> Scheme:
    known: Sequence[Name] = get_args(Name)
    if name not in known:
        raise RefusedError(f"{url}: Chorus knows no normalisation {name[:200]}; it knows {', '.join(known)}")
    if name != "CTNormalization":
        return Scheme(known[known.index(name)], masked=masked and name == "ZScoreNormalization")
    if found is None:
        raise RefusedError(
            f"{url}: has no intensities of a channel that CTNormalization needs; plan the data set again"
        )
    return Scheme("CTNormalization", intensities=(found.mean, found.std, found.percentile_00_5, found.percentile_99_5))


def _spread(value: float) -> np.float32:
    return np.float32(max(value, _EPSILON))
