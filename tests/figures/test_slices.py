import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kitsattn.figures.slices import MOST_AXIAL, choose_slices
from kitsattn.volume.geometry import Geometry

SPACING_MM = (4.0, 1.5, 1.0)


def test_slices_go_through_the_tumour_both_kidneys_and_their_ends() -> None:
    """Worked by hand: the widest slices of tumour and of each kidney, and those near both ends."""
    labels = np.zeros((60, 40, 200), dtype=np.uint8)
    labels[10:41, 20, 50:60] = 1  # the right kidney, with its widest slice at 20
    labels[20, 18:23, 50:60] = 1
    labels[10:41, 20, 140:150] = 1  # the left kidney, with its widest slice at 30
    labels[30, 18:24, 140:150] = 1
    labels[14, 20, 50:54] = 2

    slices = choose_slices([labels], Geometry.axial(labels.shape, SPACING_MM))

    # 2 * 31 * 10 + 40 + 50 voxels: 5 % of them, 35.5, lie in the slices 10 and 11, and as many in 39 and 40.
    assert slices.axial == (39, 30, 20, 14, 11)
    assert slices.coronal == 20
    assert slices.kidney_found


def test_slices_lie_8_mm_apart() -> None:
    """Neighbouring slices look alike and are not shown twice; where slices are thick, neighbours are."""
    labels = np.zeros((12, 6, 6), dtype=np.uint8)
    labels[:, 2:4, 2:4] = 1

    thin = choose_slices([labels], Geometry.axial(labels.shape, (2.0, 1.0, 1.0)))
    thick = choose_slices([labels], Geometry.axial(labels.shape, (8.0, 1.0, 1.0)))

    # Wanted, in this order: the first of the equally wide slices, 0; then the quantiles 0, 11, 5, 2, 8, 1, 10.
    assert thin.axial == (11, 5, 0)
    assert thick.axial == (11, 8, 5, 2, 0)


def test_views_are_cut_to_45_mm_around_the_labels() -> None:
    """The margin is a length, not a number of voxels, and ends at the scan's edge."""
    labels = np.zeros((40, 100, 200), dtype=np.uint8)
    labels[20, 50, 100] = 1

    slices = choose_slices([labels], Geometry.axial(labels.shape, SPACING_MM))

    assert slices.box == (slice(9, 32), slice(20, 81), slice(55, 146))
    labels[0, 0, 0] = labels[39, 99, 199] = 1
    assert choose_slices([labels], Geometry.axial(labels.shape, SPACING_MM)).box == (
        slice(0, 40),
        slice(0, 100),
        slice(0, 200),
    )


def test_nothing_labelled_gives_slices_of_the_whole_scan() -> None:
    """Without a kidney the slices are spread evenly over all of the scan."""
    labels = np.zeros((40, 10, 20), dtype=np.uint8)

    for label_maps in ([labels], []):
        slices = choose_slices(label_maps, Geometry.axial(labels.shape, SPACING_MM))

        assert slices.axial == (35, 27, 19, 11, 3)
        assert slices.coronal == 5
        assert slices.box == (slice(0, 40), slice(0, 10), slice(0, 20))
        assert not slices.kidney_found


def test_prediction_and_reference_both_count() -> None:
    """What only one of the two label maps holds is shown too."""
    predicted = np.zeros((30, 8, 8), dtype=np.uint8)
    reference = predicted.copy()
    predicted[5, 2:5, 2:5] = 1
    reference[25, 2:5, 2:5] = 1

    assert choose_slices([predicted, reference], Geometry.axial(predicted.shape, SPACING_MM)).axial == (25, 5)


@given(
    labels=arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 2)),
    z_step=st.sampled_from([0.5, 3.0, 5.0, 20.0]),
)
def test_slices_lie_in_any_volume_and_in_its_box(labels: np.ndarray, z_step: float) -> None:
    """One to five distinct slices from top to bottom, all within what is shown."""
    depth, height, width = labels.shape

    slices = choose_slices([labels], Geometry.axial((depth, height, width), (z_step, 1.0, 1.0)))

    assert 1 <= len(slices.axial) <= MOST_AXIAL
    assert list(slices.axial) == sorted(set(slices.axial), reverse=True)
    assert all(slices.box[0].start <= z < slices.box[0].stop for z in slices.axial)
    assert slices.box[1].start <= slices.coronal < slices.box[1].stop


def test_fewer_slices_are_those_that_tell_most() -> None:
    """With room for two, they go through the tumour and the right kidney, not through the ends."""
    labels = np.zeros((60, 40, 200), dtype=np.uint8)
    labels[10:41, 20, 50:60] = 1
    labels[20, 18:23, 50:60] = 1
    labels[10:41, 20, 140:150] = 1
    labels[33, 20, 140:144] = 2

    assert choose_slices([labels], Geometry.axial(labels.shape, SPACING_MM), most=2).axial == (33, 20)
