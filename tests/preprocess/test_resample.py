import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.transform import resize

from kitsattn.preprocess.resample import (
    Order,
    resample_labels,
    resample_linear,
    resample_scan,
    resampled_shape,
    resampling_matrix,
)

SIZES = [((37, 52), (61, 40)), ((7, 5), (1, 9)), ((1, 4), (3, 8)), ((33, 64), (33, 81))]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_cubic_resampling_is_that_of_skimage(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Up, down and to odd sizes, slices are what skimage's resize (order 3, edge, no anti-aliasing) makes of each."""
    slices = np.random.default_rng(1).normal(0, 100, (3, *before)).astype(np.float32)

    expected = [resize(image.astype(float), after, order=3, mode="edge", anti_aliasing=False) for image in slices]

    assert np.allclose(resample_scan(slices, after), expected, atol=1e-3)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_linear_resampling_is_that_of_skimage(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Probabilities are resampled as skimage's resize of order 1 does, whatever axes lie in front."""
    images = np.random.default_rng(1).random((2, 3, *before)).astype(np.float32)

    expected = [
        [resize(image.astype(float), after, order=1, mode="edge", anti_aliasing=False) for image in group]
        for group in images
    ]

    assert np.allclose(resample_linear(images, after), expected, atol=1e-5)


def test_overshoot_of_splines_is_clipped_slice_by_slice() -> None:
    """No value leaves the range that its own slice had."""
    slices = np.zeros((2, 8, 8), np.float32)
    slices[0, 4:] = 1
    slices[1] = 100

    resampled = resample_scan(slices, (21, 21))

    assert (resampled[0].min(), resampled[0].max()) == (0, 1)
    assert (resampled[1] == 100).all()


def test_matrix_by_hand() -> None:
    """Two samples at three places, edges aligned: a third of a sample outwards is the sample itself."""
    assert resampling_matrix(2, 3, 1) == pytest.approx(np.array([[1, 0], [0.5, 0.5], [0, 1]]))


@given(samples=st.integers(1, 40), target=st.integers(1, 40), order=st.sampled_from([1, 3]))
def test_constants_stay_constant(samples: int, target: int, order: Order) -> None:
    """Each new value is a weighted mean: the weights of a row add up to one."""
    matrix = resampling_matrix(samples, target, order)

    assert matrix.shape == (target, samples)
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-5)


def test_same_shape_is_left_as_it_is() -> None:
    """Where nothing is to be done the very array comes back."""
    slices, labels = np.ones((1, 4, 5), np.float32), np.ones((1, 4, 5), np.uint8)

    assert resample_scan(slices, (4, 5)) is slices
    assert resample_linear(slices, (4, 5)) is slices
    assert resample_labels(labels, (4, 5)) is labels


def test_labels_invent_no_class() -> None:
    """Between background and tumour no kidney appears, though the mean of 0 and 2 is 1."""
    labels = np.zeros((1, 10, 10), np.uint8)
    labels[:, 5:] = 2

    resampled = resample_labels(labels, (37, 13))

    assert set(np.unique(resampled)) == {0, 2}


def test_labels_by_hand() -> None:
    """Doubling 0 1 2 2 puts each border half way; linear memberships of new places are 3/4 and 1/4."""
    labels = np.array([[[0, 1, 2, 2]]], np.uint8)

    assert resample_labels(labels, (1, 8)).tolist() == [[[0, 0, 1, 1, 2, 2, 2, 2]]]


def test_equal_memberships_give_the_lower_label() -> None:
    """The middle of 1 and 2 is 1."""
    assert resample_labels(np.array([[[2, 1]]], np.uint8), (1, 3)).tolist() == [[[2, 1, 1]]]


def test_resampled_shape_is_rounded() -> None:
    """512 samples at 0.9 mm are 589.8, so 590, at 0.78125 mm; nothing vanishes."""
    assert resampled_shape((512, 1), (0.9, 0.1), (0.78125, 0.78125)) == (590, 1)
