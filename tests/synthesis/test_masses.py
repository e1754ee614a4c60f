"""Masses of kidneys, and what looks like them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.labels import KIDNEY, TUMOUR
from kitsattn.synthesis.masses import draw_cyst_hu, draw_solid, paint_distractors, paint_kidney_mass
from kitsattn.synthesis.textures import Textures

SPACING_MM = (5.0, 1.5, 1.5)


def make_slab() -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a slab of muscle in air with two kidneys, its labels, and where the body is."""
    _, y, x = np.indices((5, 224, 288))
    body = ((y - 112) / 80) ** 2 + ((x - 144) / 110) ** 2 <= 1
    hu = np.where(body, 50, -1000).astype(np.float32)
    labels = np.zeros(hu.shape, np.uint8)
    for column in (94, 194):
        labels[((y - 130) / 20) ** 2 + ((x - column) / 16) ** 2 <= 1] = KIDNEY
    hu[labels == KIDNEY] = 180
    return hu, labels, body


@pytest.mark.parametrize(("tumour_share", "label"), [(1.0, TUMOUR), (0.0, KIDNEY)])
def test_a_mass_grows_out_of_a_kidney(textures: Textures, tumour_share: float, label: int) -> None:
    """A tumour gets its label, a cyst the kidney's; 19 of 20 touch a kidney, none is a radius away or in the air."""
    gaps = []
    for seed in range(36):
        hu, labels, body = make_slab()
        kidney = labels == KIDNEY
        painted = hu.copy()
        marked = labels.copy()
        paint_kidney_mass(np.random.default_rng(seed), painted, marked, textures, phase=2, tumour_share=tumour_share)
        changed = marked != labels
        assert set(np.unique(marked[changed]).tolist()) <= {label}
        assert not (marked[~body] > 0).any()
        np.testing.assert_array_equal(painted[~body], hu[~body])
        assert np.abs(painted - hu)[changed & ~kidney].mean() > 1 if (changed & ~kidney).any() else True
        if not changed.any():  # a small one between two slices, or a cyst within the kidney
            continue
        away_mm = ndimage.distance_transform_edt(~kidney, sampling=SPACING_MM)
        gaps.append(float(away_mm[changed].min()))
    assert len(gaps) > 18
    assert sum(gap <= 1.5 for gap in gaps) >= 0.95 * len(gaps)
    assert max(gaps) < 40


def test_without_a_kidney_nothing_grows(textures: Textures) -> None:
    """Fewer than 30 voxels are not a kidney to grow out of."""
    hu, labels, _ = make_slab()
    labels[:] = 0
    labels[2, 100, 100:120] = KIDNEY
    before = hu.copy(), labels.copy()
    paint_kidney_mass(np.random.default_rng(0), hu, labels, textures, phase=2)
    np.testing.assert_array_equal(hu, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_distractors_never_cover_what_is_labelled(textures: Textures) -> None:
    """They change the background within the body, and nothing else: no label, no kidney, no air."""
    near = far = 0
    for seed in range(36):
        hu, labels, body = make_slab()
        before = hu.copy(), labels.copy()
        paint_distractors(np.random.default_rng(seed), hu, labels, body, textures)
        np.testing.assert_array_equal(labels, before[1])
        changed = hu != before[0]
        assert not (changed & (labels > 0)).any()
        assert not (changed & ~body).any()
        if changed.any():
            away_mm = ndimage.distance_transform_edt(labels == 0, sampling=SPACING_MM)[changed].min()
            near, far = near + (away_mm <= 1.5), far + (away_mm > 1.5)
    assert near >= 6
    assert far >= 3


def test_values_follow_the_kind(textures: Textures) -> None:
    """Tumours of a kidney of 180 HU lie between fat and a vessel in mean, cysts about water."""
    rng = np.random.default_rng(1)
    with_contrast = [float(draw_solid(rng, 180.0, 2, textures, 5).mean()) for _ in range(200)]
    plain = [float(draw_solid(rng, 34.0, 0, textures, 5).mean()) for _ in range(200)]
    cysts = [draw_cyst_hu(rng) for _ in range(200)]
    assert -100 < min(with_contrast) < max(with_contrast) < 280
    assert np.median(with_contrast) > np.median(plain) + 20
    assert 10 < np.median(plain) < 45
    assert 0 < np.median(cysts) < 20
    assert -25 < min(cysts) < max(cysts) <= 75
