"""How much a metric differs from case to case, and how sure its mean is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

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

    The confidence interval is the percentile bootstrap's: the means of 10,000 draws of as many cases, with replacement,
    from a fixed seed. It says what other cases of the same kind would do, not what another training would.

    Args:
        values: One a case; NaN where it is not defined.
    """
    defined = np.array([value for value in values if not math.isnan(value)])
    count = len(defined)
    if not count:
        return Spread(0, *[math.nan] * 5)
    mean, median = float(defined.mean()), float(np.median(defined))
    if count == 1:
        return Spread(1, mean, median, *[math.nan] * 3)
    drawn = np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count))
    low, high = np.percentile(defined[drawn].mean(axis=1), _INTERVAL)
    return Spread(count, mean, median, float(defined.std(ddof=1)), float(low), float(high))
