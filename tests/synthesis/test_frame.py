"""Where pixels of a sample come from."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.synthesis.frame import PIXEL_MM, Frame, blur, draw_frame, erode, resample_each
from kitsattn.synthesis.textures import Textures


@pytest.fixture
def planes() -> NDArray[np.float32]:
    """Three planes of noise, 20 x 31."""
    return np.random.default_rng(0).normal(0, 100, (3, 20, 31)).astype(np.float32)


@pytest.fixture
def frame() -> Frame:
    """40 x 50 places, some of them outside of 20 x 31 pixels."""
    rng = np.random.default_rng(1)
    rows, columns = rng.uniform(-4, 24, (40, 50)), rng.uniform(-4, 35, (40, 50))
    return Frame(rows.astype(np.float32), columns.astype(np.float32))


def test_nearest_values_are_those_of_numpy(frame: Frame) -> None:
    """Each pixel has the value at its rounded place, and the given one where there is none."""
    labels = np.random.default_rng(2).integers(0, 4, (3, 20, 31), np.uint8)
    taken = frame.nearest(labels, 9)
    rows, columns = np.rint(frame.rows).astype(int), np.rint(frame.columns).astype(int)
    padded = np.pad(labels, ((0, 0), (10, 10), (10, 10)), constant_values=9)
    np.testing.assert_array_equal(taken, padded[:, rows + 10, columns + 10])


def test_linear_values_are_those_of_scipy(frame: Frame, planes: NDArray[np.float32]) -> None:
    """Beyond the border values run into the given one within a pixel."""
    taken = frame.linear(planes, -7.0)
    for plane, own in zip(planes, taken, strict=True):
        padded = np.pad(plane, 6, constant_values=-7.0)
        wanted = ndimage.map_coordinates(padded, [frame.rows + 6, frame.columns + 6], order=1)
        np.testing.assert_allclose(own, wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.35, 0.8, 1.1, 2.0])
def test_blur_is_a_gaussian(planes: NDArray[np.float32], sigma: float) -> None:
    """It equals SciPy's, cut off at two deviations, with repeated borders; a constant stays as it is."""
    reach = max(1, int(np.ceil(2 * sigma)))
    wanted = ndimage.gaussian_filter(planes, (0, sigma, sigma), mode="nearest", radius=(0, reach, reach))
    np.testing.assert_allclose(blur(planes, sigma), wanted, rtol=0, atol=1e-3)
    np.testing.assert_allclose(blur(np.full((2, 9, 8), 300, np.float32), sigma), 300, rtol=1e-6)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_erosion_is_that_of_scipy(times: int) -> None:
    """In-plane, with the four neighbours; what lies beyond the picture does not erode."""
    mask = np.random.default_rng(3).random((2, 30, 40)) < 0.9
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = ndimage.generate_binary_structure(2, 1)
    wanted = ndimage.binary_erosion(mask, cross, iterations=times, border_value=1)
    before = mask.copy()
    np.testing.assert_array_equal(erode(mask, times), wanted)
    np.testing.assert_array_equal(mask, before)


def test_each_plane_is_moved_by_its_own_shift_and_zoom(planes: NDArray[np.float32]) -> None:
    """A plane of its own pixel (y, x) shows the pixel at middle + zoom * (place - middle) + shift; borders repeat."""
    shifts = np.array([[0, 0], [2, -3], [0.5, 1.25]], np.float32)
    zooms = np.array([1.0, 1.0, 1.1], np.float32)
    moved = resample_each(planes, shifts, zooms)
    np.testing.assert_allclose(moved[0], planes[0], atol=1e-3)
    rows, columns = np.indices(planes.shape[1:], float)
    for plane, own, shift, zoom in zip(planes, moved, shifts, zooms, strict=True):
        places = [9.5 + zoom * (rows - 9.5) + shift[0], 15 + zoom * (columns - 15) + shift[1]]
        wanted = ndimage.map_coordinates(plane, places, order=1, mode="nearest")
        np.testing.assert_allclose(own, wanted, rtol=0, atol=2e-3)


def test_a_frame_scales_by_the_length_of_pixels(textures: Textures) -> None:
    """Over many draws the median distance of neighbouring pixels is 1.5 mm, in the source's pixels along each axis."""
    steps = []
    for seed in range(60):
        frame = draw_frame(np.random.default_rng(seed), textures, pixel_mm=(0.75, 3.0), centre=(0, 0))
        down = np.hypot(0.75 * np.diff(frame.rows, axis=0), 3.0 * np.diff(frame.columns, axis=0))
        across = np.hypot(0.75 * np.diff(frame.rows, axis=1), 3.0 * np.diff(frame.columns, axis=1))
        steps.append((np.median(down), np.median(across)))
    assert np.median(steps, axis=0) == pytest.approx([PIXEL_MM, PIXEL_MM], rel=0.1)
    assert np.std(steps, axis=0).max() < 0.4


def test_a_place_is_moved_towards(textures: Textures) -> None:
    """Two draws of five lie half as far from it; the others are not moved."""
    moved = []
    for seed in range(100):
        plain, there = (
            draw_frame(np.random.default_rng(seed), textures, pixel_mm=(1.5, 1.5), centre=(80, 90), towards=towards)
            for towards in ((80, 90), (120, 90))
        )
        moved.append(float(np.median(there.rows - plain.rows)))
    assert set(np.round(moved, 2)) == {0.0, 20.0}
    assert 25 < sum(move > 1 for move in moved) < 55


def test_a_frame_without_chance_is_a_grid() -> None:
    """With a generator that gives means only, the middle of the sample is the middle of the body, in equal steps."""
    still: Any = SimpleNamespace(
        normal=lambda mean, deviation, size=None: np.full(np.shape(deviation) or size or (), mean, float),
        random=lambda: 0.9,
        uniform=lambda low, high: (low + high) / 2,
    )
    noise: Any = SimpleNamespace(size=(5, 7))
    frame = draw_frame(still, noise, pixel_mm=(1.5, 0.5), centre=(10.0, 20.0), towards=(0.0, 0.0))
    np.testing.assert_allclose(frame.rows, np.repeat(np.arange(8.0, 13.0)[:, None], 7, 1))
    np.testing.assert_allclose(frame.columns, np.repeat(np.arange(11.0, 30.0, 3.0)[None], 5, 0), atol=1e-5)
