"""Windows over a slice."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kitsattn.batches.sampler import draw_patch
from kitsattn.predict.windows import Window, cover, importance


def test_a_slice_that_fits_gets_one_window() -> None:
    """Smaller or equal: one forward pass, the slice in the middle as where training draws its patch."""
    assert cover((64, 64), (64, 64), 0.5) == [Window(0, 0)]
    assert cover((64, 49), (64, 64), 0.5) == [Window(0, -8)]

    @dataclass(frozen=True)
    class Case:
        shape = (3, 61, 49)
        locations: Mapping[int, NDArray[np.int32]] = field(default_factory=dict)

    patch = draw_patch([Case()], (64, 64), foreground=False, generator=np.random.default_rng(0))
    assert cover((61, 49), (64, 64), 0.5) == [Window(patch.top, patch.left)]


def test_a_larger_slice_is_covered_with_overlap_of_half_or_more() -> None:
    """Worked by hand: 100 pixels with windows of 64 need starts 0, 18, 36."""
    assert [window.left for window in cover((64, 100), (64, 64), 0.5)] == [0, 18, 36]
    assert len(cover((100, 100), (64, 64), 0.5)) == 9
    assert [window.left for window in cover((64, 100), (64, 64), 0.0)] == [0, 36]
    assert [window.left for window in cover((64, 128), (64, 64), 0.0)] == [0, 64]


@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 80), st.integers(1, 80), st.sampled_from([0.0, 0.5, 0.9])
)
def test_every_pixel_is_covered_and_windows_stay_inside_where_they_can(
    height: int, width: int, h: int, w: int, overlap: float
) -> None:
    """Any slice, any window, any overlap."""
    seen = np.zeros((height, width), bool)
    for window in cover((height, width), (h, w), overlap):
        assert (0 <= window.top <= height - h) or (height < h and window.top == (height - h) // 2)
        assert (0 <= window.left <= width - w) or (width < w and window.left == (width - w) // 2)
        seen[max(window.top, 0) : window.top + h, max(window.left, 0) : window.left + w] = True
    assert seen.all()


def test_the_centre_weighs_most_and_nothing_weighs_nothing() -> None:
    """Symmetric, positive, highest in the middle."""
    weights = importance((33, 65))
    assert weights.shape == (33, 65)
    assert weights[16, 32] == weights.max()
    assert weights.min() > 0
    np.testing.assert_allclose(weights, weights[::-1, ::-1])
