import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kitsattn.evaluate.overlap import Overlap, count_overlap
from kitsattn.evaluate.region import region_mask
from kitsattn.labels import KITS19, KITS23, Region

KIDNEY_AND_TUMOUR, TUMOUR = KITS19.regions


def pairs_up_to(highest: int) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Draw two label maps of one shape with values from 0."""
    return array_shapes(min_dims=3, max_dims=3, max_side=4).flatmap(
        lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, highest))] * 2)
    )


def overlap_of(prediction: np.ndarray, reference: np.ndarray, region: Region) -> Overlap:
    """Count the voxels of a region in two label maps."""
    return count_overlap(region_mask(prediction, region), region_mask(reference, region))


label_map_pairs = pairs_up_to(2)


def test_counts_worked_by_hand() -> None:
    """Kidney and tumour count as one region; the tumour counts alone."""
    prediction = np.array([[[0, 1, 1]], [[2, 2, 0]]], dtype=np.uint8)
    reference = np.array([[[0, 1, 0]], [[1, 2, 2]]], dtype=np.uint8)

    assert overlap_of(prediction, reference, KIDNEY_AND_TUMOUR) == Overlap(predicted=4, reference=4, common=3)
    assert overlap_of(prediction, reference, TUMOUR) == Overlap(predicted=2, reference=2, common=1)


def test_dice_worked_by_hand() -> None:
    """Dice is twice the common voxels over the sum of both: 2 * 3 / (4 + 6)."""
    assert Overlap(predicted=4, reference=6, common=3).dice == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("overlap", "expected"), [(Overlap(0, 0, 0), 1.0), (Overlap(5, 0, 0), 0.0), (Overlap(0, 5, 0), 0.0)]
)
def test_dice_of_empty_regions(overlap: Overlap, expected: float) -> None:
    """A region empty in both label maps scores 1, in one of them 0."""
    assert overlap.dice == expected


def test_values_outside_the_classes_are_background() -> None:
    """A value that is no class of KiTS19 belongs to no region."""
    prediction = np.array([[[1, 3, 255]]], dtype=np.uint8)
    reference = np.array([[[1, 1, 2]]], dtype=np.uint8)

    assert overlap_of(prediction, reference, KIDNEY_AND_TUMOUR) == Overlap(predicted=1, reference=3, common=1)


def test_label_maps_of_other_shapes_are_refused() -> None:
    """Shapes that could be broadcast are refused all the same."""
    with pytest.raises(ValueError, match=r"\(1, 2, 2\) against a reference of shape \(2, 2, 2\)"):
        count_overlap(np.zeros((1, 2, 2), bool), np.zeros((2, 2, 2), bool))


@pytest.mark.parametrize("region", KITS19.regions, ids=lambda region: region.key)
@given(pair=label_map_pairs)
def test_dice_is_symmetric_and_between_0_and_1(region: Region, pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Which of the two label maps is the prediction does not matter, and the score is a share."""
    prediction, reference = pair
    score = overlap_of(prediction, reference, region).dice

    assert score == overlap_of(reference, prediction, region).dice
    assert 0.0 <= score <= 1.0


@pytest.mark.parametrize("region", KITS19.regions, ids=lambda region: region.key)
@given(pair=label_map_pairs)
def test_a_perfect_prediction_scores_1(region: Region, pair: tuple[np.ndarray, np.ndarray]) -> None:
    """A label map against itself scores 1, whatever it holds."""
    assert overlap_of(pair[0], pair[0], region).dice == 1.0


@given(pair=label_map_pairs)
def test_kits19_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Both regions equal the official formula, labels above 0 and labels above 1, where that is defined.

    The formula is that of `starter_code/evaluation.py` in https://github.com/neheller/kits19.
    """
    prediction, reference = pair
    for region, above in ((KIDNEY_AND_TUMOUR, 0), (TUMOUR, 1)):
        total = np.sum(prediction > above) + np.sum(reference > above)
        if total:
            official = 2 * np.sum((prediction > above) & (reference > above)) / total
            assert overlap_of(prediction, reference, region).dice == official


@given(pair=pairs_up_to(3))
def test_kits23_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """All three regions equal the official formula (kits23/evaluation/dice.py), and its rule for empty ones."""
    for region in KITS23.regions:
        predicted, true = (np.isin(labels, region.labels) for labels in pair)
        total = np.count_nonzero(predicted) + np.count_nonzero(true)
        official = 2 * np.count_nonzero(predicted & true) / total if total else 1
        assert overlap_of(*pair, region).dice == official


def test_dice_of_random_label_maps_equals_dice_of_voxel_sets() -> None:
    """Scores agree with an independent computation on Python sets of voxel indices."""
    generator = np.random.default_rng(7)
    prediction, reference = generator.choice(3, size=(2, 9, 13, 11), p=(0.7, 0.2, 0.1)).astype(np.uint8)
    for region in KITS19.regions:
        sets = [
            {index for index in np.ndindex(labels.shape) if labels[index] in region.labels}
            for labels in (prediction, reference)
        ]
        expected = 2 * len(sets[0] & sets[1]) / (len(sets[0]) + len(sets[1]))
        assert overlap_of(prediction, reference, region).dice == pytest.approx(expected, abs=1e-15)
