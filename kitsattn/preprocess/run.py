"""Preprocessing of a data set: headers, plan, then every case once; what is finished is not done again.

Each scan is read once: spacing comes from the headers of all cases, and what a case stores depends on spacing and
window only. Mean and standard deviation come from the fingerprints that were taken on the way.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

from kitsattn.config import from_json, to_json
from kitsattn.datasets.dataset import CaseFiles, Dataset
from kitsattn.datasets.known import is_of_challenge, known_remarks, layout_remarks
from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, sha256, write_json
from kitsattn.jobs import Progress, available_cores, silent, try_cases, workers_that_fit
from kitsattn.preprocess.case import prepare_scan
from kitsattn.preprocess.crop import body_box
from kitsattn.preprocess.fingerprint import Fingerprint, pool_intensities, take_fingerprint
from kitsattn.preprocess.plan import PAPER_WINDOW_HU, Plan, Target, Window, median_spacing, plan_dataset, read_plan
from kitsattn.preprocess.store import (
    CASES_FOLDER,
    DATASET_FILE,
    CaseSource,
    PreparedDataset,
    is_finished,
    open_dataset,
    save_case,
    save_dataset,
)
from kitsattn.preprocess.verify import (
    CaseHeader,
    Finding,
    Severity,
    check_case,
    check_headers,
    find_twins,
    read_case,
    read_header,
)

Result = TypeVar("Result")

PLAN_FILE = "plan.json"
FINGERPRINT_FILE = "fingerprint.json"

_RECORD_SUFFIX = ".fingerprint.json"
_SEVERITIES = get_args(Severity)

_WORKER_BYTES = 250_000_000
_VOXEL_BYTES = 5.5
"""Memory of a worker: the interpreter with its libraries, and for each voxel of the scan twice int16 and a label."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessed:
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


@dataclass(frozen=True)
class _Record:
    """What is kept of looking at a case, and the files that were looked at."""

    image_sha256: str
    labels_sha256: str
    fingerprint: Fingerprint
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Outcome:
    """What became of a case."""

    source: CaseSource
    record: _Record
    kept: bool


def preprocess_dataset(
    dataset: Dataset,
    folder: Path,
    *,
    spacing_mm: float | None = None,
    window: Window = "paper",
    plan_file: Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = True,
    progress: Progress = silent,
) -> Preprocessed:
    """Prepare every labelled case of a data set; cases without labels are left out.

    A case that cannot be prepared is an error among the findings; all others are prepared.

    Args:
        dataset: The raw data.
        folder: Where the prepared data set goes.
        spacing_mm: In-plane spacing, instead of the median of the cases or what the plan says.
        window: Which rule makes the window and the normalisation, where no plan is given.
        plan_file: A plan to use instead of making one.
        workers: Number of processes; None takes as many as there are cores and memory for.
        scheduler: Address of a Dask scheduler whose workers prepare the cases instead.
        resume: Whether cases that are finished already, from the same files and for the same target, are kept.
        progress: Called after each case of each step.

    Raises:
        KitsattnError: If there is nothing to prepare, no case could be prepared, or the settings are impossible.
    """
    if spacing_mm is not None and not (math.isfinite(spacing_mm) and spacing_mm > 0):
        msg = f"the in-plane spacing must be a finite number of mm above 0, got {spacing_mm}"
        raise KitsattnError(msg)
    plan = None if plan_file is None else read_plan(plan_file, spacing_mm=spacing_mm)
    cases, headers, findings = _read_headers(dataset, scheduler, progress)
    square = None if spacing_mm is None else (spacing_mm, spacing_mm)
    spacing = square or median_spacing([header.spacing_mm for header in headers])
    crew = _Crew(workers or _default_workers(headers), scheduler, progress)
    if not resume:
        _forget(folder)
    work = partial(_prepare, folder=folder.absolute(), classes=dataset.labels)
    if plan is None and window == "nnunet":
        looks, _ = _sort(crew.run(partial(work, target=None), cases, "fingerprints"), cases)
        plan = plan_dataset([look.record.fingerprint for look in looks], spacing_mm=spacing, window=window)
    target = Target(spacing, PAPER_WINDOW_HU) if plan is None else plan.target
    _unfinish(folder, cases, target)
    outcomes, errors = _sort(crew.run(partial(work, target=target), cases, "cases"), cases)
    findings += errors
    if not outcomes:
        msg = errors[0].text if len(errors) == 1 else f"none of {len(errors)} cases can be prepared: {errors[0].text}"
        raise KitsattnError(msg)
    fingerprints = tuple(outcome.record.fingerprint for outcome in outcomes)
    findings += [finding for outcome in outcomes for finding in outcome.record.findings]
    findings += find_twins((outcome.source.case_id, outcome.source.image_sha256) for outcome in outcomes)
    plan = plan or plan_dataset(fingerprints, spacing_mm=spacing, window=window)
    _write_plan(folder / PLAN_FILE, plan)
    _write_fingerprints(folder / FINGERPRINT_FILE, fingerprints)
    _log.info("plan: %s", plan)
    prepared = PreparedDataset(
        folder=folder,
        name=dataset.name,
        synthetic=dataset.synthetic,
        licence=dataset.licence,
        citation=dataset.citation,
        labels=dataset.labels,
        plan=plan,
        sources={outcome.source.case_id: outcome.source for outcome in outcomes},
    )
    save_dataset(prepared)
    kept = sum(outcome.kept for outcome in outcomes)
    _log.info("%d cases prepared, %d were finished already", len(outcomes) - kept, kept)
    return Preprocessed(prepared, fingerprints, _in_order(findings), kept)


def verify_dataset(
    dataset: Dataset, *, workers: int | None = None, scheduler: str | None = None, progress: Progress = silent
) -> tuple[Finding, ...]:
    """Read every voxel of a data set and tell what is wrong or odd, without preparing anything.

    Args:
        dataset: The raw data.
        workers: Number of processes; None takes as many as there are cores and memory for.
        scheduler: Address of a Dask scheduler whose workers read the cases instead.
        progress: Called after each case of each step.

    Returns:
        The findings, errors first.

    Raises:
        KitsattnError: If no case has a label map.
    """
    cases, headers, findings = _read_headers(dataset, scheduler, progress)
    crew = _Crew(workers or _default_workers(headers), scheduler, progress)
    looks, errors = _sort(crew.run(partial(_look, classes=dataset.labels), cases, "verify"), cases)
    findings += errors + [finding for _, _, found in looks for finding in found]
    return _in_order(findings + find_twins((case_id, checksum) for case_id, checksum, _ in looks))


def _read_headers(
    dataset: Dataset, scheduler: str | None, progress: Progress
) -> tuple[list[CaseFiles], list[CaseHeader], list[Finding]]:
    """Return the labelled cases whose headers are in order, these headers, and what was found."""
    # Processes that run already, on a cluster above all, lie in folders of their own: they need absolute paths.
    labelled = [
        CaseFiles(case.case_id, case.image.absolute(), case.labels.absolute())
        for case in dataset.cases
        if case.labels is not None
    ]
    findings = []
    if not labelled:
        msg = f"{dataset.folder}: none of {len(dataset.cases)} cases has a label map, and training needs them"
        raise KitsattnError(msg)
    unlabelled = len(dataset.cases) - len(labelled)
    if unlabelled:
        text = f"{unlabelled} of {len(dataset.cases)} cases have no label map and are left out"
        findings.append(Finding(None, "note", text))
    if is_of_challenge(dataset):
        findings += [Finding(None, "note", remark) for remark in layout_remarks(dataset.layout)]
        for case in labelled:
            remarks = known_remarks(dataset.layout, case.case_id)
            findings += [Finding(case.case_id, "note", f"{case.case_id}: {remark}") for remark in remarks]
    # On a cluster this shows, before anything is changed, whether it answers and sees the files.
    results = try_cases(read_header, labelled, scheduler=scheduler, label="headers", progress=progress)
    headers, errors = _sort(results, labelled)
    if not headers:
        raise KitsattnError(errors[0].text)
    found = {header.case_id for header in headers}
    return [case for case in labelled if case.case_id in found], headers, findings + errors + check_headers(headers)


def _default_workers(headers: Sequence[CaseHeader]) -> int:
    largest = max(math.prod(header.shape) for header in headers)
    needed = int(_WORKER_BYTES + _VOXEL_BYTES * largest)
    workers = workers_that_fit(needed)
    if workers < available_cores():
        _log.info("%d workers: each needs %.1f GB of memory for the largest case", workers, needed / 1e9)
    return workers


@dataclass(frozen=True)
class _Crew:
    """Who works on the cases, and who is told."""

    workers: int
    scheduler: str | None
    progress: Progress

    def run(
        self, work: Callable[[CaseFiles], Result], cases: Sequence[CaseFiles], label: str
    ) -> list[Result | KitsattnError]:
        """Run `work` over all cases."""
        return try_cases(
            work, cases, workers=self.workers, scheduler=self.scheduler, label=label, progress=self.progress
        )


def _sort(results: Sequence[Result | KitsattnError], cases: Sequence[CaseFiles]) -> tuple[list[Result], list[Finding]]:
    """Part what was done from what failed."""
    done, failed = [], []
    for result, case in zip(results, cases, strict=True):
        if isinstance(result, KitsattnError):
            failed.append(Finding(case.case_id, "error", str(result)))
        else:
            done.append(result)
    return done, failed


def _in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings, errors first, and write them to the log."""
    ordered = sorted(findings, key=lambda finding: (_SEVERITIES.index(finding.severity), finding.case_id or ""))
    for finding in ordered:
        _log.debug("%s: %s", finding.severity, finding.text)
    return tuple(ordered)


def _look(case: CaseFiles, *, classes: Mapping[str, int]) -> tuple[str, str, list[Finding]]:
    """Read a case; return its name, the checksum of its scan, and what is odd about it."""
    scan, label_map = read_case(case, classes)
    fingerprint = take_fingerprint(case.case_id, scan, label_map.array, classes, body_box(scan))
    return case.case_id, sha256(case.image), check_case(case, scan, label_map, fingerprint, classes)


def _prepare(case: CaseFiles, *, folder: Path, classes: Mapping[str, int], target: Target | None) -> _Outcome:
    """Look at a case and prepare it for `target`, unless that was done before; without a target only look at it."""
    source = _find_source(case)
    file = folder / CASES_FOLDER / f"{case.case_id}{_RECORD_SUFFIX}"
    # A record that is missing, of another version, or of other files is made anew.
    with suppress(KitsattnError):
        record = from_json(_Record, read_json(file), str(file))
        same = (record.image_sha256, record.labels_sha256) == (source.image_sha256, source.labels_sha256)
        if same and (target is None or is_finished(folder, source, target)):
            return _Outcome(source, record, kept=True)
    scan, label_map = read_case(case, classes)
    prepared = None if target is None else prepare_scan(scan, target)
    box = body_box(scan) if prepared is None else prepared.placement.box
    fingerprint = take_fingerprint(case.case_id, scan, label_map.array, classes, box)
    findings = check_case(case, scan, label_map, fingerprint, classes)
    record = _Record(source.image_sha256, source.labels_sha256, fingerprint, tuple(findings))
    write_json(file, to_json(record))
    if prepared is not None:
        save_case(folder, source, prepared, label_map.array)
    return _Outcome(source, record, kept=False)


def _find_source(case: CaseFiles) -> CaseSource:
    assert case.labels is not None
    image, labels = case.image.resolve(), case.labels.resolve()
    return CaseSource(case.case_id, image, labels, sha256(image), sha256(labels))


def _forget(folder: Path) -> None:
    """Let no case count as finished."""
    for file in (folder / CASES_FOLDER).glob("*.json"):
        file.unlink()


def _unfinish(folder: Path, cases: Sequence[CaseFiles], target: Target) -> None:
    """Take the mark of a finished data set away from one that is about to change, and tidy up after killed workers."""
    for remains in (folder / CASES_FOLDER).glob(".*.part.*"):
        remains.unlink(missing_ok=True)
    try:
        before = open_dataset(folder)
    except KitsattnError:
        pass
    else:
        if before.plan.target == target and set(before.cases) == {case.case_id for case in cases}:
            return
    (folder / DATASET_FILE).unlink(missing_ok=True)


def _write_plan(path: Path, plan: Plan) -> None:
    """Write the plan that is used; another one of that name, edited by hand perhaps, is kept beside it."""
    if path.is_file() and read_json(path) != to_json(plan):
        kept = path.with_name(f"{path.stem}.previous.json")
        path.replace(kept)
        _log.warning("%s is replaced, the one before is kept as %s: to use it, add --plan %s", path, kept.name, kept)
    write_json(path, to_json(plan))


def _write_fingerprints(path: Path, fingerprints: Sequence[Fingerprint]) -> None:
    """Write what the plan was made from, for people: the histograms stay with the cases."""
    intensities = pool_intensities(fingerprints)
    cases = {fingerprint.case_id: to_json(fingerprint) for fingerprint in fingerprints}
    for case in cases.values():
        del case["case_id"], case["foreground"]
    write_json(path, {"foreground": None if intensities is None else to_json(intensities), "cases": cases})
