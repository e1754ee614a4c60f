"""Kidneys that are cut out of label maps and put into bodies."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.labels import CYST, KIDNEY, TUMOUR
from kitsattn.synthesis.kidneys import KidneyCrop, cut_kidneys, read_kidneys, save_kidneys
from kitsattn.synthesis.tissues import Tissue
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

SPACING = (4.0, 1.0, 2.0)


def make_labels(z_mm: float = 0.0) -> Volume:
    """Return a right kidney with a tumour and a left one with a cyst, raised by some mm, in 40 x 160 x 120 voxels."""
    labels = np.zeros((40, 160, 120), np.uint8)
    z, y, x = np.ogrid[:40, :160, :120]
    for column, mass, value in ((35, 25, TUMOUR), (85, 95, CYST)):
        kidney = ((4 * (z - 20) - z_mm) / 50) ** 2 + ((y - 80) / 25) ** 2 + (2 * (x - column) / 25) ** 2 <= 1
        labels[kidney] = KIDNEY
        ball = ((4 * (z - 20) - z_mm) / 15) ** 2 + ((y - 70) / 15) ** 2 + (2 * (x - mass) / 15) ** 2 <= 1
        labels[ball] = value
    return Volume(labels, Geometry.axial(labels.shape, SPACING))


def crop_ml(crop: KidneyCrop, value: int) -> float:
    """Return the volume of one label."""
    return float((crop.labels == value).sum()) * 3.0 * 1.5 * 1.5 / 1000


def test_kidneys_keep_their_volumes() -> None:
    """Each kidney with its mass is one object, with the side it was on; volumes agree within 3 %."""
    labels = make_labels()
    right, left = sorted(cut_kidneys(labels), key=lambda crop: crop.left)
    assert (right.left, left.left) == (False, True)
    halves = labels.array[:, :, :60], labels.array[:, :, 60:]
    for crop, half, value in ((right, halves[0], TUMOUR), (left, halves[1], CYST)):
        for label in (KIDNEY, value):
            wanted = float((half == label).sum()) * np.prod(SPACING) / 1000
            assert crop_ml(crop, label) == pytest.approx(wanted, rel=0.03)
    assert not (right.labels == CYST).any()
    assert not (left.labels == TUMOUR).any()


def test_depth_is_the_distance_from_the_surface() -> None:
    """In quarters of a mm, nothing outside the kidney's own tissue; the middle lies 20 mm deep or more."""
    crop = next(cut_kidneys(make_labels()))
    assert not crop.depth[crop.labels != KIDNEY].any()
    assert crop.depth[crop.labels == KIDNEY].min() >= 6  # half the kidney's outermost voxel is 1.5 mm or more deep
    middle = tuple(round(length) for length in crop.centre)
    assert 20 < 0.25 * crop.depth[middle] < 26


@pytest.mark.parametrize("z_mm", [-40.0, 40.0])
def test_a_kidney_that_is_cut_is_left_out(z_mm: float) -> None:
    """One that reaches the first or the last slice has lost a part."""
    assert not list(cut_kidneys(make_labels(z_mm)))


def test_other_objects_are_left_out() -> None:
    """Specks, and masses without kidney, are no kidneys."""
    labels = np.zeros((30, 100, 100), np.uint8)
    labels[10:20, 20:60, 20:60] = TUMOUR
    labels[10:12, 70:75, 70:75] = KIDNEY
    assert not list(cut_kidneys(Volume(labels, Geometry.axial(labels.shape, (3.0, 1.5, 1.5)))))


def put(crop: KidneyCrop, side: Tissue, place: tuple[float, float, float]) -> tuple[NDArray[np.uint8], ...]:
    """Put a kidney into an empty body of 50 slices of 3 mm; return tissues and depths."""
    tissues, depths = np.zeros((2, 50, 120, 140), np.uint8)
    crop.insert(tissues, depths, np.arange(50), np.array(place), side, (3.0, 1.5, 1.5))
    return tissues, depths


def test_a_kidney_comes_to_its_place_whole() -> None:
    """Voxel by voxel, with the centroid where it was wanted and depths with the voxels."""
    crop = next(cut_kidneys(make_labels()))
    tissues, depths = put(crop, Tissue.RIGHT_KIDNEY, (25, 60, 70))
    for label, tissue in ((KIDNEY, Tissue.RIGHT_KIDNEY), (TUMOUR, Tissue.KIDNEY_TUMOUR)):
        assert (tissues == tissue).sum() == (crop.labels == label).sum()
    np.testing.assert_allclose(np.argwhere(tissues > 0).mean(axis=0), (25, 60, 70), atol=0.51)
    np.testing.assert_array_equal(np.sort(depths[tissues > 0]), np.sort(crop.depth[crop.labels > 0]))


def test_on_the_other_side_it_is_mirrored() -> None:
    """The right kidney's mass lies to the right of it; as a left kidney its mass lies to the left, x growing to it."""
    crop = next(cut_kidneys(make_labels()))
    assert not crop.left
    own, _ = put(crop, Tissue.RIGHT_KIDNEY, (25, 60, 70))
    other, _ = put(crop, Tissue.LEFT_KIDNEY, (25, 60, 70))
    offsets = []
    for tissues, side in ((own, Tissue.RIGHT_KIDNEY), (other, Tissue.LEFT_KIDNEY)):
        kidney, mass = (np.argwhere(tissues == tissue).mean(axis=0) for tissue in (side, Tissue.KIDNEY_TUMOUR))
        offsets.append(float((mass - kidney)[2]))
    assert offsets[0] < -3
    assert offsets[1] == pytest.approx(-offsets[0], abs=0.01)
    assert not (other == Tissue.RIGHT_KIDNEY).any()
    np.testing.assert_allclose(np.argwhere(other > 0).mean(axis=0), (25, 60, 70), atol=0.51)


def test_at_the_border_what_fits_is_put() -> None:
    """A kidney that reaches beyond the picture is cut there; beyond the slices nothing is put."""
    crop = next(cut_kidneys(make_labels()))
    whole = (crop.labels > 0).sum()
    tissues, _ = put(crop, Tissue.RIGHT_KIDNEY, (25, 60, 0))
    assert 0.3 * whole < (tissues > 0).sum() < 0.7 * whole
    tissues, _ = put(crop, Tissue.RIGHT_KIDNEY, (-60, 60, 70))
    assert not tissues.any()


def test_kidneys_are_read_as_they_were_written(tmp_path: Path) -> None:
    """All of them, in their order."""
    crops = list(cut_kidneys(make_labels()))
    save_kidneys(tmp_path / "kidneys.npz", crops)
    again = read_kidneys(tmp_path / "kidneys.npz")
    assert len(again) == len(crops) == 2
    for one, other in zip(crops, again, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.depth, other.depth)
        assert (one.centre, one.left) == (other.centre, other.left)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    """It says what to delete."""
    path = tmp_path / "kidneys.npz"
    save_kidneys(path, list(cut_kidneys(make_labels())))
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"text", whole[:60] + bytes(2000) + whole[2060:]):
        path.write_bytes(content)
        with pytest.raises(KitsattnError) as refusal:
            read_kidneys(path)
        assert str(refusal.value).startswith(f"{path} is damaged (")
        assert str(refusal.value).endswith("): delete it, and the training prepares it again")
