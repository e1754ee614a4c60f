"""Agreement of volumes: how far predicted volumes are from those of the reference (Bland and Altman, 1986)."""

from dataclasses import dataclass

from kitsattn.evaluate.spread import Spread

_WITHIN = 1.96
"""Standard deviations from the mean within which 95 % of a normal distribution are."""


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


def find_agreement(differences_ml: Spread) -> Agreement:
    """Return bias and limits of agreement.

    Args:
        differences_ml: The spread of predicted volumes less those of the reference.
    """
    half_ml = _WITHIN * differences_ml.deviation
    return Agreement(differences_ml.mean, differences_ml.mean - half_ml, differences_ml.mean + half_ml)
