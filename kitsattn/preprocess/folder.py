"""The folder of a prepared data set: whose it is, what a killed run left in it, and the files about all cases."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kitsattn.config import to_json
from kitsattn.datasets.dataset import CaseFiles
from kitsattn.errors import KitsattnError
from kitsattn.files import sha256, tidy_folder, write_json, write_text
from kitsattn.preprocess.fingerprint import Fingerprint, pool_intensities
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.store import CASES_FOLDER, DATASET_FILE, PreparedDataset, open_dataset, save_dataset
from kitsattn.preprocess.worker import FINGERPRINTS_FOLDER, reviewed_sources

PLAN_FILE = "plan.json"
FINGERPRINT_FILE = "fingerprint.json"
REPORT_FILE = "report.html"

_log = logging.getLogger(__name__)


def refuse_another(folder: Path, cases: Sequence[CaseFiles]) -> None:
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


def forget_cases(folder: Path) -> None:
    """Let the data set and all its cases be unfinished."""
    (folder / DATASET_FILE).unlink(missing_ok=True)
    for part in (FINGERPRINTS_FOLDER, CASES_FOLDER):
        shutil.rmtree(folder / part, ignore_errors=True)


def tidy_cases(folder: Path) -> None:
    """Undo what killed workers left half-done."""
    for part in (FINGERPRINTS_FOLDER, CASES_FOLDER):
        tidy_folder(folder / part)


def write_results(prepared: PreparedDataset, fingerprints: Sequence[Fingerprint]) -> None:
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
