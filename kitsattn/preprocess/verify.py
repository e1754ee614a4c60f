"""Whether raw cases are fit to be learned from: what is wrong, what is odd, and how to fix it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kitsattn.datasets.dataset import CaseFiles
from kitsattn.errors import KitsattnError
from kitsattn.labels import BACKGROUND, check_labels
from kitsattn.preprocess.crop import Box
from kitsattn.preprocess.fingerprint import Fingerprint
from kitsattn.volume.ct import read_ct
from kitsattn.volume.formats import read_grid, read_labels
from kitsattn.volume.geometry import Geometry, Shape, Triple
from kitsattn.volume.volume import Volume

Severity = Literal["error", "warning", "note"]
"""An error keeps a case out; a warning should be looked at; a note is known to be so."""

_SOFT_TISSUE_HU = (-200, 600)
"""Where kidneys, tumours, cysts and their fat and stones are in any contrast phase."""
_STRANGE_SHARE = 0.1
_THICK_MM = 10.0


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        case_id: The case; None for the data set.
        severity: How bad it is.
        text: One sentence that names the file and, where there is one, the fix.
    """

    case_id: str | None
    severity: Severity
    text: str


@dataclass(frozen=True)
class CaseHeader:
    """What the headers of a case's files say.

    Attributes:
        case_id: The case.
        shape: Of the scan, (z, y, x).
        spacing_mm: Of the scan, (z, y, x).
        slice_axis: Which axis of the scan's file its slices are stacked along, 0, 1 or 2.
        voxel_bytes: Bytes of a voxel in the files of scan and labels.
    """

    case_id: str
    shape: Shape
    spacing_mm: Triple
    slice_axis: int
    voxel_bytes: tuple[int, int]


def read_header(case: CaseFiles) -> CaseHeader:
    """Read the headers of a case's files, and check that they are on one grid.

    Raises:
        KitsattnError: If a header cannot be read, or image and labels are not on the same grid.
    """
    assert case.labels is not None
    geometry, file_grid, image_bytes = read_grid(case.image)
    labels_geometry, _, labels_bytes = read_grid(case.labels)
    _check_same_grid(case, geometry, labels_geometry)
    return CaseHeader(
        case.case_id, geometry.shape, geometry.spacing_mm, file_grid.order[0], (image_bytes, labels_bytes)
    )


def read_case(case: CaseFiles, classes: Mapping[str, int], *, assume_hu: bool = False) -> tuple[Volume, Volume]:
    """Read scan and label map, and check that they belong together.

    Args:
        case: The files.
        classes: Class name to label value.
        assume_hu: Whether the scan's values are taken as HU without a check.

    Returns:
        The scan in HU and the label map, on the same grid.

    Raises:
        KitsattnError: If a file cannot be read, is not in HU or no label map, or the two do not belong together.
    """
    assert case.labels is not None
    scan = read_ct(case.image, assume_hu=assume_hu)
    label_map = read_labels(case.labels)
    _check_same_grid(case, scan.geometry, label_map.geometry)
    if label_map.array.max() > max(classes.values()):
        check_labels(np.unique(label_map.array).tolist(), classes, str(case.labels))
    return scan, label_map


def check_case(
    case: CaseFiles, scan: Volume, label_map: Volume, fingerprint: Fingerprint, classes: Mapping[str, int]
) -> list[Finding]:
    """Look for what is odd about a case that could be read.

    Args:
        case: The files, which are named in findings.
        scan: In HU.
        label_map: On the same grid.
        fingerprint: Of the case.
        classes: Class name to label value.
    """
    texts = [f"{case.image}: {note}" for note in scan.notes] + [f"{case.labels}: {note}" for note in label_map.notes]
    if fingerprint.spacing_mm[0] > _THICK_MM:
        texts.append(f"{case.image}: the slices are {fingerprint.spacing_mm[0]:g} mm apart: is this a localiser?")
    foreground = fingerprint.foreground
    if foreground is None:
        texts.append(f"{case.labels}: nothing is labelled: is it the right file?")
    else:
        hu = foreground.lowest_hu + np.arange(len(foreground.counts))
        strange = (hu < _SOFT_TISSUE_HU[0]) | (hu > _SOFT_TISSUE_HU[1])
        share = np.array(foreground.counts)[strange].sum() / foreground.voxels
        if share > _STRANGE_SHARE:
            texts.append(
                f"{case.labels}: {share:.0%} of the labelled voxels are below {_SOFT_TISSUE_HU[0]} or above "
                f"{_SOFT_TISSUE_HU[1]} HU: look whether the label map belongs to the scan"
            )
        outside = _labelled_outside(label_map, fingerprint.body_box)
        if outside:
            texts.append(
                f"{case.labels}: {outside} of {foreground.voxels} labelled voxels are outside the body and are lost"
            )
    findings = [Finding(case.case_id, "warning", text) for text in texts]
    absent = [
        name for name, count in fingerprint.voxels.items() if not count and classes[name] != max(classes.values())
    ]
    if foreground is not None and absent:
        findings.append(Finding(case.case_id, "note", f"{case.labels}: no voxel is labelled {' or '.join(absent)}"))
    return findings


def check_headers(headers: Sequence[CaseHeader]) -> list[Finding]:
    """Look for the few cases that differ from all others."""
    findings = []
    wide = [header for header in headers if header.shape[1] != header.shape[2]]
    if len(wide) < len(headers) / 2:
        findings += [
            Finding(header.case_id, "note", f"{header.case_id}: its slices of {_size(header)} voxels are not square")
            for header in wide
        ]
    stacked = defaultdict(list)
    for header in headers:
        stacked[header.slice_axis].append(header)
    for axis, few in stacked.items():
        if len(few) < len(headers) / 2:
            text = f"its slices are stacked along axis {axis} of the file, unlike most: they are turned like all others"
            findings += [Finding(header.case_id, "note", f"{header.case_id}: {text}") for header in few]
    return findings


def find_twins(checksums: Iterable[tuple[str, str]]) -> list[Finding]:
    """Find cases that have the same file; takes (case id, checksum) pairs."""
    owners = defaultdict(list)
    for case_id, checksum in checksums:
        owners[checksum].append(case_id)
    return [
        Finding(
            case_id,
            "warning",
            f"{case_id} has the same scan as {twins[0]}: remove one of them, "
            "or a fold may be scored on what it has learned from",
        )
        for twins in owners.values()
        for case_id in twins[1:]
    ]


def _size(header: CaseHeader) -> str:
    return f"{header.shape[1]} x {header.shape[2]}"


def _check_same_grid(case: CaseFiles, scan: Geometry, labels: Geometry) -> None:
    difference = scan.difference(labels)
    if difference is not None:
        msg = f"{case.labels} is not on the grid of {case.image} ({difference}): export both from one scan"
        raise KitsattnError(msg)


def _labelled_outside(label_map: Volume, box: Box) -> int:
    y0, y1, x0, x1 = box
    labelled = np.count_nonzero(label_map.array != BACKGROUND)
    return int(labelled - np.count_nonzero(label_map.array[:, y0:y1, x0:x1] != BACKGROUND))
