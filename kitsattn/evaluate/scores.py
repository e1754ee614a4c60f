"""The scores of a cohort: means and how sure they are, agreement of volumes, lesions; and all of it as JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import fmean
from typing import Any

from kitsattn.evaluate.agreement import Agreement, find_agreement
from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.detection import SIZES_MM, Counts, Detection, Lesion, count_lesions, intervals
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.evaluate.metrics.volume_difference import VOLUME_DIFFERENCE
from kitsattn.evaluate.scoring import Scoring
from kitsattn.evaluate.spread import Spread, measure_spread
from kitsattn.labels import Region


@dataclass(frozen=True)
class Scores:
    """The scores of a cohort.

    Attributes:
        cases: The scores of each case; at least one.
        scoring: How they were scored.
        missing: Ids of the cases that had no prediction, scored as all background.
        surplus: Ids of predictions that had no reference, not scored.
        failed: Id of each case that could not be scored to the reason, one line.
    """

    cases: tuple[CaseScores, ...]
    scoring: Scoring
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> Mapping[str, Mapping[str, float]]:
        """Region key to metric key to the mean over the cases for which it is defined; NaN if it is for none."""
        return {
            region: {metric: spread.mean for metric, spread in spreads.items()}
            for region, spreads in self.spread.items()
        }

    @cached_property
    def spread(self) -> Mapping[str, Mapping[str, Spread]]:
        """Region key to metric key to its spread over the cases."""
        return {
            region.key: {
                metric.key: measure_spread(self.values(region, metric).values()) for metric in self.scoring.metrics
            }
            for region in self.scoring.protocol.regions
        }

    @property
    def composite(self) -> float:
        """The mean over the regions of their mean Dice, by which KiTS19 ranks."""
        return fmean(metrics[DICE.key] for metrics in self.mean.values())

    @property
    def agreement(self) -> Mapping[str, Agreement]:
        """Region key to bias and limits of agreement of its volume; empty where volumes were not measured."""
        regions = self.scoring.protocol.regions if VOLUME_DIFFERENCE in self.scoring.metrics else ()
        return {region.key: find_agreement(self.spread[region.key][VOLUME_DIFFERENCE.key]) for region in regions}

    @property
    def lesions(self) -> Mapping[str, tuple[Detection, ...]]:
        """Key of each region of lesions to those of the cases; empty where they were not counted."""
        return {region: tuple(case.lesions[region] for case in self.cases) for region in self.cases[0].lesions}

    @property
    def turned(self) -> tuple[str, ...]:
        """Ids of the cases whose prediction is stored in another orientation than its reference."""
        return tuple(case.case for case in self.cases if case.turned)

    def values(self, region: Region, metric: Metric) -> dict[str, float]:
        """Return case to value of one metric of one region."""
        return {case.case: case.regions[region.key][metric.key] for case in self.cases}

    def worst_first(self, metric: Metric | None = None) -> list[CaseScores]:
        """Return the cases by their mean error over the regions, the largest first, and not defined before it.

        Args:
            metric: Whose error; None takes the first, or the number of missed and false lesions where there is none.
        """
        by = metric or next(iter(self.scoring.metrics), None)

        def error(case: CaseScores) -> tuple[int, float]:
            if by is None:
                lesions = [lesion for found in case.lesions.values() for lesion in (*found.reference, *found.predicted)]
                return 0, sum(not lesion.matched for lesion in lesions)
            values = [found[by.key] for found in case.regions.values()]
            defined = [by.error(value) for value in values if not math.isnan(value)]
            return len(values) - len(defined), fmean(defined or [0.0])

        return sorted(self.cases, key=error, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON-ready values, None where one is not defined, with the rules that they follow."""
        return {
            "protocol": self.scoring.protocol.key,
            "cases": [{"case": case.case, **_case_to_json(case)} for case in self.cases],
            "mean": {region: without_nan(values) for region, values in self.mean.items()},
            "spread": {
                region: {metric: _spread_to_json(spread) for metric, spread in spreads.items()}
                for region, spreads in self.spread.items()
            },
            **({"composite": self.composite} if DICE in self.scoring.metrics else {}),
            **({"agreement": self._agreement_to_json()} if self.agreement else {}),
            **({"detection": self._detection_to_json()} if self.scoring.lesions else {}),
            "rules": list(self.scoring.rules),
            **self.remarks_to_json(),
        }

    def remarks_to_json(self) -> dict[str, Any]:
        """Return which cases were not as expected, as JSON-ready values."""
        return {
            "missing": list(self.missing),
            "surplus": list(self.surplus),
            "turned": list(self.turned),
            "failed": dict(self.failed),
        }

    def _agreement_to_json(self) -> dict[str, Any]:
        return {
            region: without_nan({"bias_ml": found.bias_ml, "low_ml": found.low_ml, "high_ml": found.high_ml})
            for region, found in self.agreement.items()
        }

    def _detection_to_json(self) -> dict[str, Any]:
        return {
            region: {
                **_counts_to_json(count_lesions(cases)),
                "ci95": {share: ends(low, high) for share, (low, high) in intervals(cases).items()},
                "sizes": [
                    {
                        "from_mm": low,
                        "to_mm": None if high == math.inf else high,
                        **_counts_to_json(count_lesions(cases, low, high)),
                    }
                    for low, high in pairwise(SIZES_MM)
                ],
            }
            for region, cases in self.lesions.items()
        }


def _case_to_json(case: CaseScores) -> dict[str, Any]:
    """Return what JSON says of each region."""
    found: dict[str, dict[str, Any]] = {region: without_nan(values) for region, values in case.regions.items()}
    for region, lesions in case.lesions.items():
        found[region] |= {
            "lesions": [_lesion_to_json(lesion, "found") for lesion in lesions.reference],
            "predicted_lesions": [_lesion_to_json(lesion, "true") for lesion in lesions.predicted],
        }
    return found


def _lesion_to_json(lesion: Lesion, matched: str) -> dict[str, Any]:
    return {
        "volume_ml": lesion.volume_ml,
        "diameter_mm": lesion.diameter_mm,
        "iou": lesion.iou,
        matched: lesion.matched,
    }


def _counts_to_json(counts: Counts) -> dict[str, Any]:
    shares = {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
    return {**asdict(counts), **without_nan(shares)}


def _spread_to_json(spread: Spread) -> dict[str, Any]:
    values = without_nan({"median": spread.median, "sd": spread.deviation})
    return {"cases": spread.cases, **values, "mean_ci95": ends(spread.low, spread.high)}


def ends(low: float, high: float) -> list[float] | None:
    """Return the ends of an interval as JSON has them, None where there is none."""
    return None if math.isnan(low) else [low, high]


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return values as JSON has them, which knows no NaN."""
    return {key: None if math.isnan(value) else value for key, value in values.items()}
