"""What is done with one raw case, in whichever process: look at it, take its fingerprint, prepare it; once."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kitsattn.config import from_json, to_json
from kitsattn.datasets.dataset import CaseFiles
from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, sha256, write_json
from kitsattn.preprocess.case import prepare_scan
from kitsattn.preprocess.crop import Box, body_box
from kitsattn.preprocess.fingerprint import Fingerprint, take_fingerprint
from kitsattn.preprocess.plan import Target
from kitsattn.preprocess.store import CaseSource, is_finished, save_case
from kitsattn.preprocess.verify import Finding, check_case, read_case
from kitsattn.volume.volume import Volume

FINGERPRINTS_FOLDER = "fingerprints"

_FORMAT = "kitsattn-fingerprint/1"


@dataclass(frozen=True, kw_only=True)
class CaseReview:
    """What was seen in a case; kept as `fingerprints/<id>.json`, so that a finished case need not be read again.

    Attributes:
        format: Tag of the format; a review with another tag is made again.
        source: The files that were looked at.
        labels: Class name to label value.
        fingerprint: Of the case.
        findings: What is odd about it.
    """

    format: str
    source: CaseSource
    labels: Mapping[str, int]
    fingerprint: Fingerprint
    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        """Check the format."""
        if self.format != _FORMAT:
            msg = f"format {self.format!r} is not {_FORMAT!r}"
            raise ValueError(msg)


@dataclass(frozen=True)
class PreparedCase:
    """What became of a case.

    Attributes:
        review: What was seen in it.
        kept: Whether it was finished before.
    """

    review: CaseReview
    kept: bool


def reviewed_sources(folder: Path) -> list[CaseSource]:
    """Return where the cases come from that were looked at for the prepared data set in `folder`."""
    sources = []
    for file in sorted((folder / FINGERPRINTS_FOLDER).glob("*.json")):
        with suppress(KitsattnError, KeyError, TypeError):
            sources.append(from_json(CaseSource, read_json(file)["source"], str(file)))
    return sources


def review_case(case: CaseFiles, *, classes: Mapping[str, int], assume_hu: bool = False) -> CaseReview:
    """Read every voxel of a case and tell what was seen; `assume_hu` takes the scan's values as HU without a check.

    Raises:
        KitsattnError: If it cannot be read, or its files do not belong together.
    """
    volumes = read_case(case, classes, assume_hu=assume_hu)
    return _see(case, _find_source(case, assumed_hu=assume_hu), volumes, classes, body_box(volumes[0]))


def prepare_case(
    case: CaseFiles, *, folder: Path, classes: Mapping[str, int], target: Target | None, assume_hu: bool = False
) -> PreparedCase:
    """Look at a case and prepare it for `target`, unless that was done before; without a target only look at it.

    Args:
        case: The raw files.
        folder: Of the prepared data set.
        classes: Class name to label value.
        target: Spacing and window.
        assume_hu: Whether the scan's values are taken as HU without a check.

    Raises:
        KitsattnError: If it cannot be read or written, or its files do not belong together.
    """
    source = _find_source(case, assumed_hu=assume_hu)
    file = folder / FINGERPRINTS_FOLDER / f"{case.case_id}.json"
    # A review that is missing, of another version, or of other files is made again.
    with suppress(KitsattnError):
        review = from_json(CaseReview, read_json(file), str(file))
        if review.labels == classes and _same_content(review.source, source):
            review = _moved(review, source)
            if target is None or is_finished(folder, source, target, classes):
                return PreparedCase(review, kept=True)
    scan, label_map = read_case(case, classes, assume_hu=assume_hu)
    prepared = None if target is None else prepare_scan(scan, target)
    box = body_box(scan) if prepared is None else prepared.placement.box
    review = _see(case, source, (scan, label_map), classes, box)
    write_json(file, to_json(review))
    if prepared is not None:
        save_case(folder, source, prepared, label_map.array, classes)
    return PreparedCase(review, kept=False)


def _see(
    case: CaseFiles, source: CaseSource, volumes: tuple[Volume, Volume], classes: Mapping[str, int], box: Box
) -> CaseReview:
    scan, label_map = volumes
    fingerprint = take_fingerprint(case.case_id, scan, label_map.array, classes, box)
    findings = check_case(case, scan, label_map, fingerprint, classes)
    return CaseReview(format=_FORMAT, source=source, labels=classes, fingerprint=fingerprint, findings=tuple(findings))


def _find_source(case: CaseFiles, *, assumed_hu: bool) -> CaseSource:
    assert case.labels is not None
    checksums = sha256(case.image), sha256(case.labels)
    return CaseSource(case.case_id, case.image, case.labels, *checksums, assumed_hu=assumed_hu)


def _same_content(one: CaseSource, other: CaseSource) -> bool:
    return replace(one, image=other.image, labels=other.labels) == other


def _moved(review: CaseReview, source: CaseSource) -> CaseReview:
    """Return a review whose findings name the files where they are now."""
    before = review.source
    findings = [
        replace(
            finding,
            text=finding.text.replace(str(before.image), str(source.image)).replace(
                str(before.labels), str(source.labels)
            ),
        )
        for finding in review.findings
    ]
    return replace(review, source=source, findings=tuple(findings))
