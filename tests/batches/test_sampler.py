"""Where patches are cut."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from kitsattn.batches.sampler import draw_patch, is_foreground_sample


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int]
    locations: Mapping[int, NDArray[np.int32]] = field(default_factory=dict)


def _voxels(*places: tuple[int, int, int]) -> NDArray[np.int32]:
    return np.array(places, np.int32).reshape(-1, 3)


@pytest.mark.parametrize(("batch_size", "foreground"), [(2, 1), (3, 1), (8, 3), (12, 4)])
def test_a_third_of_a_batch_is_on_foreground(batch_size: int, foreground: int) -> None:
    """The last samples of a batch, at least one."""
    flags = [is_foreground_sample(index, batch_size, 1 / 3) for index in range(batch_size)]
    assert sum(flags) == foreground
    assert flags == sorted(flags)
    assert not any(is_foreground_sample(index, batch_size, 0.0) for index in range(batch_size))


def test_cases_are_drawn_alike_however_long_they_are() -> None:
    """By case first: a scan of ten times the slices is not seen ten times as often."""
    generator = np.random.default_rng(0)
    cases = [Case((10, 100, 80)), Case((100, 100, 80))]
    patches = [draw_patch(cases, (64, 64), foreground=False, generator=generator) for _ in range(2000)]
    share = np.mean([patch.case == 0 for patch in patches])
    assert 0.46 < share < 0.54
    centres = {patch.centre for patch in patches if patch.case == 0}
    assert centres == set(range(10))


def test_foreground_patches_hold_a_voxel_of_a_class_drawn_alike() -> None:
    """A class of one voxel is drawn as often as one of a thousand, and lies in the patch."""
    case = Case((10, 100, 80), {1: _voxels(*[(2, 50, 40)] * 1000), 2: _voxels((7, 5, 70))})
    generator = np.random.default_rng(0)
    patches = [draw_patch([case], (32, 32), foreground=True, generator=generator) for _ in range(400)]
    assert 0.4 < np.mean([patch.centre == 7 for patch in patches]) < 0.6
    for patch in patches:
        _, y, x = (7, 5, 70) if patch.centre == 7 else (2, 50, 40)
        assert patch.top <= y < patch.top + 32
        assert patch.left <= x < patch.left + 32
        assert 0 <= patch.top <= 100 - 32
        assert 0 <= patch.left <= 80 - 32


def test_a_patch_larger_than_the_slice_is_centred() -> None:
    """It reaches beyond the slice alike on both sides, with and without foreground."""
    generator = np.random.default_rng(0)
    for foreground in (True, False):
        case = Case((3, 50, 60), {1: _voxels((1, 0, 0))})
        patch = draw_patch([case], (64, 64), foreground=foreground, generator=generator)
        assert (patch.top, patch.left) == (-7, -2)


def test_a_case_without_foreground_is_sampled_anywhere() -> None:
    """An empty class list does not fail."""
    generator = np.random.default_rng(0)
    case = Case((10, 100, 80), {1: _voxels()})
    patch = draw_patch([case], (32, 32), foreground=True, generator=generator)
    assert 0 <= patch.centre < 10
