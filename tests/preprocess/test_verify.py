"""What verification finds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kitsattn.datasets.dataset import CaseFiles
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS
from kitsattn.preprocess.crop import body_box
from kitsattn.preprocess.fingerprint import take_fingerprint
from kitsattn.preprocess.verify import (
    CaseHeader,
    Finding,
    check_case,
    check_headers,
    find_twins,
    read_case,
    read_header,
)
from kitsattn.volume.nifti import read_labels, read_scan, write_nifti


@pytest.fixture
def case(tmp_path: Path, write_case: Callable[[Path, str], Path]) -> CaseFiles:
    """The files of the small abdomen."""
    folder = write_case(tmp_path, "case_00004")
    return CaseFiles("case_00004", folder / "imaging.nii.gz", folder / "segmentation.nii.gz")


def labels_of(case: CaseFiles) -> Path:
    """Return the path of a case's label map, which it has."""
    assert case.labels is not None
    return case.labels


def check(case: CaseFiles) -> list[Finding]:
    """Read a case and return what is odd about it."""
    scan, labels = read_case(case, KITS19_LABELS)
    fingerprint = take_fingerprint(case.case_id, scan, labels.array, KITS19_LABELS, body_box(scan))
    return check_case(case, scan, labels, fingerprint, KITS19_LABELS)


def test_nothing_is_found_in_a_good_case(case: CaseFiles) -> None:
    """The small abdomen is in order."""
    assert check(case) == []


def test_header_is_that_of_the_file(case: CaseFiles) -> None:
    """Shape and spacing are in (z, y, x); KiTS19 stacks slices along the first axis of a file, most others the last."""
    assert read_header(case) == CaseHeader("case_00004", (12, 60, 80), (5.0, 4.0, 4.0), 0, (2, 1))
    for path in (case.image, labels_of(case)):
        write_nifti(path, read_scan(path), axes="RAS")
    assert read_header(case) == CaseHeader("case_00004", (12, 60, 80), (5.0, 4.0, 4.0), 2, (2, 2))


@pytest.mark.parametrize("read", [read_header, lambda case: read_case(case, KITS19_LABELS)])
def test_label_map_of_another_grid_is_refused(case: CaseFiles, read: Callable[[CaseFiles], object]) -> None:
    """Grids are compared in the patient: the order of axes does not count, a shift of 2 mm and a lost slice do."""
    path = labels_of(case)
    labels = read_labels(path)
    write_nifti(path, labels, axes="RAS")
    read(case)

    write_nifti(path, replace(labels, geometry=replace(labels.geometry, origin_mm=(0.0, 2.0, 0.0))))
    with pytest.raises(KitsattnError, match=r"segmentation.* is not on the grid of .*imaging.* up to 0.5 voxels apart"):
        read(case)

    nib.save(nib.Nifti1Image.from_filename(path).slicer[:, :, 1:], path)
    with pytest.raises(KitsattnError, match=r"segmentation.*\(12, 60, 80\) against \(11, 60, 80\)"):
        read(case)


def test_unknown_labels_are_refused(case: CaseFiles) -> None:
    """A label that the data set does not define is named with the file and the known ones."""
    labels = read_labels(labels_of(case))
    write_nifti(labels_of(case), labels.with_array(labels.array * np.uint8(2)))

    with pytest.raises(KitsattnError, match=r"segmentation.* unknown labels \[4\].*0 background, 1 kidney"):
        read_case(case, KITS19_LABELS)


def test_what_was_odd_about_reading_is_found(case: CaseFiles) -> None:
    """A fixed offset of 1024 is a warning that names the scan."""
    scan = read_scan(case.image)
    write_nifti(case.image, scan.with_array(scan.array + np.int16(1024)))

    (finding,) = check(case)

    assert (finding.case_id, finding.severity) == ("case_00004", "warning")
    assert finding.text.startswith(f"{case.image}: The values had an offset of 1024")


def test_labels_outside_the_body_are_found(case: CaseFiles) -> None:
    """Voxels that will be lost are counted; in the air around the body there is no kidney."""
    labels = read_labels(labels_of(case))
    labels.array[:, 0, 0] = 1
    write_nifti(labels_of(case), labels)

    (finding,) = check(case)

    assert "12 of " in finding.text
    assert "are outside the body and are lost" in finding.text


def test_label_map_of_another_scan_is_suspected(case: CaseFiles) -> None:
    """Labels that lie in air to more than a tenth are probably another scan's, or mirrored."""
    labels = read_labels(labels_of(case))
    write_nifti(labels_of(case), labels.with_array(np.roll(labels.array, -22, axis=1)))

    texts = [finding.text for finding in check(case) if finding.severity == "warning"]

    assert any("of the labelled voxels are below -200 or above 600 HU" in text for text in texts)


def test_scan_exported_for_display_is_suspected(case: CaseFiles) -> None:
    """Values that end at a display window have lost air and bone."""
    scan = read_scan(case.image)
    write_nifti(case.image, scan.with_array(np.clip(scan.array, -160, 240)))

    (finding,) = check(case)

    assert "The values are cut off at -160 HU" in finding.text


def test_empty_label_map_and_missing_class_are_told(case: CaseFiles) -> None:
    """Nothing labelled is a warning; no kidney beside a tumour is a note."""
    labels = read_labels(labels_of(case))
    write_nifti(labels_of(case), labels.with_array(np.where(labels.array == 2, 2, 0).astype(np.uint8)))
    assert [(finding.severity, finding.text) for finding in check(case)] == [
        ("note", f"{case.labels}: no voxel is labelled kidney")
    ]

    write_nifti(labels_of(case), labels.with_array(np.zeros_like(labels.array)))
    assert [(finding.severity, finding.text) for finding in check(case)] == [
        ("warning", f"{case.labels}: nothing is labelled: is it the right file?")
    ]


def test_slices_far_apart_are_suspected(case: CaseFiles) -> None:
    """A stack of 12 mm is a localiser rather than a scan."""
    for path in (case.image, labels_of(case)):
        volume = read_scan(path)
        write_nifti(path, replace(volume, geometry=replace(volume.geometry, spacing_mm=(12.0, 4.0, 4.0))))

    assert [finding.text for finding in check(case)] == [
        f"{case.image}: the slices are 12 mm apart: is this a localiser?"
    ]


def test_odd_one_out_is_noted() -> None:
    """A case of other slices than the rest, like KiTS19's case_00160 of 512 x 796, or stacked otherwise."""
    headers = [CaseHeader(f"case_{number:05}", (100, 512, 512), (1.0, 0.8, 0.8), 0, (2, 1)) for number in range(3)]
    wide = CaseHeader("case_00160", (252, 512, 796), (1.0, 0.8, 0.8), 0, (2, 1))
    turned = CaseHeader("case_00161", (252, 512, 512), (1.0, 0.8, 0.8), 2, (2, 1))

    assert check_headers(headers) == []
    assert check_headers([*headers, wide, turned]) == [
        Finding("case_00160", "note", "case_00160: its slices of 512 x 796 voxels are not square"),
        Finding(
            "case_00161",
            "note",
            "case_00161: its slices are stacked along axis 2 of the file, unlike most: they are turned like all others",
        ),
    ]
    assert check_headers([wide, wide, turned]) == check_headers([turned, wide, wide])
    assert [finding.case_id for finding in check_headers([wide, wide, turned])] == ["case_00161"]


def test_cases_with_one_scan_are_found() -> None:
    """The second of two cases with the same file is named with the first."""
    (finding,) = find_twins([("case_00001", "aa"), ("case_00002", "bb"), ("case_00003", "aa")])

    assert (finding.case_id, finding.severity) == ("case_00003", "warning")
    assert "case_00003 has the same scan as case_00001: remove one of them" in finding.text
