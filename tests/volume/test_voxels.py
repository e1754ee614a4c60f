import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kitsattn.errors import KitsattnError
from kitsattn.volume.formats import read_labels
from kitsattn.volume.voxels import foreground_box, label_values


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_the_box_is_the_smallest_in_every_orientation(order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """A view of a file's array in any order and direction of its axes has the box that NumPy finds."""
    stored = np.zeros((5, 7, 9), np.uint8)
    stored[1, 2, 3] = 1
    stored[3, 4, 7] = 2
    labels = stored.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]

    places = np.argwhere(labels)

    low, high = places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist()
    assert foreground_box(labels) == tuple(slice(*side) for side in zip(low, high, strict=True))


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1), (0, 5, 6)])
def test_nothing_has_a_box_without_voxels(shape: tuple[int, int, int]) -> None:
    """All background is cut to nothing."""
    labels = np.zeros(shape, np.uint8)

    assert labels[foreground_box(labels)].size == 0


@settings(max_examples=60)
@example({112, 56}, np.uint8, np.float32, 0.0)  # 56 lies in the middle between two steps, but for a rounding
@given(
    st.sets(st.integers(0, 117), min_size=1),
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
    st.sampled_from([np.float32, np.float64]),
    st.floats(-0.004, 0.004),
)
def test_labels_are_the_same_in_whatever_numbers_they_were_written(
    labels: set[int], stored: type, computed: type, error: float
) -> None:
    """Nibabel writes floats into integers with a scale, and arithmetic leaves a rest: the whole numbers come back."""
    wanted = np.resize(sorted({0, *labels}), (4, 5, 6))
    image = nib.Nifti1Image(wanted.astype(computed) + error, np.eye(4))
    image.set_data_dtype(stored)
    with TemporaryDirectory() as folder:
        nib.save(image, Path(folder) / "labels.nii")
        read = read_labels(Path(folder) / "labels.nii").array

    np.testing.assert_array_equal(read, wanted.transpose()[:, ::-1, ::-1])


@settings(max_examples=60)
@given(
    st.integers(0, 254),
    st.one_of(st.just(0.5), st.floats(0.011, 0.989)),
    st.sampled_from([np.float32, np.float64]),
)
def test_what_is_between_two_labels_is_refused_by_a_number_that_shows_it(
    label: int, rest: float, dtype: type[np.floating]
) -> None:
    """The value in the message is no whole number."""
    values = np.array([[[0, label, label + rest]]], dtype)

    with pytest.raises(KitsattnError, match="a label map holds whole numbers") as caught:
        label_values(values, 1.0, 0.0, Path("labels.nii"))

    named = float(str(caught.value).split("holds the value ")[1].split(":")[0])
    assert named != round(named)


@pytest.mark.parametrize("slope", [0.5, 0.4, 1 / 255])
def test_steps_that_are_no_labels_are_refused(slope: float) -> None:
    """A scale of whole numbers does not make labels of probabilities and halves."""
    with pytest.raises(KitsattnError, match=r"holds the value 0\.[45]"):
        label_values(np.array([0, 1, round(0.5 / slope)], np.uint8), slope, 0.0, Path("labels.nii"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([np.nan, np.nan, 1], "has 2 voxels that are NaN: set them to the label"),
        ([np.inf, np.nan, 1], "has 1 voxel that is NaN and 1 voxel that is infinite: set them to the label"),
        ([-0.6, 0, 1], "holds values from -0.6 to 1"),
        ([0, 1, 255.7], "holds values from 0 to 255.7"),
        ([0, 1, 1.0100001], "holds the value 1.01"),
    ],
)
def test_label_maps_are_refused_as_label_maps(values: list[float], told: str) -> None:
    """NaN is called NaN, with the cure for a label map, and not that of a scan."""
    with pytest.raises(KitsattnError) as caught:
        label_values(np.array(values), 1.0, 0.0, Path("labels.nii"))

    assert told in str(caught.value)
    assert "HU" not in str(caught.value)
