from math import isnan, pi

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from kitsattn.evaluate.detection import (
    LEAST_IOU,
    SIZES_MM,
    Detection,
    Lesion,
    count_lesions,
    intervals,
    match_lesions,
)
from kitsattn.evaluate.region import RegionPair, region_mask
from kitsattn.labels import KITS23, TUMOUR, Region

REGION = Region("tumour", (TUMOUR,), lesions=True)
VOXEL_ML = 0.5


def match(
    predicted: np.ndarray, reference: np.ndarray, region: Region = REGION, voxel_ml: float = VOXEL_ML
) -> Detection:
    """Match the lesions of two label maps with voxels of 10 mm in the plane."""
    spacing_mm = (10 * voxel_ml, 10.0, 10.0)
    return match_lesions(RegionPair(region, region_mask(predicted, region), region_mask(reference, region), spacing_mm))


def row(*values: int) -> np.ndarray:
    """Return a label map of one row of voxels."""
    return np.array([[values]], np.uint8)


def found(detection: Detection) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return volume and ratio of the lesions of reference and prediction."""
    sides = (detection.reference, detection.predicted)
    reference, predicted = ([(lesion.volume_ml, lesion.iou) for lesion in side] for side in sides)
    return reference, predicted


def test_lesions_worked_by_hand() -> None:
    """One lesion is found by three of its four voxels, one missed, one predicted is false; kidney is no lesion."""
    reference = row(2, 2, 2, 2, 0, 1, 1, 0, 2, 2, 0, 0)
    predicted = row(0, 2, 2, 2, 2, 1, 2, 0, 0, 0, 0, 0)

    detection = match(predicted, reference)

    assert found(detection) == ([(2.0, pytest.approx(3 / 5)), (1.0, 0.0)], [(2.0, pytest.approx(3 / 5)), (0.5, 0.0)])
    counts = count_lesions([detection])
    assert (counts.reference, counts.found, counts.predicted, counts.true) == (2, 1, 2, 1)
    assert (counts.precision, counts.recall, counts.f1) == (0.5, 0.5, 0.5)


def test_a_lesion_is_found_once() -> None:
    """Of two predicted parts the larger one finds it, and the other one is false."""
    detection = match(row(2, 2, 2, 0, 2, 2), row(2, 2, 2, 2, 2, 2))

    assert found(detection) == ([(3.0, 0.5)], [(1.5, 0.5), (1.0, 0.0)])


def test_the_sum_of_the_ratios_is_as_large_as_can_be() -> None:
    """The predicted lesion in the middle overlaps both; it is left to the one that no other one finds."""
    reference = row(2, 2, 2, 2, 0, 2, 2, 0)
    predicted = row(2, 2, 0, 2, 2, 2, 2, 0)

    detection = match(predicted, reference)

    assert found(detection) == ([(2.0, 0.5), (1.0, 0.5)], [(2.0, 0.5), (1.0, 0.5)])


def test_the_threshold_is_one_tenth() -> None:
    """A ratio of exactly 0.1 is enough, a smaller one is not."""
    lesion = np.full((1, 1, 10), 2, np.uint8)
    assert LEAST_IOU == 0.1
    assert found(match(row(2, *[0] * 9), lesion))[0] == [(5.0, 0.1)]
    longer = np.full((1, 1, 11), 2, np.uint8)
    assert found(match(row(2, *[0] * 10), longer))[0] == [(5.5, 0.0)]


@pytest.mark.parametrize(("predicted", "reference"), [((0, 0), (2, 0)), ((2, 0), (0, 0)), ((0, 0), (0, 0))])
def test_where_one_side_has_no_lesions(predicted: tuple[int, ...], reference: tuple[int, ...]) -> None:
    """What there is counts, and a share of nothing is not defined."""
    counts = count_lesions([match(row(*predicted), row(*reference))])

    assert (counts.reference, counts.predicted) == (sum(reference) // 2, sum(predicted) // 2)
    assert (counts.found, counts.true) == (0, 0)
    assert isnan(counts.recall) == (not counts.reference)
    assert isnan(counts.precision) == (not counts.predicted)
    assert isnan(counts.f1) == (not counts.reference and not counts.predicted)


def test_lesions_that_meet_at_a_corner_are_one() -> None:
    """26 neighbours, as everywhere."""
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 2

    assert len(match(labels, labels).reference) == 1


def test_masses_that_touch_are_one_lesion() -> None:
    """KiTS23's region of masses is a union, and its components may hold tumour and cyst."""
    labels = row(2, 3, 0, 3)
    masses = KITS23.regions[1]

    assert found(match(labels, labels, masses))[0] == [(1.0, 1.0), (0.5, 1.0)]


def test_sizes_are_diameters_of_spheres() -> None:
    """A lesion belongs to the group that begins at its diameter."""
    ball_ml = pi / 6 * 40**3 / 1_000
    lesions = (Lesion(ball_ml + 1e-9, 0.5), Lesion(ball_ml - 1e-6, 0.0))
    cases = [Detection(lesions, lesions[:1])]

    assert lesions[0].diameter_mm == pytest.approx(40)
    assert SIZES_MM[1:4] == (20, 40, 70)
    below, above = count_lesions(cases, 20, 40), count_lesions(cases, 40, 70)
    assert (below.reference, below.found, below.predicted, below.true) == (1, 0, 0, 0)
    assert (above.reference, above.found, above.predicted, above.true) == (1, 1, 1, 1)


def test_intervals_are_over_cases() -> None:
    """Cases that are all alike leave no doubt; one case has no interval, and no lesions have none."""
    case = Detection((Lesion(1.0, 0.5), Lesion(1.0, 0.0)), (Lesion(1.0, 0.5),))
    none = Detection((), ())

    assert intervals([case, case]) == {"precision": (1.0, 1.0), "recall": (0.5, 0.5), "f1": (2 / 3, 2 / 3)}
    assert all(isnan(end) for ends in intervals([case]).values() for end in ends)
    assert all(isnan(end) for ends in intervals([none, none]).values() for end in ends)
    other = Detection((Lesion(1.0, 0.0),), ())
    assert intervals([case, other])["recall"] == (0.0, 0.5)


def test_equal_to_a_plain_statement_on_random_blobs() -> None:
    """With SciPy's labels, every pair's ratio, and one assignment of all."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        shape = tuple(rng.integers(3, 14, 3))
        predicted, reference = (
            2 * (ndimage.gaussian_filter(rng.normal(size=shape), 1.2) > 0.15).astype(np.uint8) for _ in range(2)
        )
        detection = match(predicted, reference, voxel_ml=1.0)
        (theirs, count), (mine, others) = (
            ndimage.label(labels, np.ones((3, 3, 3))) for labels in (reference, predicted)
        )
        ratios = np.zeros((count, others))
        for one in range(count):
            for other in range(others):
                a, b = theirs == one + 1, mine == other + 1
                ratios[one, other] = (a & b).sum() / (a | b).sum()
        sizes = sorted(((theirs == number + 1).sum() for number in range(count)), reverse=True)
        assert [lesion.volume_ml for lesion in detection.reference] == sizes
        matched = [lesion.iou for lesion in detection.reference]
        assert sorted(filter(None, matched)) == sorted(lesion.iou for lesion in detection.predicted if lesion.matched)
        ratios[ratios < LEAST_IOU] = 0
        assert sum(matched) == pytest.approx(ratios[linear_sum_assignment(ratios, maximize=True)].sum())


def test_thousands_of_specks_are_matched() -> None:
    """Memory and time grow with the specks, not with their square: a table of all pairs would have 16 GB here."""
    labels = np.zeros((1, 424, 424), np.uint8)
    labels[0, ::2, ::2] = 2

    detection = match(labels, labels)

    assert len(detection.reference) == 212**2
    assert all(lesion.iou == 1 for lesion in detection.reference)
