"""Phantoms around label maps, on the grid that training needs."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kitsattn.datasets.find import find_dataset
from kitsattn.labels import CYST, KIDNEY, TUMOUR
from kitsattn.synthesis.painted import paint_dataset, thin_labels
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import read_labels, read_scan, write_nifti
from kitsattn.volume.volume import Volume


def box_labels(shape: tuple[int, int, int], first: int, last: int) -> np.ndarray:
    """Return a kidney with a tumour and a cyst from slice `first` to `last`."""
    _, y, x = shape
    labels = np.zeros(shape, np.uint8)
    labels[first : last + 1, y // 2 : 3 * y // 4, x // 8 : x // 4] = KIDNEY
    labels[first : last + 1, y // 2 : 3 * y // 4, 5 * x // 8 : 3 * x // 4] = KIDNEY
    labels[first + 2 : last - 1, y // 2 : 5 * y // 8, x // 8 : 3 * x // 16] = TUMOUR
    labels[first + 2 : last - 1, y // 2 : 5 * y // 8, 5 * x // 8 : 11 * x // 16] = CYST
    return labels


def test_thin_slices_become_5_mm() -> None:
    """Slices of 1 mm are taken 5 mm apart, from 80 mm below the kidneys to 80 mm above; shares of labels stay."""
    labels = Volume(box_labels((400, 128, 128), 150, 249), Geometry.axial((400, 128, 128), (1.0, 3.0, 2.5)))
    thin = thin_labels(labels)
    assert thin.array.dtype == np.uint8
    assert thin.geometry.spacing_mm == pytest.approx((5.0, 1.5, 1.25))
    assert thin.array.shape == (20 + 32, 256, 256)
    inside = np.flatnonzero(thin.array.any(axis=(1, 2)))
    assert (inside[0], inside[-1]) == (16, 35)
    for value in (KIDNEY, TUMOUR, CYST):
        before = float((labels.array == value).sum()) * 1.0 * 3.0 * 2.5
        after = float((thin.array == value).sum()) * 5.0 * 1.5 * 1.25
        assert after == pytest.approx(before, rel=0.06)


def test_thick_slices_stay_and_the_scan_ends_where_it_ends() -> None:
    """Slices of 6 mm are taken one by one; nothing is added beyond the label map."""
    labels = Volume(box_labels((20, 512, 512), 5, 14), Geometry.axial((20, 512, 512), (6.0, 0.75, 0.75)))
    thin = thin_labels(labels)
    assert thin.array.shape == (20, 256, 256)
    assert thin.geometry.spacing_mm == (6.0, 1.5, 1.5)
    np.testing.assert_array_equal(thin.array, labels.array[:, 1::2, 1::2])


def test_there_are_90_slices_at_most() -> None:
    """Around long labels the margins are narrower."""
    labels = Volume(box_labels((130, 64, 64), 20, 109), Geometry.axial((130, 64, 64), (5.0, 4.0, 4.0)))
    assert len(thin_labels(labels).array) == 90
    labels = Volume(box_labels((130, 64, 64), 30, 99), Geometry.axial((130, 64, 64), (5.0, 4.0, 4.0)))
    assert len(thin_labels(labels).array) == 90


def test_a_bad_label_map_costs_one_case(starter_folder: Path, tmp_path: Path) -> None:
    """It is named; the others are painted as a data set that says that it is synthetic, in KiTS19's order of axes."""
    empty = tmp_path / "case_00001.nii.gz"
    write_nifti(empty, Volume(np.zeros((5, 64, 64), np.uint8), Geometry.axial((5, 64, 64), (5.0, 4.0, 4.0))))
    good = starter_folder / "kits19-labels" / "case_00003.nii.gz"
    problems = paint_dataset(tmp_path / "painted", [empty, good], seed=5, licence="CC BY-NC-SA 4.0")
    assert len(problems) == 1
    assert problems[0].startswith("case_00001")
    dataset = find_dataset(tmp_path / "painted")
    assert dataset.synthetic
    assert dataset.licence == "CC BY-NC-SA 4.0"
    assert [case.case_id for case in dataset.cases] == ["case_00003"]
    (case,) = dataset.cases
    assert case.labels is not None
    assert nib.aff2axcodes(nib.load(case.labels).affine) == ("I", "P", "L")  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read_labels(case.labels).array, thin_labels(read_labels(good)).array)
    scan = read_scan(case.image).array
    kidney = read_labels(case.labels).array == KIDNEY
    assert float(np.median(scan[kidney])) > 20

    again = case.image.read_bytes()
    assert len(paint_dataset(tmp_path / "painted", [empty, good], seed=5, licence="CC BY-NC-SA 4.0")) == 1
    assert case.image.read_bytes() == again
