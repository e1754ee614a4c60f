import itertools

import numpy as np
import pytest

from kitsattn.volume.voxels import foreground_box


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
