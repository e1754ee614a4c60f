"""Comparison of two sets of predictions, case by case: which is better, by how much, and how sure that is."""

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.evaluate.scores import Scores, ends, without_nan
from kitsattn.evaluate.scoring import Scoring
from kitsattn.evaluate.spread import Spread, measure_spread
from kitsattn.labels import Region

COMPARE_RULE = (
    "Differences are B less A, over the cases for which the metric is defined in both; of volumes their absolute"
    " differences are compared. The interval is the bootstrap's of the mean difference, p that of Wilcoxon's"
    " signed-rank test, two-sided."
)
"""What is compared: quoted by every output."""


@dataclass(frozen=True)
class Change:
    """One case in both sets.

    Attributes:
        case: Its id.
        first: The metric's value in A.
        second: The same in B.
    """

    case: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """B less A."""
        return self.second - self.first


@dataclass(frozen=True)
class Difference:
    """One metric of one region in both sets.

    Attributes:
        region: The region.
        metric: The metric.
        changes: The cases for which it is defined in both, those that moved most first.
    """

    region: Region
    metric: Metric
    changes: tuple[Change, ...]

    @property
    def means(self) -> tuple[float, float]:
        """Of the values in A and in B; NaN where there are none."""
        if not self.changes:
            return math.nan, math.nan
        return fmean(change.first for change in self.changes), fmean(change.second for change in self.changes)

    @cached_property
    def spread(self) -> Spread:
        """Of the differences."""
        return measure_spread(change.difference for change in self.changes)

    @property
    def better(self) -> int:
        """Number of cases that are better in B."""
        return sum(self.metric.error(change.second) < self.metric.error(change.first) for change in self.changes)

    @property
    def worse(self) -> int:
        """Number of cases that are worse in B."""
        return sum(self.metric.error(change.second) > self.metric.error(change.first) for change in self.changes)

    @cached_property
    def p(self) -> float:
        """Of Wilcoxon's signed-rank test, two-sided; NaN where no case differs."""
        from scipy.stats import wilcoxon  # noqa: PLC0415 - half a second, which other commands do without

        differences = np.array([change.difference for change in self.changes])
        return float(wilcoxon(differences).pvalue) if differences.any() else math.nan


@dataclass(frozen=True)
class Comparison:
    """Two sets of predictions of the same cases.

    Attributes:
        names: What A and B are called.
        scores: Of A and of B.
        differences: By region and metric.
        unpaired: Ids of the cases that only one of them has.
    """

    names: tuple[str, str]
    scores: tuple[Scores, Scores]
    differences: tuple[Difference, ...]
    unpaired: tuple[str, ...]

    @property
    def scoring(self) -> Scoring:
        """How both were scored."""
        return self.scores[0].scoring

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready values, None where one is not defined."""
        first, second = (scores.remarks_to_json() for scores in self.scores)
        return {
            "protocol": self.scoring.protocol.key,
            "a": self.names[0],
            "b": self.names[1],
            "differences": [_difference_to_json(difference) for difference in self.differences],
            "rules": [*self.scoring.rules, COMPARE_RULE],
            "unpaired": list(self.unpaired),
            **{key: {"a": first[key], "b": second[key]} for key in first},
        }


def compare_scores(names: tuple[str, str], first: Scores, second: Scores) -> Comparison:
    """Compare two sets of scores case by case.

    Args:
        names: What they are called.
        first: Of A.
        second: Of B, scored in the same way; cases that only one of them has are left out.

    Raises:
        KitsattnError: If they have no case in common.
    """
    cases, others = ({case.case for case in scores.cases} for scores in (first, second))
    if not cases & others:
        msg = f"{names[0]} and {names[1]} have no case in common: compare predictions of the same cases"
        raise KitsattnError(msg)
    differences = []
    for metric in first.scoring.metrics:
        for region in first.scoring.protocol.regions:
            values = second.values(region, metric)
            changes = [
                Change(case, metric.size(value), metric.size(values[case]))
                for case, value in first.values(region, metric).items()
                if case in values
            ]
            defined = [change for change in changes if not math.isnan(change.difference)]
            ordered = sorted(defined, key=lambda change: -abs(change.difference))
            differences.append(Difference(region, metric, tuple(ordered)))
    return Comparison(names, (first, second), tuple(differences), tuple(sorted(cases ^ others)))


def _difference_to_json(difference: Difference) -> dict[str, Any]:
    spread = difference.spread
    first, second = difference.means
    values = {
        "mean_a": first,
        "mean_b": second,
        "mean_difference": spread.mean,
        "median_difference": spread.median,
        "p_wilcoxon": difference.p,
    }
    return {
        "region": difference.region.key,
        "metric": difference.metric.key,
        "cases": spread.cases,
        **without_nan(values),
        "mean_difference_ci95": ends(spread.low, spread.high),
        "better": difference.better,
        "equal": spread.cases - difference.better - difference.worse,
        "worse": difference.worse,
        "changes": [
            {"case": change.case, "a": change.first, "b": change.second, "difference": change.difference}
            for change in difference.changes
        ],
    }
