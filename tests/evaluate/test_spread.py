import numpy as np
import pytest
from scipy import stats

from kitsattn.evaluate.spread import measure_spread

NAN = float("nan")


def test_spread_worked_by_hand() -> None:
    """What is not defined does not count."""
    spread = measure_spread([0.5, NAN, 0.9, 0.7, 0.9])
    assert spread.cases == 4
    assert spread.mean == pytest.approx(0.75)
    assert spread.median == pytest.approx(0.8)
    assert spread.deviation == pytest.approx(np.sqrt((0.25**2 + 0.05**2 + 2 * 0.15**2) / 3))
    assert (spread.low, spread.high) == pytest.approx((0.6, 0.9))


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    """Both draw at random, 10,000 times; the same values have the same interval."""
    values = np.random.default_rng(0).beta(8, 2, 60)
    spread = measure_spread(values)
    other = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert (spread.low, spread.high) == pytest.approx((other.low, other.high), abs=0.002)
    assert measure_spread(values) == spread


def test_one_case_has_no_spread_and_none_no_mean() -> None:
    """Nothing is made up."""
    one = measure_spread([NAN, 0.5])
    assert (one.cases, one.mean, one.median) == (1, 0.5, 0.5)
    assert np.isnan([one.deviation, one.low, one.high]).all()
    none = measure_spread([NAN])
    assert none.cases == 0
    assert np.isnan([none.mean, none.median]).all()
