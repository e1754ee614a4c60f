"""What the headers of a data set's cases tell before any voxel is read: which cases can be prepared, and with what."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from kitsattn.datasets.dataset import CaseFiles, Dataset
from kitsattn.datasets.known import is_of_challenge, known_remarks, layout_remarks
from kitsattn.errors import KitsattnError
from kitsattn.jobs import HERE, Progress, Workers, try_cases
from kitsattn.machine import available_cores, workers_that_fit
from kitsattn.preprocess.plan import MOST_PIXELS
from kitsattn.preprocess.resample import resampled_shape
from kitsattn.preprocess.verify import CaseHeader, Finding, check_headers, read_header

_LEAST_SPACING_MM = 0.01

_WORKER_BYTES = 250_000_000
_SPARE_BYTES = 1.5
"""Memory of a worker: the interpreter with its libraries, and for each voxel what is not scan or labels."""

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


def read_headers(
    dataset: Dataset, workers: Workers | None, progress: Progress
) -> tuple[list[CaseFiles], list[CaseHeader], list[Finding]]:
    """Return the labelled cases whose headers are in order, these headers, and what was found.

    Raises:
        KitsattnError: If no case has a label map.
    """
    # Processes that run already, on a cluster above all, are in folders of their own: they need absolute paths.
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
    # On a cluster this shows, before anything is changed, whether it answers and sees the files. Here it is quick.
    cluster = Workers(scheduler=workers.scheduler) if workers else HERE
    results = try_cases(read_header, labelled, workers=cluster, label="headers", progress=progress)
    headers, errors = part_failed(results, labelled)
    findings += errors
    found = {header.case_id for header in headers}
    return [case for case in labelled if case.case_id in found], headers, findings + check_headers(headers)


def _absolute(path: Path) -> Path:
    """Return the absolute path of a file that may be a link itself: what it leads to may have a name without suffix."""
    return path.parent.resolve() / path.name


def find_oversized(headers: Sequence[CaseHeader], spacing_mm: tuple[float, float]) -> list[Finding]:
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


def choose_workers(headers: Sequence[CaseHeader]) -> Workers:
    """Return as many other processes as there are cores, and memory for the largest case."""
    needed = max(_needed_bytes(header) for header in headers)
    fitting = workers_that_fit(needed)
    if fitting < available_cores():
        _log.info("workers: %d, each needs %.1f GB of memory for the largest case", fitting, needed / 1e9)
    return Workers(fitting, apart=True)


def _needed_bytes(header: CaseHeader) -> int:
    """Return the memory of a worker for a case: both ends of a conversion are there at a time, in the worst step."""
    image, labels = header.voxel_bytes
    scan = 2 if image <= 2 else 4  # noqa: PLR2004 - int16 where that loses nothing, else float32
    voxel = max(image + scan, scan + labels + 1) + _SPARE_BYTES
    return int(_WORKER_BYTES + voxel * math.prod(header.shape))


def part_failed(
    results: Sequence[Result | KitsattnError], cases: Sequence[CaseFiles]
) -> tuple[list[Result], list[Finding]]:
    """Part what was done from what failed."""
    done, failed = [], []
    for result, case in zip(results, cases, strict=True):
        if isinstance(result, KitsattnError):
            failed.append(Finding(case.case_id, "error", str(result)))
        else:
            done.append(result)
    return done, failed
