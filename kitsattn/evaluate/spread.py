"""How much a metric differs from case to case, and how sure its mean is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
_SEED = 0
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Spread:
    """Of a metric over the cases for which it is defined; NaN where they are too few.

    Attributes:
        cases: How many they are.
        mean: Their mean.
        median: Their median.
        deviation: Standard deviation of a sample; from two cases on.
        low: Lower end of the 95 % confidence interval of the mean; from two cases on.
        high: Its upper end.
    """

    cases: int
    mean: float
    median: float
    deviation: float
    low: float
    high: float


def measure_spread(values: Iterable[float]) -> Spread:
    """Return the spread of a metric.

    Args:
        values: One a case; NaN where it is not defined.
    """
    defined = np.array([value for value in values if not math.isnan(value)])
    count = len(defined)
    if not count:
        return Spread(0, *[math.nan] * 5)
    mean, median = float(defined.mean()), float(np.median(defined))
    deviation = float(defined.std(ddof=1)) if count > 1 else math.nan
    return Spread(count, mean, median, deviation, *resample_cases(defined, np.ones(count)))


def resample_cases(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the sum of parts over the sum of wholes: a mean where these are ones.

    It is the percentile bootstrap's: 10,000 draws of as many cases, with replacement, from a fixed seed. It says what
    other cases of the same kind would do, not what another training would.

    Args:
        parts: One a case.
        wholes: One a case, from 0 on.

    Returns:
        Its ends; NaN for fewer than two cases, or where the wholes are all 0. Draws whose wholes are 0 are left out.
    """
    count = len(parts)
    if count < 2 or not wholes.any():  # noqa: PLR2004 - one case has no spread
        return math.nan, math.nan
    drawn = np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count))
    sums, totals = parts[drawn].sum(axis=1), wholes[drawn].sum(axis=1)
    low, high = np.percentile(sums[totals > 0] / totals[totals > 0], _INTERVAL)
    return float(low), float(high)
