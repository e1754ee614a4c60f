"""The official ranking of several submissions to one challenge, from the `evaluation.csv` of each."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.evaluate.metrics.surface_dice import SURFACE_DICE
from kitsattn.evaluate.table import AVERAGE, column
from kitsattn.files import unreadable
from kitsattn.labels import KITS19, KITS23, ScoringProtocol

_FILE = "evaluation.csv"
_RANKED = ((KITS23, (DICE, SURFACE_DICE)), (KITS19, (DICE,)))
_COLUMNS = tuple(
    (
        protocol,
        {
            (region.key, metric.key): column(metric.column, region.key, protocol)
            for metric in metrics
            for region in protocol.regions
        },
    )
    for protocol, metrics in _RANKED
)
"""What each challenge ranks by: region and metric to the column that holds it."""

_Table = tuple[Sequence[str], Sequence[Mapping[str, str]]]


@dataclass(frozen=True)
class SubmissionScores:
    """The mean scores of one submission.

    Attributes:
        name: Of the submission.
        protocol: By which it was scored, KITS19 or KITS23.
        cases: Ids of the cases that the means are over.
        mean: Region key to metric key to the mean; `dice`, and for KITS23 `surface_dice`.
    """

    name: str
    protocol: ScoringProtocol
    cases: frozenset[str]
    mean: Mapping[str, Mapping[str, float]]

    @property
    def tumour_dice(self) -> float:
        """Mean Dice of the tumour."""
        return self.mean["tumour"][DICE.key]


@dataclass(frozen=True)
class RankedSubmission:
    """A submission's place among others.

    Attributes:
        rank: From 1, the best; submissions that nothing tells apart share one, and the next ranks stay empty.
        submission: What was ranked.
        mean_dice: Over the regions.
        mean_surface_dice: Over the regions; None for KITS19, which has none.
        mean_rank: The mean of the ranks by these two; None for KITS19, which ranks by `mean_dice` alone.
    """

    rank: int
    submission: SubmissionScores
    mean_dice: float
    mean_surface_dice: float | None = None
    mean_rank: float | None = None


def read_submission(folder: Path) -> SubmissionScores:
    """Read the scores of a submission; the columns tell whose challenge they are.

    Args:
        folder: Holds `evaluation.csv`, as `kitsattn evaluate` or the scripts of KiTS21 and KiTS23 write it, in itself
            or in one of the folders below. Its name is the submission's.

    Raises:
        KitsattnError: If there is no such file or several, it cannot be read, or it lacks what is ranked by.
    """
    path = _find_table(folder)
    header, rows = _read_table(path)
    protocol, columns = _choose_columns(header, path)
    if not rows or rows[-1][header[0]] != AVERAGE:
        msg = f"{path} has no last row `{AVERAGE}`: {_how_to_make(path.parent)}"
        raise KitsattnError(msg)
    mean: dict[str, dict[str, float]] = {}
    for (region, metric), heading in columns.items():
        mean.setdefault(region, {})[metric] = _to_score(rows[-1][heading], heading, path)
    cases = [row[header[0]] for row in rows[:-1]]
    if not cases or len(set(cases)) < len(cases):
        msg = f"{path} has {'a case twice' if cases else 'no cases'}: {_how_to_make(path.parent)}"
        raise KitsattnError(msg)
    return SubmissionScores(folder.resolve().name, protocol, frozenset(cases), mean)


def rank_submissions(submissions: Sequence[SubmissionScores]) -> tuple[RankedSubmission, ...]:
    """Rank submissions as their challenge does.

    KiTS21 and KiTS23 rank by mean Dice and by mean surface Dice, and then by the mean of these two ranks; tumour Dice
    decides between equals (kits23/evaluation/ranking.py). KiTS19 ranks by the composite, the mean Dice.

    Args:
        submissions: At least two, of different names, scored on the same cases by the same protocol.

    Returns:
        The submissions by rank, those that share one by name.

    Raises:
        KitsattnError: If the submissions cannot be compared.
    """
    _check_comparable(submissions)
    dice = [_mean(submission, DICE) for submission in submissions]
    if submissions[0].protocol == KITS19:
        ranked = list(map(RankedSubmission, _rank(dice), submissions, dice))
    else:
        surface_dice = [_mean(submission, SURFACE_DICE) for submission in submissions]
        mean_ranks = [sum(pair) / 2 for pair in zip(_rank(dice), _rank(surface_dice), strict=True)]
        tumour = [submission.tumour_dice for submission in submissions]
        ranks = _rank([(-mean_rank, score) for mean_rank, score in zip(mean_ranks, tumour, strict=True)])
        ranked = list(map(RankedSubmission, ranks, submissions, dice, surface_dice, mean_ranks))
    return tuple(sorted(ranked, key=lambda place: (place.rank, place.submission.name)))


def to_json(ranking: Sequence[RankedSubmission]) -> dict[str, Any]:
    """Return a ranking, of at least one submission, as JSON-ready values."""
    return {
        "protocol": ranking[0].submission.protocol.key,
        "ranking": [
            {
                "rank": place.rank,
                "submission": place.submission.name,
                "mean_dice": place.mean_dice,
                "mean_surface_dice": place.mean_surface_dice,
                "mean_rank": place.mean_rank,
                "tumour_dice": place.submission.tumour_dice,
                "mean": {region: dict(metrics) for region, metrics in place.submission.mean.items()},
            }
            for place in ranking
        ],
    }


def _find_table(folder: Path) -> Path:
    if (folder / _FILE).is_file():
        return folder / _FILE
    if folder.is_file():
        msg = f"{folder} is a file: name the folder of the submission, which holds {_FILE}"
        raise KitsattnError(msg)
    found = sorted(folder.rglob(_FILE)) if folder.is_dir() else []
    if not found:
        msg = f"{folder} holds no {_FILE}: {_how_to_make(folder)}"
        raise KitsattnError(msg)
    if len(found) > 1:
        msg = f"{folder} holds several {_FILE}, {found[0]} and {found[1]}: name the folder of one submission"
        raise KitsattnError(msg)
    return found[0]


def _read_table(path: Path) -> _Table:
    """Return the names of the columns and the rows; what a row lacks is empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            header, rows = reader.fieldnames or (), list(reader)
    except OSError as error:
        raise unreadable(path, error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"{path} cannot be read as CSV ({error}): {_how_to_make(path.parent)}"
        raise KitsattnError(msg) from error
    return header, rows


def _choose_columns(header: Sequence[str], path: Path) -> tuple[ScoringProtocol, Mapping[tuple[str, str], str]]:
    for protocol, columns in _COLUMNS:
        missing = {key: heading for key, heading in columns.items() if heading not in header}
        if not missing:
            return protocol, columns
        if all(metric == SURFACE_DICE.key for _, metric in missing):
            msg = (
                f"{path} has no {', '.join(missing.values())}, and {protocol.title} ranks by surface Dice too:"
                f" {_how_to_make(path.parent)}"
            )
            raise KitsattnError(msg)
    wanted = " nor ".join(
        f"{protocol.title}'s {', '.join(heading for (_, metric), heading in columns.items() if metric == DICE.key)}"
        for protocol, columns in _COLUMNS
    )
    msg = f"{path} has neither {wanted}: {_how_to_make(path.parent)}"
    raise KitsattnError(msg)


def _to_score(text: str, heading: str, path: Path) -> float:
    try:
        score = float(text)
    except ValueError:
        score = nan
    if not 0 <= score <= 1:
        msg = f"{path} has {text!r} as average of {heading}, no number from 0 to 1: {_how_to_make(path.parent)}"
        raise KitsattnError(msg)
    return score


def _how_to_make(folder: Path) -> str:
    return f"`kitsattn evaluate all {folder} REFERENCES --csv {folder / _FILE}` makes it"


def _check_comparable(submissions: Sequence[SubmissionScores]) -> None:
    if len(submissions) < 2:  # noqa: PLR2004 - two are needed to compare
        msg = f"a ranking needs at least two submissions, not {len(submissions)}: name more folders"
        raise KitsattnError(msg)
    first = submissions[0]
    names = set()
    for other in submissions:
        if other.name in names:
            msg = f"two submissions are named {other.name}: name their folders differently"
            raise KitsattnError(msg)
        names.add(other.name)
        if other.protocol != first.protocol:
            msg = (
                f"{first.name} was scored for {first.protocol.title}, and {other.name} for {other.protocol.title}:"
                " rank the submissions to one challenge"
            )
            raise KitsattnError(msg)
        if other.cases != first.cases:
            case = min(first.cases ^ other.cases)
            having, lacking = (first, other) if case in first.cases else (other, first)
            msg = (
                f"{having.name} was scored on {case}, and {lacking.name} was not: averages over other cases cannot be"
                " compared, score all submissions on the same cases"
            )
            raise KitsattnError(msg)


def _mean(submission: SubmissionScores, metric: Metric) -> float:
    """Return the mean over the regions, added up as the official script does: a last digit decides over a tie."""
    return float(np.mean([submission.mean[region.key][metric.key] for region in submission.protocol.regions]))


def _rank(values: Sequence[Any]) -> list[int]:
    """Return the rank of each value, the highest first: one more than how many are higher."""
    return [1 + sum(other > value for other in values) for value in values]
