"""Evaluation of a cohort: score every case, whatever becomes of some of them."""

import logging
from functools import partial

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import CaseScores, score_case
from kitsattn.evaluate.match import CasePair, MatchedCases
from kitsattn.evaluate.scores import Scores
from kitsattn.evaluate.scoring import Scoring
from kitsattn.jobs import HERE, Progress, Workers, silent, try_cases

_log = logging.getLogger(__name__)


def evaluate_cases(
    matched: MatchedCases,
    scoring: Scoring,
    *,
    workers: Workers = HERE,
    progress: Progress = silent,
) -> Scores:
    """Score cases; one that cannot be scored costs no other.

    Args:
        matched: What to score, from `match_cases`; at least one pair.
        scoring: What to score, and how.
        workers: Who scores the cases.
        progress: Called after each case.

    Returns:
        The scores, cases in the order of the pairs, and which failed because a label map cannot be read, is on
        another grid than its reference, or because a reference holds labels that the protocol does not know.

    Raises:
        KitsattnError: If no case can be scored, with the last one's reason, the others being logged; or if the
            scheduler fails.
    """
    results = try_cases(
        partial(_score_pair, scoring=scoring),
        matched.pairs,
        workers=workers,
        label="evaluate",
        progress=progress,
    )
    cases = [result for result in results if isinstance(result, CaseScores)]
    failed = {
        pair.case: str(result)
        for pair, result in zip(matched.pairs, results, strict=True)
        if isinstance(result, KitsattnError)
    }
    if not cases:
        *others, last = failed.values()
        for reason in others:
            _log.warning("not scored: %s", reason)
        raise KitsattnError(last if not others else f"no case can be scored, the last one since {last}")
    missing = tuple(case for case in matched.missing if case not in failed)
    return Scores(tuple(cases), scoring, missing, matched.surplus, failed)


def _score_pair(pair: CasePair, scoring: Scoring) -> CaseScores:
    return score_case(pair.case, pair.prediction, pair.reference, scoring)
