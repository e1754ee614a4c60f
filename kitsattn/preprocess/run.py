"""Preprocessing of a data set: headers, plan, then every case once; what is finished is not done again.

Each scan is read once: spacing comes from the headers of all cases, and what a case stores depends on spacing and
window only. Mean and standard deviation come from the fingerprints that were taken on the way.
"""

import logging
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

from kitsattn.config import to_json
from kitsattn.datasets.dataset import CaseFiles, Dataset
from kitsattn.datasets.known import is_of_challenge, known_remarks, layout_remarks
from kitsattn.errors import KitsattnError
from kitsattn.files import sha256, sole_writer, tidy_folder, write_json, write_text
from kitsattn.jobs import Progress, available_cores, silent, try_cases, workers_that_fit
from kitsattn.preprocess.fingerprint import Fingerprint, pool_intensities
from kitsattn.preprocess.plan import (
    MOST_PIXELS,
    PAPER_WINDOW_HU,
    Plan,
    Target,
    Window,
    median_spacing,
    plan_dataset,
    read_plan,
)
from kitsattn.preprocess.resample import resampled_shape
from kitsattn.preprocess.store import (
    CASES_FOLDER,
    DATASET_FILE,
    RECORD_FILE,
    PreparedDataset,
    open_dataset,
    save_dataset,
)
from kitsattn.preprocess.verify import CaseHeader, Finding, Severity, check_headers, find_twins, read_header
from kitsattn.preprocess.worker import FINGERPRINTS_FOLDER, CaseReview, prepare_case, review_case, reviewed_sources
from kitsattn.words import name_some, plural

PLAN_FILE = "plan.json"
FINGERPRINT_FILE = "fingerprint.json"
REPORT_FILE = "report.html"

_SEVERITIES = get_args(Severity)
_LEAST_SPACING_MM = 0.01

_WORKER_BYTES = 250_000_000
_SPARE_BYTES = 1.5
"""Memory of a worker: the interpreter with its libraries, and for each voxel what is not scan or labels."""

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


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
    assume_hu: bool = False,
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
        workers: Number of processes, 1 being this one; None takes as many others as there are cores and memory for.
        scheduler: Address of a Dask scheduler whose workers prepare the cases instead.
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
    cases, headers, findings = _read_headers(dataset, scheduler, progress)
    if not headers:
        raise _nothing_left(findings)
    square = None if spacing_mm is None else (spacing_mm, spacing_mm)
    spacing = square or median_spacing([header.spacing_mm for header in headers])
    oversized = _find_oversized(headers, spacing if plan is None else plan.spacing_mm)
    findings += oversized
    left_out = {finding.case_id for finding in oversized}
    cases = [case for case in cases if case.case_id not in left_out]
    crew = _Crew.of(workers, scheduler, [header for header in headers if header.case_id not in left_out], progress)
    work = partial(prepare_case, folder=folder.absolute(), classes=dataset.labels, assume_hu=assume_hu)
    with sole_writer(folder, "kitsattn preprocess"):
        _refuse_another(folder, cases)
        _tidy(folder)
        if not resume:
            _forget(folder)
        finished = {record.parent.name for record in (folder / CASES_FOLDER).glob(f"*/{RECORD_FILE}")}
        if plan is None and window == "nnunet":
            looks, errors = _part(crew.run(partial(work, target=None), cases, "fingerprints"), cases)
            plan = _plan([look.review for look in looks], findings + errors, spacing, window)
        target = Target(spacing, PAPER_WINDOW_HU) if plan is None else plan.target
        outcomes, errors = _part(crew.run(partial(work, target=target), cases, "cases"), cases)
        _tidy(folder)
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
        _write(prepared, fingerprints)
    # A case that was finished in this run, by a worker that was killed at the next one, is none of before.
    kept = sum(outcome.kept and outcome.review.source.case_id in finished for outcome in outcomes)
    _log.info("%s prepared, %d finished before", plural(len(outcomes) - kept, "case"), kept)
    return Preprocessed(prepared, fingerprints, _in_order(findings), kept)


def verify_dataset(
    dataset: Dataset,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    assume_hu: bool = False,
    progress: Progress = silent,
) -> tuple[Finding, ...]:
    """Read every voxel of a data set and tell what is wrong or odd, without preparing anything.

    Args:
        dataset: The raw data.
        workers: Number of processes, 1 being this one; None takes as many others as there are cores and memory for.
        scheduler: Address of a Dask scheduler whose workers read the cases instead.
        assume_hu: Whether the values of all scans are taken as HU without a check.
        progress: Called after each case of each step.

    Returns:
        The findings, errors first.

    Raises:
        KitsattnError: If no case has a label map.
    """
    cases, headers, findings = _read_headers(dataset, scheduler, progress)
    if not headers:
        return _in_order(findings)
    try:
        findings += _find_oversized(headers, median_spacing([header.spacing_mm for header in headers]))
    except KitsattnError as error:
        findings.append(Finding(None, "error", str(error)))
    crew = _Crew.of(workers, scheduler, headers, progress)
    review = partial(review_case, classes=dataset.labels, assume_hu=assume_hu)
    reviews, errors = _part(crew.run(review, cases, "verify"), cases)
    findings += errors + [finding for review in reviews for finding in review.findings]
    findings += find_twins((review.source.case_id, review.source.image_sha256) for review in reviews)
    return _in_order(findings)


def _read_headers(
    dataset: Dataset, scheduler: str | None, progress: Progress
) -> tuple[list[CaseFiles], list[CaseHeader], list[Finding]]:
    """Return the labelled cases whose headers are in order, these headers, and what was found.

    Raises:
        KitsattnError: If no case has a label map.
    """
    # Processes that run already, on a cluster above all, lie in folders of their own: they need absolute paths.
    labelled = [
        CaseFiles(case.case_id, _absolute(case.image), _absolute(case.labels))
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
    headers, errors = _part(results, labelled)
    findings += errors
    found = {header.case_id for header in headers}
    return [case for case in labelled if case.case_id in found], headers, findings + check_headers(headers)


def _absolute(path: Path) -> Path:
    """Return the absolute path of a file that may be a link itself: what it leads to may have a name without suffix."""
    return path.parent.resolve() / path.name


def _refuse_another(folder: Path, cases: Sequence[CaseFiles]) -> None:
    """Refuse to write over the prepared cases of another data set of the same name.

    The raw folder may have moved, or be a copy: then its files have gone from where they were, or some are the same.
    """
    try:
        before = list(open_dataset(folder).sources.values())
    except KitsattnError:
        before = reviewed_sources(folder)
    images = {source.image for source in before}
    now = {case.image.resolve() for case in cases}
    if any(image.resolve() in now for image in images) or not any(_is_there(image) for image in images):
        return
    by_id = {case.case_id: case.image for case in cases}
    for source in before:
        with suppress(KitsattnError):
            if source.case_id in by_id and sha256(by_id[source.case_id]) == source.image_sha256:
                return
    msg = (
        f"{folder} holds another data set of this name, from {min(images)} and so on: give this one a name of its "
        "own in kitsattn-dataset.json, or choose another --workspace"
    )
    raise KitsattnError(msg)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # it may not be looked at, so it has not gone
        return True


def _find_oversized(headers: Sequence[CaseHeader], spacing_mm: tuple[float, float]) -> list[Finding]:
    """Find cases whose slices would have more voxels than any scanner's: their headers are wrong.

    Raises:
        KitsattnError: If that is so for most cases: then the spacing is wrong.
    """
    finest = min(spacing_mm)
    if finest < _LEAST_SPACING_MM:
        msg = (
            f"an in-plane spacing of {finest:g} mm is none of a CT scan: "
            f"give one in mm with --spacing, {_LEAST_SPACING_MM:g} at least, or fix the files if their headers say so"
        )
        raise KitsattnError(msg)
    texts = {}
    for header in headers:
        _, row_mm, column_mm = header.spacing_mm
        rows, columns = resampled_shape(header.shape[1:], (row_mm, column_mm), spacing_mm)
        if max(rows, columns) > MOST_PIXELS:
            texts[header.case_id] = (
                f"{header.case_id}: its slices of {header.shape[1]} x {header.shape[2]} voxels of {row_mm:g} x "
                f"{column_mm:g} mm would have {rows} x {columns} at {finest:g} mm, and {MOST_PIXELS} are the most"
            )
    if 2 * len(texts) > len(headers):
        msg = f"{next(iter(texts.values()))}: give a larger --spacing, in mm"
        raise KitsattnError(msg)
    return [Finding(case_id, "error", f"{text}: fix the header") for case_id, text in texts.items()]


def _find_strays(finished: Collection[str], dataset: Dataset) -> list[Finding]:
    """Find prepared cases that are none of the data set's any more."""
    strays = sorted(set(finished).difference(case.case_id for case in dataset.cases))
    if not strays:
        return []
    text = (
        f"{CASES_FOLDER} still holds {name_some(strays)}, which the data set has no more: delete what you do not need"
    )
    return [Finding(None, "note", text)]


@dataclass(frozen=True)
class _Crew:
    """Who works on the cases, and who is told.

    Attributes:
        workers: Number of processes on this machine.
        apart: Whether a single one is another than this.
        scheduler: Of the Dask cluster that works instead.
        progress: Called after each case.
    """

    workers: int
    apart: bool
    scheduler: str | None
    progress: Progress

    @classmethod
    def of(
        cls, workers: int | None, scheduler: str | None, headers: Sequence[CaseHeader], progress: Progress
    ) -> "_Crew":
        """Return the crew that the user asked for, or one that memory has room for."""
        if workers is not None or scheduler is not None:
            return cls(workers or 1, apart=False, scheduler=scheduler, progress=progress)
        needed = max(_needed_bytes(header) for header in headers)
        fitting = workers_that_fit(needed)
        if fitting < available_cores():
            _log.info("workers: %d, each needs %.1f GB of memory for the largest case", fitting, needed / 1e9)
        return cls(fitting, apart=True, scheduler=None, progress=progress)

    def run(
        self, work: Callable[[CaseFiles], Result], cases: Sequence[CaseFiles], label: str
    ) -> list[Result | KitsattnError]:
        """Run `work` over all cases."""
        return try_cases(
            work,
            cases,
            workers=self.workers,
            apart=self.apart,
            scheduler=self.scheduler,
            label=label,
            progress=self.progress,
        )


def _needed_bytes(header: CaseHeader) -> int:
    """Return the memory of a worker for a case: both ends of a conversion are there at a time, in the worst step."""
    image, labels = header.voxel_bytes
    scan = 2 if image <= 2 else 4  # noqa: PLR2004 - int16 where that loses nothing, else float32
    voxel = max(image + scan, scan + labels + 1) + _SPARE_BYTES
    return int(_WORKER_BYTES + voxel * math.prod(header.shape))


def _part(results: Sequence[Result | KitsattnError], cases: Sequence[CaseFiles]) -> tuple[list[Result], list[Finding]]:
    """Part what was done from what failed."""
    done, failed = [], []
    for result, case in zip(results, cases, strict=True):
        if isinstance(result, KitsattnError):
            failed.append(Finding(case.case_id, "error", str(result)))
        else:
            done.append(result)
    return done, failed


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


def _forget(folder: Path) -> None:
    """Let the data set and all its cases be unfinished."""
    (folder / DATASET_FILE).unlink(missing_ok=True)
    for part in (FINGERPRINTS_FOLDER, CASES_FOLDER):
        shutil.rmtree(folder / part, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Undo what killed workers left half-done."""
    for part in (FINGERPRINTS_FOLDER, CASES_FOLDER):
        tidy_folder(folder / part)


def _write(prepared: PreparedDataset, fingerprints: Sequence[Fingerprint]) -> None:
    """Write plan, fingerprint and description; the report of another state of the data set is removed."""
    folder = prepared.folder
    _write_plan(folder / PLAN_FILE, prepared.plan)
    _write_fingerprints(folder / FINGERPRINT_FILE, fingerprints)
    with suppress(KitsattnError):
        if open_dataset(folder) == prepared:
            return
    (folder / REPORT_FILE).unlink(missing_ok=True)
    save_dataset(prepared)
    _log.info("plan: %s", prepared.plan)


def _write_plan(path: Path, plan: Plan) -> None:
    """Write the plan that is used; another one of that name, edited by hand perhaps, is kept beside it."""
    content = _text(path)
    write_json(path, to_json(plan))
    if content is None or content == _text(path):
        return
    number = 1
    while (kept := path.with_name(f"{path.stem}.previous-{number}.json")).exists():
        if _text(kept) == content:
            return
        number += 1
    write_text(kept, content)
    _log.warning("%s is replaced, the one before is kept as %s: to use it, add --plan %s", path, kept.name, kept)


def _text(path: Path) -> str | None:
    return path.read_text("utf-8", errors="replace") if path.is_file() else None


def _write_fingerprints(path: Path, fingerprints: Sequence[Fingerprint]) -> None:
    """Write what the plan was made from, for people: the histograms stay with the cases."""
    intensities = pool_intensities(fingerprints)
    cases = {fingerprint.case_id: to_json(fingerprint) for fingerprint in fingerprints}
    for case in cases.values():
        del case["case_id"], case["foreground"]
    write_json(path, {"foreground": None if intensities is None else to_json(intensities), "cases": cases})
