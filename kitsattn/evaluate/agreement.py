"""Agreement of volumes: how far predicted volumes are from those of the reference (Bland and Altman, 1986)."""

from collections.abc import Sequence
from dataclasses import dataclass

from kitsattn.evaluate.spread import measure_spread

_WITHIN = 1.96
"""Standard deviations from the mean within which 95 % of a normal distribution lie."""


@dataclass(frozen=True)
class Agreement:
    """Differences of volumes, prediction less reference, over some cases; NaN where they are too few.

    Attributes:
        bias_ml: Their mean.
        low_ml: Lower limit of agreement: the bias less 1.96 standard deviations.
        high_ml: Upper limit of agreement.
    """

    bias_ml: float
    low_ml: float
    high_ml: float


def measure_agreement(differences_ml: Sequence[float]) -> Agreement:
    """Return bias and limits of agreement.

    Args:
        differences_ml: Predicted volume less that of the reference, one a case.
    """
    spread = measure_spread(differences_ml)
    half_ml = _WITHIN * spread.deviation
    return Agreement(spread.mean, spread.mean - half_ml, spread.mean + half_ml)
