from math import isnan

import numpy as np
import pytest

from kitsattn.evaluate.metrics.relative_volume_error import RELATIVE_VOLUME_ERROR
from kitsattn.evaluate.region import RegionPair
from kitsattn.labels import KITS19


@pytest.mark.parametrize(
    ("predicted", "reference", "percent"), [(3, 4, -25.0), (6, 4, 50.0), (0, 4, -100.0), (4, 4, 0.0), (0, 0, 0.0)]
)
def test_worked_by_hand(predicted: int, reference: int, percent: float) -> None:
    """In percent of the reference, below 0 where too little was predicted, wherever the voxels lie."""
    assert error(predicted, reference) == percent


def test_it_is_not_defined_where_only_the_reference_is_empty() -> None:
    """No volume is a share of nothing."""
    assert isnan(error(1, 0))


def error(predicted: int, reference: int) -> float:
    """Return the error for masks of so many voxels, those of the reference at the other end."""
    place = np.arange(8)[None, None]
    masks = place < predicted, place >= 8 - reference
    return RELATIVE_VOLUME_ERROR.compute(RegionPair(KITS19.regions[1], *masks, (5.0, 0.8, 0.8)))
