"""Slabs of single real slices."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kitsattn.labels import KIDNEY, TUMOUR
from kitsattn.synthesis import slices
from kitsattn.synthesis.draw import Material
from kitsattn.synthesis.frame import erode
from kitsattn.synthesis.slices import RealSlice, draw_slice, plain_slab
from kitsattn.synthesis.textures import Textures


def make_disk(pixel_mm: float, stored_mm: float | None, radius_mm: float = 30.0) -> RealSlice:
    """Return a slice with a disk of 100 HU, labelled kidney, off the middle."""
    y, x = (np.indices((300, 360)) * pixel_mm).astype(float)
    disk = np.hypot(y - 100, x - 150) <= radius_mm
    return RealSlice("disk", (100 * disk).astype(np.uint8), disk.astype(np.uint8), stored_mm, tumours_labelled=True)


@pytest.mark.parametrize(("pixel_mm", "stored_mm"), [(0.6, 0.6), (0.9, 0.9), (0.8, None)])
def test_a_plain_slab_keeps_lengths(pixel_mm: float, stored_mm: float | None) -> None:
    """A disk with a radius of 30 mm has its area in pixels of 1.5 mm, in the middle; unknown pixels are 0.8."""
    image, labels = plain_slab(make_disk(pixel_mm, stored_mm), (224, 288))
    assert image.shape == (5, 224, 288)
    assert labels.shape == (224, 288)
    area_mm2 = float(labels.sum()) * 1.5**2
    assert area_mm2 == pytest.approx(np.pi * 30**2, rel=0.02)
    assert np.argwhere(labels).mean(axis=0) == pytest.approx([111.5, 143.5], abs=0.5)
    np.testing.assert_array_equal(image, np.repeat(image[2:3], 5, 0))
    assert image[2][erode((labels > 0)[None])[0]].min() == pytest.approx(100, abs=1e-3)
    assert image[2][~(labels > 0)].max() < 100
    assert image.sum() / 5 / 100 == pytest.approx(labels.sum(), rel=0.02)


def test_labels_agree_with_the_picture(opened: Material, textures: Textures) -> None:
    """The middle of what is labelled is neither fat nor air, whether dark values were given back or not."""
    kidneys, given_back = 0, 0
    for seed in range(60):
        hu, labels, restored = draw_slice(np.random.default_rng(seed), opened.slices, textures)
        assert hu.shape == (5, 224, 288)
        assert hu.dtype == np.float32
        assert labels.shape == (224, 288)
        assert labels.dtype == np.uint8
        assert set(np.unique(labels).tolist()) <= {0, KIDNEY, TUMOUR}
        inside = erode((labels == KIDNEY)[None], 3)[0]
        kidneys += inside.any()
        if inside.any():
            assert (hu[2][inside] > -30).mean() > 0.9
        given_back += restored
        assert (hu.min() < -900) == restored
    assert kidneys > 40
    assert 32 <= given_back <= 52


def test_a_slice_without_contrast_medium_keeps_its_order_of_organs() -> None:
    """Organs of 110 and 180 HU come to lie near 50, the kidney below them; fat, air and bone stay as they are."""
    y, x = np.indices((120, 160))
    hu = np.full((120, 160), 110.0, np.float32)
    hu[:, :20] = 0.0
    kidney, bone = np.hypot(y - 60, x - 60) < 20, np.hypot(y - 60, x - 120) < 12
    hu[kidney], hu[bone] = 180.0, 255.0
    kidneys, organs = [], []
    for seed in range(20):
        plain = slices._without_contrast(np.random.default_rng(seed), hu, kidney.astype(np.uint8))
        organs.append(float(plain[10, 100]))
        kidneys.append(float(plain[60, 60]))
        assert np.abs(plain[:, :20]).max() == 0.0
        assert plain[60, 120] == pytest.approx(255, abs=1)
        assert kidneys[-1] < organs[-1]
    assert 45 < np.mean(organs) < 65
    assert 25 < np.mean(kidneys) < 50


def test_a_black_slice_is_drawn_as_air(textures: Textures) -> None:
    """It has no body to look for."""
    black = RealSlice("black", np.zeros((64, 80), np.uint8), np.zeros((64, 80), np.uint8), 0.8, tumours_labelled=False)
    hu, labels, _ = draw_slice(np.random.default_rng(0), [black], textures)
    assert np.isfinite(hu).all()
    assert not labels.any()
    assert np.isfinite(plain_slab(black, (32, 32))[0]).all()


def test_tumours_are_painted_more_often_where_none_is_labelled(opened: Material, textures: Textures) -> None:
    """Slices of CURVAS get a mass in 45 % of the draws, and only then have tumours."""
    curvas = [one for one in opened.slices if not one.tumours_labelled]
    tumours = sum((draw_slice(np.random.default_rng(seed), curvas, textures)[1] == TUMOUR).any() for seed in range(100))
    assert 10 < tumours < 45


def test_neighbours_differ_from_the_centre(opened: Material, textures: Textures) -> None:
    """The centre slice stays where its labels are; the others are moved, the outer ones further."""
    away = np.zeros(5)
    for seed in range(40):
        hu, _, _ = draw_slice(np.random.default_rng(seed), opened.slices, textures)
        away += np.abs(np.clip(hu, 0, 255) - np.clip(hu[2], 0, 255)).mean(axis=(1, 2))
    assert away[2] == 0
    assert 0 < away[1] < away[0]
    assert 0 < away[3] < away[4]


def test_the_centre_is_not_moved(opened: Material, textures: Textures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels stay where its labels are."""
    moved = []

    def watched(
        planes: NDArray[np.float32], shifts: NDArray[np.float32], zooms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        moved.append((*shifts[2], zooms[2], float(np.abs(shifts[[0, 4]]).min())))
        return planes

    monkeypatch.setattr(slices, "resample_each", watched)
    for seed in range(5):
        draw_slice(np.random.default_rng(seed), opened.slices, textures)
    assert {one[:3] for one in moved} == {(0.0, 0.0, 1.0)}
    assert min(one[3] for one in moved) > 0
