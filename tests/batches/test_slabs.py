"""Slices of a slab."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitsattn.batches.slabs import slab_indices, slice_step


@pytest.mark.parametrize(
    ("centre", "expected"), [(4, [2, 3, 4, 5, 6]), (0, [0, 0, 0, 1, 2]), (8, [6, 7, 8, 9, 9]), (9, [7, 8, 9, 9, 9])]
)
def test_edge_slices_are_repeated(centre: int, expected: list[int]) -> None:
    """Beyond the scan the first or last slice stands in."""
    assert slab_indices(centre, 10, 5, 1).tolist() == expected


def test_a_step_spreads_the_slab() -> None:
    """Three slices, two apart."""
    assert slab_indices(5, 20, 3, 2).tolist() == [3, 5, 7]
    assert slab_indices(1, 20, 3, 2).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("step_mm", "spacing_mm", "step"), [(None, 0.5, 1), (5.0, 0.5, 10), (5.0, 5.0, 1), (3.0, 5.0, 1), (4.0, 1.5, 3)]
)
def test_the_step_in_mm_becomes_whole_slices(step_mm: float | None, spacing_mm: float, step: int) -> None:
    """KiTS slices lie 0.5 to 5 mm apart; the step is the nearest number of slices, never none."""
    assert slice_step(step_mm, spacing_mm) == step


@given(st.data())
def test_the_centre_is_in_the_middle_and_all_slices_are_in_the_scan(data: st.DataObject) -> None:
    """Holds for any scan, slab and step, also where the slab is longer than the scan."""
    total = data.draw(st.integers(1, 50))
    centre = data.draw(st.integers(0, total - 1))
    slices = 2 * data.draw(st.integers(0, 5)) + 1
    indices = slab_indices(centre, total, slices, data.draw(st.integers(1, 12)))
    assert indices[slices // 2] == centre
    assert indices.min() >= 0
    assert indices.max() < total
    assert (indices[1:] >= indices[:-1]).all()
