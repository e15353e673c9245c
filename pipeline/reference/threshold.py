"""From which value on a score says that an image must be looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from chorus.pipeline.reference.conformal import conformal_rank


class Threshold(BaseModel):
    """Thresholds of one score; images at or beyond one of them are to be looked at.

    Attributes
    ----------
    low_is_bad : whether beyond means below
    tau : Dice that is asked for
    minimum : U_min, the minimum doubt of a reference image whose Dice is below tau: every image of less doubt
        reached tau. None where no reference image is below tau
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
        """Which of `values` reach U_min; where there is none, which are beyond all that the reference set has.

        So, with no reference image below tau, what is as certain as an image that is known to be good passes, and what
        is less certain than all of them does not: nothing is known of it.
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
    """Thresholds of a score from reference images, each with the score and a Dice.

    References
    ----------
    U_min: Griebel et al., deepflash2, Nature Communications 14:1679 (2023), Eq. 8. The threshold at a false-positive
    rate is the conformal quantile of the good images: Vovk, Gammerman and Shafer (2005).
    """
    doubt = -values if low_is_bad else values
    failed = dice < tau
    good = np.sort(doubt[~failed])
    rank = conformal_rank(len(good), false_positive_rate)
    sign = -1.0 if low_is_bad else 1.0
    return Threshold(
        low_is_bad=low_is_bad,
        tau=tau,
        minimum=sign * float(doubt[failed].min()) if failed.any() else None,
        worst_seen=sign * float(doubt.max()),
        false_positive_rate=false_positive_rate,
        # Beyond the value of that rank, not at it.
        at_rate=None if rank is None else sign * float(np.nextafter(good[rank - 1], np.inf)),
    )
