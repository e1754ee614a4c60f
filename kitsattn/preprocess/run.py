"""Preprocessing of a data set: headers, plan, then every case once; what is finished is not done again.

Each scan is read once: spacing comes from the headers of all cases, and what a case stores depends on spacing and
window only. Mean and standard deviation come from the fingerprints that were taken on the way.
"""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from kitsattn.datasets.dataset import Dataset
from kitsattn.errors import KitsattnError
from kitsattn.files import sole_writer
from kitsattn.jobs import Progress, Workers, silent, try_cases
from kitsattn.preprocess.fingerprint import Fingerprint
from kitsattn.preprocess.folder import forget_cases, refuse_another, tidy_cases, write_results
from kitsattn.preprocess.headers import choose_workers, find_oversized, part_failed, read_headers
from kitsattn.preprocess.plan import (
    PAPER_WINDOW_HU,
    Plan,
    Target,
    Window,
    median_spacing,
    plan_dataset,
    read_plan,
)
from kitsattn.preprocess.store import (
    CASES_FOLDER,
    RECORD_FILE,
    PreparedDataset,
)
from kitsattn.preprocess.verify import Finding, Severity, find_twins
from kitsattn.preprocess.worker import CaseReview, prepare_case, review_case
from kitsattn.words import name_some, plural

_SEVERITIES = get_args(Severity)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What became of a data set.

    Attributes:
        dataset: The prepared data set: all cases that could be prepared.
        fingerprints: Of these cases.
        findings: What is wrong or odd about the cases; an error for each that could not be prepared.
        kept: How many cases were finished before.
    """

    dataset: PreparedDataset
    fingerprints: tuple[Fingerprint, ...]
    findings: tuple[Finding, ...]
    kept: int


def preprocess_dataset(
    dataset: Dataset,
    folder: Path,
    *,
    spacing_mm: float | None = None,
    window: Window = "paper",
    plan_file: Path | None = None,
    workers: Workers | None = None,
    resume: bool = True,
    assume_hu: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """Prepare every labelled case of a data set; cases without labels are left out.

    A case that cannot be prepared is an error among the findings; all others are prepared.

    Args:
        dataset: The raw data.
        folder: Where the prepared data set goes.
        spacing_mm: In-plane spacing, instead of the median of the cases or what the plan says.
        window: Which rule makes the window and the normalisation, where no plan is given.
        plan_file: A plan to use instead of making one.
        workers: Who prepares the cases; None takes as many other processes as there are cores and memory for.
        resume: Whether cases that are finished already, from the same files and for the same target, are kept.
        assume_hu: Whether the values of all scans are taken as HU without a check.
        progress: Called after each case of each step.

    Raises:
        KitsattnError: If there is nothing to prepare, no case could be prepared, the settings are impossible, or the
            folder holds another data set.
    """
    if spacing_mm is not None and not (math.isfinite(spacing_mm) and spacing_mm > 0):
        msg = f"the in-plane spacing must be a finite number of mm above 0, got {spacing_mm}"
        raise KitsattnError(msg)
    plan = None if plan_file is None else read_plan(plan_file, spacing_mm=spacing_mm)
    cases, headers, findings = read_headers(dataset, workers, progress)
    if not headers:
        raise _nothing_left(findings)
    square = None if spacing_mm is None else (spacing_mm, spacing_mm)
    spacing = square or median_spacing([header.spacing_mm for header in headers])
    oversized = find_oversized(headers, spacing if plan is None else plan.spacing_mm)
    findings += oversized
    left_out = {finding.case_id for finding in oversized}
    cases = [case for case in cases if case.case_id not in left_out]
    workers = workers or choose_workers([header for header in headers if header.case_id not in left_out])
    run = partial(try_cases, cases=cases, workers=workers, progress=progress)
    work = partial(prepare_case, folder=folder.absolute(), classes=dataset.labels, assume_hu=assume_hu)
    with sole_writer(folder, "kitsattn preprocess"):
        refuse_another(folder, cases)
        tidy_cases(folder)
        if not resume:
            forget_cases(folder)
        finished = {record.parent.name for record in (folder / CASES_FOLDER).glob(f"*/{RECORD_FILE}")}
        if plan is None and window == "nnunet":
            looks, errors = part_failed(run(partial(work, target=None), label="fingerprints"), cases)
            plan = _plan([look.review for look in looks], findings + errors, spacing, window)
        target = Target(spacing, PAPER_WINDOW_HU) if plan is None else plan.target
        outcomes, errors = part_failed(run(partial(work, target=target), label="cases"), cases)
        tidy_cases(folder)
        reviews = [outcome.review for outcome in outcomes]
        findings += errors + [finding for review in reviews for finding in review.findings]
        findings += find_twins((review.source.case_id, review.source.image_sha256) for review in reviews)
        findings += _find_strays(finished, dataset)
        plan = plan or _plan(reviews, findings, spacing, window)
        if not reviews:
            raise _nothing_left(findings)
        prepared = PreparedDataset(
            folder=folder,
            name=dataset.name,
            synthetic=dataset.synthetic,
            licence=dataset.licence,
            citation=dataset.citation,
            labels=dataset.labels,
            plan=plan,
            sources={review.source.case_id: review.source for review in reviews},
        )
        fingerprints = tuple(review.fingerprint for review in reviews)
        write_results(prepared, fingerprints)
    # A case that was finished in this run, by a worker that was killed at the next one, is none of before.
    kept = sum(outcome.kept and outcome.review.source.case_id in finished for outcome in outcomes)
    _log.info("%s prepared, %d finished before", plural(len(outcomes) - kept, "case"), kept)
    return Prepared(prepared, fingerprints, _in_order(findings), kept)


def verify_dataset(
    dataset: Dataset,
    *,
    workers: Workers | None = None,
    assume_hu: bool = False,
    progress: Progress = silent,
) -> tuple[Finding, ...]:
    """Read every voxel of a data set and tell what is wrong or odd, without preparing anything.

    Args:
        dataset: The raw data.
        workers: Who reads the cases; None takes as many other processes as there are cores and memory for.
        assume_hu: Whether the values of all scans are taken as HU without a check.
        progress: Called after each case of each step.

    Returns:
        The findings, errors first.

    Raises:
        KitsattnError: If no case has a label map.
    """
    cases, headers, findings = read_headers(dataset, workers, progress)
    if not headers:
        return _in_order(findings)
    try:
        findings += find_oversized(headers, median_spacing([header.spacing_mm for header in headers]))
    except KitsattnError as error:
        findings.append(Finding(None, "error", str(error)))
    workers = workers or choose_workers(headers)
    review = partial(review_case, classes=dataset.labels, assume_hu=assume_hu)
    reviews, errors = part_failed(try_cases(review, cases, workers=workers, label="verify", progress=progress), cases)
    findings += errors + [finding for review in reviews for finding in review.findings]
    findings += find_twins((review.source.case_id, review.source.image_sha256) for review in reviews)
    return _in_order(findings)


def _find_strays(finished: Collection[str], dataset: Dataset) -> list[Finding]:
    """Find prepared cases that are none of the data set's any more."""
    strays = sorted(set(finished).difference(case.case_id for case in dataset.cases))
    if not strays:
        return []
    text = (
        f"{CASES_FOLDER} still holds {name_some(strays)}, which the data set no longer has: delete what you do not need"
    )
    return [Finding(None, "note", text)]


def _plan(
    reviews: Sequence[CaseReview], findings: Sequence[Finding], spacing_mm: tuple[float, float], window: Window
) -> Plan:
    """Make the plan; where none can be made, tell first what became of the cases."""
    if not reviews:
        raise _nothing_left(findings)
    try:
        return plan_dataset([review.fingerprint for review in reviews], spacing_mm=spacing_mm, window=window)
    except KitsattnError:
        for finding in _in_order(findings):
            if finding.severity == "error":
                _log.warning("%s", finding.text)
        raise


def _nothing_left(findings: Sequence[Finding]) -> KitsattnError:
    """Return the error of a data set whose cases have all failed; what each failed of is logged."""
    errors = [finding.text for finding in _in_order(findings) if finding.severity == "error"]
    if len(errors) == 1:
        return KitsattnError(errors[0])
    return KitsattnError(f"none of {len(errors)} cases can be prepared (--verify tells why of each): {errors[0]}")


def _in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings, errors first, and write them to the log."""
    ordered = sorted(findings, key=lambda finding: (_SEVERITIES.index(finding.severity), finding.case_id or ""))
    for finding in ordered:
        _log.debug("%s: %s", finding.severity, finding.text)
    return tuple(ordered)
