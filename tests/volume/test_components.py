"""Connected components on the list of foreground voxels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from kitsattn.volume.components import find_components, find_voxels


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.03, 0.1, 0.3, 0.8]))
def test_components_are_those_of_scipy(seed: int, share: float) -> None:
    """In volumes of random shape and density, with 26 neighbours."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(generator.integers(1, 9, 3)) < share).astype(np.uint8)
    voxels = find_voxels(labels)
    components = find_components(voxels.places)
    expected, count = ndimage.label(labels, np.ones((3, 3, 3)))
    assert components.count == count
    pairs = set(zip(expected[labels > 0].tolist(), components.numbers.tolist(), strict=True))
    assert len(pairs) == count


def test_voxels_that_share_a_corner_belong_together_and_the_ends_of_rows_and_slices_do_not() -> None:
    """The last voxel of a row lies beside the first of the next only in memory."""
    corner = np.zeros((2, 2, 2), np.uint8)
    corner[0, 0, 0] = corner[1, 1, 1] = 1
    assert find_components(find_voxels(corner).places).count == 1
    ends = np.zeros((2, 4, 5), np.uint8)
    ends[0, 3, 4] = ends[1, 0, 0] = ends[1, 1, 4] = ends[1, 2, 0] = 1
    assert find_components(find_voxels(ends).places).count == 4


def test_items_are_split_by_component_in_their_order() -> None:
    """Worked by hand: the U is one component although its arms are met first."""
    labels = np.array([[[1, 0, 1, 0, 1], [1, 1, 1, 0, 1]]], np.uint8)
    voxels = find_voxels(labels)
    components = find_components(voxels.places)
    parts = [part.tolist() for part in components.split(np.arange(len(voxels.values)))]
    assert sorted(parts) == [[0, 1, 3, 4, 5], [2, 6]]
    assert sorted(components.sizes.tolist()) == [2, 5]


def test_an_empty_map_has_no_components() -> None:
    """Nor anything to split."""
    voxels = find_voxels(np.zeros((2, 3, 4), np.uint8))
    components = find_components(voxels.places)
    assert voxels.places.shape == (0, 3)
    assert components.count == 0
    assert components.split(voxels.places) == []
