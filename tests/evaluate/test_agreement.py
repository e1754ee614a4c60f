from math import isnan, sqrt

import pytest

from kitsattn.evaluate.agreement import find_agreement
from kitsattn.evaluate.spread import measure_spread


def test_agreement_worked_by_hand() -> None:
    """Bias is the mean; the limits lie 1.96 standard deviations of a sample beside it."""
    found = find_agreement(measure_spread([1.0, 3.0, -1.0]))

    assert found.bias_ml == pytest.approx(1.0)
    assert found.low_ml == pytest.approx(1.0 - 1.96 * sqrt(4.0))
    assert found.high_ml == pytest.approx(1.0 + 1.96 * sqrt(4.0))


def test_one_case_has_a_bias_and_no_limits() -> None:
    """Nothing is made up."""
    found = find_agreement(measure_spread([2.5]))

    assert found.bias_ml == 2.5
    assert isnan(found.low_ml)
    assert isnan(found.high_ml)
