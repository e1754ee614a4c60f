"""Scores in words: what tables on the terminal and in reports say alike."""

from itertools import pairwise
from math import inf, isnan

from kitsattn.evaluate.detection import SIZES_MM, Counts, count_lesions, intervals
from kitsattn.evaluate.scores import Scores

_NOT_DEFINED = "not defined"


def region_name(key: str) -> str:
    """Return a region's key as a heading."""
    return key[:1].upper() + key[1:].replace("_", " ")


def show(value: float, digits: int) -> str:
    """Return a number as tables show it."""
    return _NOT_DEFINED if isnan(value) else f"{value:z.{digits}f}"


def show_interval(low: float, high: float, digits: int) -> str:
    """Return an interval as tables show it."""
    return _NOT_DEFINED if isnan(low) else f"{low:z.{digits}f} to {high:z.{digits}f}"


def describe_sizes(scores: Scores) -> list[tuple[str, str, Counts]]:
    """Return the lesions of each region and size: both in words, and their counts; of all sizes first."""
    rows = []
    for region, cases in scores.lesions.items():
        rows.append((region_name(region), "all", count_lesions(cases)))
        for low, high in pairwise(SIZES_MM):
            size = f"from {low:.0f} mm" if high == inf else f"{low:.0f} to {high:.0f} mm"
            rows.append((region_name(region), size, count_lesions(cases, low, high)))
    return rows


def describe_detection(scores: Scores) -> list[str]:
    """Return precision, recall and F1 of each region with their intervals, as sentences."""
    sentences = []
    for region, cases in scores.lesions.items():
        counts, ends = count_lesions(cases), intervals(cases)
        shares = {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
        phrases = [
            f"{share} {show(value, 3)}" + ("" if isnan(ends[share][0]) else f" ({show_interval(*ends[share], 3)})")
            for share, value in shares.items()
        ]
        sentences.append(f"{region_name(region)}: {', '.join(phrases)}.")
    return sentences


def describe_agreement(scores: Scores) -> list[str]:
    """Return bias and limits of agreement of each region's volume, as sentences."""
    return [
        f"{region_name(region)}: bias {show(found.bias_ml, 2)} ml, limits of agreement"
        f" {show_interval(found.low_ml, found.high_ml, 2)}{'' if isnan(found.low_ml) else ' ml'}."
        for region, found in scores.agreement.items()
    ]
