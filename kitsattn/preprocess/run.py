"""Preprocessing of a data set: fingerprints, plan, then every case; what is finished is not done again."""

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from kitsattn.config import from_json, to_json
from kitsattn.datasets.kits import CaseFiles, Dataset
from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, sha256, write_json
from kitsattn.jobs import Progress, run_cases, silent
from kitsattn.labels import BACKGROUND, check_labels
from kitsattn.preprocess.case import prepare_scan
from kitsattn.preprocess.fingerprint import Fingerprint, take_fingerprint
from kitsattn.preprocess.intensity import check_hu
from kitsattn.preprocess.plan import PAPER_WINDOW_HU, Plan, plan_dataset, read_plan
from kitsattn.preprocess.store import (
    CASES_FOLDER,
    DATASET_FILE,
    CaseSource,
    PreparedDataset,
    is_finished,
    save_case,
    save_dataset,
)
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.volume import Volume

PLAN_FILE = "plan.json"

_log = logging.getLogger(__name__)


def preprocess_dataset(
    dataset: Dataset,
    folder: Path,
    *,
    spacing_mm: float | None = None,
    plan_file: Path | None = None,
    workers: int = 1,
    resume: bool = True,
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare every labelled case of a data set; cases without labels are left out.

    Args:
        dataset: The raw data.
        folder: Where the prepared data set goes.
        spacing_mm: In-plane spacing, instead of the median of the cases or what the plan says.
        plan_file: A plan to use instead of making one.
        workers: Number of processes.
        resume: Whether cases that are finished already, from the same files and with the same plan, are kept.
        progress: Called after each case of each step.

    Returns:
        The prepared data set.

    Raises:
        KitsattnError: If a file cannot be read, is not in HU, or image and labels do not belong together.
    """
    if spacing_mm is not None and not (math.isfinite(spacing_mm) and spacing_mm > 0):
        msg = f"the in-plane spacing must be a finite number of mm above 0, got {spacing_mm}"
        raise KitsattnError(msg)
    plan = None if plan_file is None else read_plan(plan_file, spacing_mm=spacing_mm)
    labelled = [case for case in dataset.cases if case.labels is not None]
    if not labelled:
        msg = f"{dataset.folder}: none of {len(dataset.cases)} cases has a label map, and training needs them"
        raise KitsattnError(msg)
    if len(labelled) < len(dataset.cases):
        _log.warning(
            "%d of %d cases have no label map and are left out", len(dataset.cases) - len(labelled), len(dataset.cases)
        )
    sources = run_cases(_find_source, labelled, workers=workers, label="checksums", progress=progress)
    if plan is None:
        take = partial(_fingerprint, folder=folder, labels=dataset.labels, resume=resume)
        fingerprints = run_cases(take, sources, workers=workers, label="fingerprints", progress=progress)
        plan = plan_dataset(fingerprints, spacing_mm=None if spacing_mm is None else (spacing_mm, spacing_mm))
    _write_plan(folder / PLAN_FILE, plan)
    _log.info("plan: %s", to_json(plan))
    todo = [source for source in sources if not (resume and is_finished(folder, source, plan))]
    if todo:
        (folder / DATASET_FILE).unlink(missing_ok=True)
    _log.info("%d cases to prepare, %d finished already", len(todo), len(sources) - len(todo))
    for remains in (folder / CASES_FOLDER).glob(".*.part.*"):
        remains.unlink(missing_ok=True)  # a worker that was ended while it wrote could not tidy up
    prepare = partial(_prepare, folder=folder, labels=dataset.labels, plan=plan)
    remarks = run_cases(prepare, todo, workers=workers, label="cases", progress=progress)
    for remark in chain.from_iterable(remarks):
        _log.warning(remark)
    prepared = PreparedDataset(
        folder=folder,
        name=dataset.name,
        synthetic=dataset.synthetic,
        licence=dataset.licence,
        citation=dataset.citation,
        labels=dataset.labels,
        plan=plan,
        sources={source.case_id: source for source in sources},
    )
    save_dataset(prepared)
    return prepared


def _write_plan(path: Path, plan: Plan) -> None:
    """Write the plan that is used; another one of that name, edited by hand perhaps, is kept beside it."""
    if path.is_file() and read_json(path) != to_json(plan):
        kept = path.with_name(f"{path.stem}.previous.json")
        path.replace(kept)
        _log.warning("%s is replaced, the one before is kept as %s: to use it, add --plan %s", path, kept.name, kept)
    write_json(path, to_json(plan))


@dataclass(frozen=True)
class _FingerprintRecord:
    """A fingerprint and the files it was taken of."""

    image_sha256: str
    labels_sha256: str
    fingerprint: Fingerprint


def _find_source(case: CaseFiles) -> CaseSource:
    assert case.labels is not None
    image, labels = case.image.resolve(), case.labels.resolve()
    return CaseSource(case.case_id, image, labels, sha256(image), sha256(labels))


def _fingerprint(source: CaseSource, *, folder: Path, labels: Mapping[str, int], resume: bool) -> Fingerprint:
    file = folder / CASES_FOLDER / f"{source.case_id}.fingerprint.json"
    checksums = (source.image_sha256, source.labels_sha256)
    # A record that is missing, or of another version, is made anew.
    with suppress(KitsattnError):
        record = from_json(_FingerprintRecord, read_json(file), str(file))
        if resume and (record.image_sha256, record.labels_sha256) == checksums:
            return record.fingerprint
    scan, label_map = _read_case(source, labels)
    fingerprint = take_fingerprint(source.case_id, scan, label_map.array, PAPER_WINDOW_HU)
    write_json(file, to_json(_FingerprintRecord(*checksums, fingerprint)))
    return fingerprint


def _prepare(source: CaseSource, *, folder: Path, labels: Mapping[str, int], plan: Plan) -> list[str]:
    """Prepare one case and return what was odd about it: a worker process has no log of its own."""
    scan, label_map = _read_case(source, labels)
    prepared = prepare_scan(scan, plan)
    y0, y1, x0, x1 = prepared.placement.box
    labelled = np.count_nonzero(label_map.array != BACKGROUND)
    outside = labelled - np.count_nonzero(label_map.array[:, y0:y1, x0:x1] != BACKGROUND)
    remarks = [f"{source.image}: {note}" for note in scan.notes] + [
        f"{source.labels}: {note}" for note in label_map.notes
    ]
    if outside:
        remarks.append(f"{source.labels}: {outside} of {labelled} labelled voxels lie outside the body and are lost")
    save_case(folder, source, prepared, label_map.array)
    return remarks


def _read_case(source: CaseSource, labels: Mapping[str, int]) -> tuple[Volume, Volume]:
    """Read scan and label map, and check that they belong together."""
    scan = check_hu(read_scan(source.image))
    label_map = read_labels(source.labels)
    difference = scan.geometry.difference(label_map.geometry)
    if difference is not None:
        msg = f"{source.labels} does not lie on the grid of {source.image} ({difference}): export both from one scan"
        raise KitsattnError(msg)
    if label_map.array.max() > max(labels.values()):
        check_labels(np.unique(label_map.array).tolist(), labels, str(source.labels))
    return scan, label_map
