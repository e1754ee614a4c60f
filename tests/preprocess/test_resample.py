from typing import TYPE_CHECKING

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from kitsattn.phantom.paint import paint
from kitsattn.phantom.patient import draw_patient
from kitsattn.preprocess.resample import (
    Order,
    resample_labels,
    resample_linear,
    resample_scan,
    resampled_shape,
    resampling_matrix,
)
from kitsattn.volume.nifti import read_labels

if TYPE_CHECKING:
    from pathlib import Path

SIZES = [((37, 52), (61, 40)), ((7, 5), (1, 9)), ((1, 4), (3, 8)), ((33, 64), (33, 81))]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_cubic_resampling_is_that_of_skimage(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Up, down and to odd sizes, slices are what skimage's resize (order 3, edge, no anti-aliasing) makes of each."""
    slices = np.random.default_rng(1).normal(0, 100, (3, *before)).astype(np.float32)

    expected = [resize(image.astype(float), after, order=3, mode="edge", anti_aliasing=False) for image in slices]

    assert np.allclose(resample_scan(slices, after), expected, atol=1e-3)


def test_blocks_of_the_matrix_are_the_whole_of_it() -> None:
    """A slice that takes many blocks is skimage's to 0.01 HU over the whole window, far below the 0.5 HU of int16."""
    slices = np.random.default_rng(2).uniform(-300, 300, (1, 300, 411)).astype(np.float32)

    expected = resize(slices[0].astype(float), (333, 389), order=3, mode="edge", anti_aliasing=False)

    assert np.abs(resample_scan(slices, (333, 389))[0] - expected).max() < 0.01


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


def test_equal_memberships_give_the_higher_label() -> None:
    """The middle of 1 and 2 is 2, and half way between kidney and nothing is kidney."""
    assert resample_labels(np.array([[[2, 1]]], np.uint8), (1, 3)).tolist() == [[[2, 2, 1]]]
    assert resample_labels(np.array([[[0, 1]]], np.uint8), (1, 3)).tolist() == [[[0, 1, 1]]]


def test_background_wins_where_it_is_larger() -> None:
    """In the middle, a quarter of kidney and one of tumour are less than a half of nothing; beside it, halves tie."""
    labels = np.array([[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]]], np.uint8)

    assert resample_labels(labels, (3, 3)).tolist() == [[[1, 1, 0], [1, 0, 2], [0, 2, 2]]]


def test_thin_parts_are_kept() -> None:
    """A tumour of one voxel and a line of kidney one voxel wide stay, at any place and size, enlarged or reduced."""
    for place in range(4, 14):
        labels = np.zeros((1, 20, 20), np.uint8)
        labels[0, place, place] = 2
        labels[0, 1:18, 18] = 1
        for size in (11, 13, 14, 17, 19, 21, 27):
            resampled = resample_labels(labels, (size, size))[0]
            assert (resampled == 2).any(), (place, size)
            assert (resampled == 1).sum(axis=0).max() >= 17 * size // 20 - 1, (place, size)


def test_a_part_that_survives_is_not_drawn_again() -> None:
    """Keeping what would vanish leaves everything else as it is: reduced by two thirds, a square stays a square."""
    labels = np.zeros((1, 30, 30), np.uint8)
    labels[0, 6:15, 6:15] = 1

    (resampled,) = resample_labels(labels, (10, 10))

    assert np.argwhere(resampled).min(axis=0).tolist() == [2, 2]
    assert resampled.sum() == 9


@pytest.fixture(params=["painted", "real"])
def label_map(request: pytest.FixtureRequest) -> NDArray[np.uint8]:
    """Slices of a phantom's labels, and of a patient's where there are real data."""
    if request.param == "painted":
        return paint(draw_patient(3), (8, 230, 230), (16.0, 1.6, 1.6), cysts=True)[1].array
    folder: Path = request.getfixturevalue("test_data")
    return read_labels(folder / "kits19-labels" / "case_00003.nii.gz").array[60:240:20]


@pytest.mark.parametrize("scale", [1.096, 0.84])
def test_label_maps_are_those_of_nnunet_but_for_few_voxels_of_the_boundary(
    label_map: NDArray[np.uint8], scale: float
) -> None:
    """Against batchgenerators, whose function nnU-Net calls: the same but for 1 % of the voxels at a boundary."""
    labels = label_map
    after = (round(scale * labels.shape[1]), round(0.95 * scale * labels.shape[2]))

    ours = resample_labels(labels, after)

    boundary = different = 0
    for slice_in, slice_out in zip(labels, ours, strict=True):
        theirs = resize_segmentation(slice_in, after, order=1)
        edge = np.zeros(after, bool)
        for value in np.unique(theirs):
            edge |= (theirs == value) & ~ndimage.binary_erosion(theirs == value, np.ones((3, 3), bool), border_value=1)
        assert np.array_equal(slice_out[~edge], theirs[~edge])
        boundary += int(np.count_nonzero(edge))
        different += int(np.count_nonzero(slice_out != theirs))
    assert boundary > 500
    assert different <= 0.01 * boundary


def test_resampled_shape_is_rounded() -> None:
    """512 samples at 0.9 mm are 589.8, so 590, at 0.78125 mm; nothing vanishes."""
    assert resampled_shape((512, 1), (0.9, 0.1), (0.78125, 0.78125)) == (590, 1)
