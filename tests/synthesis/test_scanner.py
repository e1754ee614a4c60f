"""What a scanner does to a slab."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kitsattn.labels import BACKGROUND, KIDNEY
from kitsattn.synthesis.scanner import scan
from kitsattn.synthesis.textures import Textures


def make_slab() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a body of 50 HU in air with a kidney that reaches over most of it, and its labels."""
    y, x = np.indices((224, 288))
    body = np.hypot((y - 112) / 90, (x - 144) / 120) <= 1
    kidney = np.hypot((y - 112) / 85, (x - 144) / 115) <= 1
    hu = np.repeat(np.where(kidney, 150, np.where(body, 50, -1000)).astype(np.float32)[None], 5, 0)
    return hu, kidney.astype(np.uint8)


@pytest.mark.parametrize("real", [True, False])
def test_beyond_the_field_of_view_is_background(textures: Textures, *, real: bool) -> None:
    """Labels are taken away where the picture has one dark value, in a sixth of the draws, and nowhere else."""
    cut = 0
    for seed in range(150):
        hu, labels = make_slab()
        before = labels.copy()
        seen = scan(np.random.default_rng(seed), hu, labels, textures, real=real)
        assert seen.shape == hu.shape
        assert seen.dtype == np.float32
        assert np.isfinite(seen).all()
        gone = labels != before
        assert (labels[gone] == BACKGROUND).all()
        if gone.any():
            cut += 1
            values = np.unique(seen[:, gone])
            assert len(values) == 1
            assert -1000 <= values[0] < 40
            assert (seen[:, labels == KIDNEY] == values[0]).mean() < 0.05
    assert 10 <= cut <= 45


def test_kidneys_stay_kidneys(textures: Textures) -> None:
    """The mean of a large bright region moves by a third at most, whatever kernel, noise or window is drawn."""
    for seed in range(60):
        hu, labels = make_slab()
        seen = scan(np.random.default_rng(seed), hu, labels, textures, real=False)
        assert 75 < float(np.median(seen[:, labels == KIDNEY])) < 250


def test_made_scans_are_changed_more_than_real_ones(textures: Textures) -> None:
    """A real scan has its noise already: no table is put below it, and less noise is added."""
    noise: dict[bool, list[float]] = {}
    for real in (True, False):
        for seed in range(40):
            hu, labels = make_slab()
            seen = scan(np.random.default_rng(seed), hu, labels, textures, real=real)
            noise.setdefault(real, []).append(float(np.std(np.diff(seen[2, 105:119, 120:168]))))
    assert np.median(noise[False]) > np.median(noise[True]) > 0


def test_the_input_is_not_changed(textures: Textures) -> None:
    """Only labels are changed in place."""
    for seed in range(30):
        hu, labels = make_slab()
        before = hu.copy()
        scan(np.random.default_rng(seed), hu, labels, textures, real=False)
        np.testing.assert_array_equal(hu, before)
