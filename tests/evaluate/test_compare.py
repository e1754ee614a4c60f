from math import isnan, nan

import pytest
from scipy import stats

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.compare import Difference, compare_scores
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.hd95 import HD95
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.evaluate.metrics.volume_difference import VOLUME_DIFFERENCE
from kitsattn.evaluate.scores import Scores
from kitsattn.evaluate.scoring import Scoring
from kitsattn.evaluate.spread import measure_spread
from kitsattn.labels import protocol_of

PROTOCOL = protocol_of({"background": 0, "liver": 1})


def scores(metric: Metric, values: dict[str, float]) -> Scores:
    """Return the scores of one region by one metric."""
    cases = tuple(CaseScores(case, {"liver": {metric.key: value}}) for case, value in values.items())
    return Scores(cases, Scoring(PROTOCOL, (metric,)))


def compare(metric: Metric, first: dict[str, float], second: dict[str, float]) -> Difference:
    """Return how both sides differ."""
    (difference,) = compare_scores(("A", "B"), scores(metric, first), scores(metric, second)).differences
    return difference


def test_comparison_worked_by_hand() -> None:
    """Cases are paired by id; what moved most stands first; cases of one side only are left out."""
    difference = compare(DICE, {"a": 0.5, "b": 0.8, "c": 0.9, "x": 0.1}, {"c": 0.9, "b": 0.7, "a": 0.8, "y": 1.0})

    assert [(change.case, change.difference) for change in difference.changes] == [
        ("a", pytest.approx(0.3)),
        ("b", pytest.approx(-0.1)),
        ("c", 0.0),
    ]
    assert (difference.better, difference.worse) == (1, 1)
    assert difference.means == pytest.approx((2.2 / 3, 2.4 / 3))
    assert difference.spread == measure_spread([change.difference for change in difference.changes])
    assert difference.spread.mean == pytest.approx(0.2 / 3)


def test_p_is_that_of_scipys_signed_rank_test() -> None:
    """On the paired differences; for six cases that all improve it is 2 / 2 ** 6."""
    first = {str(case): 0.5 for case in range(6)}
    second = {str(case): 0.51 + case / 10 for case in range(6)}

    difference = compare(DICE, first, second)

    assert difference.p == pytest.approx(2 / 2**6)
    assert difference.p == stats.wilcoxon([second[case] - first[case] for case in first]).pvalue


def test_equal_sides_have_no_p() -> None:
    """Where no case differs there is nothing to test."""
    difference = compare(DICE, {"a": 0.5, "b": 0.7}, {"a": 0.5, "b": 0.7})

    assert isnan(difference.p)
    assert (difference.better, difference.worse) == (0, 0)


def test_better_is_less_for_distances() -> None:
    """A shorter distance is better; a case for which one side is not defined is left out."""
    difference = compare(HD95, {"a": 5.0, "b": 3.0, "c": 1.0}, {"a": 4.0, "b": 1.0, "c": nan})

    assert (difference.better, difference.worse) == (2, 0)
    assert [change.case for change in difference.changes] == ["b", "a"]


def test_volumes_are_compared_by_their_absolute_differences() -> None:
    """3 ml too many are better than 5 ml too few."""
    difference = compare(VOLUME_DIFFERENCE, {"a": -5.0}, {"a": 3.0})

    assert (difference.better, difference.worse) == (1, 0)
    assert (difference.changes[0].first, difference.changes[0].second) == (5.0, 3.0)


def test_json_knows_no_nan() -> None:
    """Of one case that does not move there is neither an interval nor a p."""
    comparison = compare_scores(("A", "B"), scores(DICE, {"a": 0.5}), scores(DICE, {"a": 0.5}))

    (difference,) = comparison.to_json()["differences"]

    assert difference["mean_difference_ci95"] is None
    assert difference["p_wilcoxon"] is None
    assert (difference["better"], difference["equal"], difference["worse"]) == (0, 1, 0)
    assert difference["changes"] == [{"case": "a", "a": 0.5, "b": 0.5, "difference": 0.0}]


def test_cases_of_one_side_only_are_listed() -> None:
    """Runs of other folds have other cases; that must be seen."""
    comparison = compare_scores(("A", "B"), scores(DICE, {"a": 0.5, "b": 0.5}), scores(DICE, {"b": 0.5, "c": 0.5}))

    assert comparison.to_json()["unpaired"] == ["a", "c"]


def test_a_metric_that_is_defined_for_no_pair_has_no_figures() -> None:
    """The region is told all the same."""
    difference = compare(HD95, {"a": nan}, {"a": 3.0})

    assert difference.changes == ()
    assert all(isnan(value) for value in (*difference.means, difference.spread.mean, difference.p))


def test_sides_without_a_common_case_are_refused() -> None:
    """There is nothing to pair."""
    with pytest.raises(KitsattnError, match="A and B have no case in common"):
        compare(DICE, {"a": 0.5}, {"b": 0.5})
