import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kitsattn.evaluate.metrics.jaccard import JACCARD
from kitsattn.evaluate.region import RegionPair
from kitsattn.labels import KITS19

TUMOUR = KITS19.regions[1]
PAIRS = array_shapes(min_dims=3, max_dims=3, max_side=4).flatmap(lambda shape: st.tuples(*[arrays(bool, shape)] * 2))


def jaccard(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Return the Jaccard index of two masks."""
    return JACCARD.compute(RegionPair(TUMOUR, predicted, reference, (1.0, 1.0, 1.0)))


@given(pair=PAIRS)
def test_it_is_the_index_of_voxel_sets(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Intersection over union of Python sets; 1 where both are empty."""
    predicted, reference = (set(map(tuple, np.argwhere(mask).tolist())) for mask in pair)
    union = predicted | reference
    assert jaccard(*pair) == pytest.approx(len(predicted & reference) / len(union) if union else 1.0, abs=1e-15)


def test_worked_by_hand() -> None:
    """Two of four voxels are common."""
    assert jaccard(np.array([[[1, 1, 1, 0]]], bool), np.array([[[0, 1, 1, 1]]], bool)) == 0.5
