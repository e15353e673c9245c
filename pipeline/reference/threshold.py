"""Thresholds of a score beyond which an image must be reviewed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.reference.conformal import conformal_rank


class Threshold(BaseModel):
    """Thresholds of one score; images at or beyond one of them are to be reviewed.

    Attributes
    ----------
    low_is_bad : whether beyond means below
    tau : required Dice
    minimum : U_min, the smallest uncertainty of a reference image whose Dice is below tau: every less uncertain image
        reached tau. None if no reference image is below tau
    worst_seen : the most doubtful value in the reference set
    false_positive_rate : share of images with Dice of at least tau that may be flagged by `at_rate`
    at_rate : the threshold with that share, for new images of the same source; None with too few images for it
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_is_bad: bool
    tau: float
    minimum: float | None
    worst_seen: float
    false_positive_rate: float
    at_rate: float | None

    def beyond(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which values reach U_min; if it is undefined, which exceed all values of the reference set.

        If no reference image is below tau, an image passes if it is as certain as some image that is known to be good,
        and is flagged if it is less certain than all of them: nothing is known about it.

        Parameters
        ----------
        values : (images,) float64

        Returns
        -------
        NDArray[np.bool_]
            (images,).
        """
        sign = -1 if self.low_is_bad else 1
        if self.minimum is None:
            return np.asarray(sign * values > sign * self.worst_seen)
        return np.asarray(sign * values >= sign * self.minimum)


def threshold(
    values: NDArray[np.float64],
    dice: NDArray[np.float64],
    tau: float,
    *,
    low_is_bad: bool = False,
    false_positive_rate: float = 0.05,
) -> Threshold:
    """Determine the thresholds of a score from reference images.

    Parameters
    ----------
    values : (images,) float64, the score, without NaN
    dice : (images,) float64, 0 to 1
    tau : required Dice, 0 to 1
    low_is_bad : whether low values are doubtful
    false_positive_rate : share of good images that may be flagged

    References
    ----------
    U_min: Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 8. The threshold at a false-positive
    rate is the conformal quantile of the good images: Vovk, Gammerman and Shafer (2005).
    """
    uncertainty = -values if low_is_bad else values
    failed = dice < tau
    good = np.sort(uncertainty[~failed])
    rank = conformal_rank(len(good), false_positive_rate)
    sign = -1.0 if low_is_bad else 1.0
    return Threshold(
        low_is_bad=low_is_bad,
        tau=tau,
        minimum=sign * float(uncertainty[failed].min()) if failed.any() else None,
        worst_seen=sign * float(uncertainty.max()),
        false_positive_rate=false_positive_rate,
        # Beyond the value of that rank, not at it.
        at_rate=None if rank is None else sign * float(np.nextafter(good[rank - 1], np.inf)),
    )
