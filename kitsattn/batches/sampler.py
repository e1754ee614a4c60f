"""Which patch a sample is cut from: by case first, then by slice, a share of a batch on foreground."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


class SampledCase(Protocol):
    """What is known of a case before it is read; `preprocess.store.StoredCase` has it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, height and width."""

    @property
    def locations(self) -> Mapping[int, NDArray[np.int32]]:
        """Class value to (n, 3) foreground voxels, (z, y, x)."""


@dataclass(frozen=True)
class Patch:
    """Where one sample is cut.

    Attributes:
        case: Number of the case.
        centre: Slice that is predicted.
        top: First row; may be outside the slice, which is then padded.
        left: First column, likewise.
    """

    case: int
    centre: int
    top: int
    left: int


def is_foreground_sample(index: int, batch_size: int, share: float) -> bool:
    """Return whether the sample at `index` of a batch is centred on foreground: a share at its end, at least one.

    nnU-Net has a third; a share of 0 means none.
    """
    return share > 0 and index >= batch_size - max(1, round(batch_size * share))


def draw_patch(
    cases: Sequence[SampledCase],
    size: tuple[int, int],
    *,
    foreground: bool,
    generator: Generator,
) -> Patch:
    """Draw the patch of one sample.

    Every case is as likely as any other, however many slices it has. On foreground, a class that the case holds is
    drawn, then a voxel of it, and the patch is centred there; otherwise slice and position are uniform.

    Args:
        cases: The cases.
        size: Height and width of the patch.
        foreground: Whether the patch must be centred on foreground, where the case has any.
        generator: Source of randomness.

    Returns:
        The patch; it covers as much of the slice as it can.
    """
    case = int(generator.integers(len(cases)))
    depth, height, width = cases[case].shape
    locations = cases[case].locations if foreground else {}
    present = [label for label, voxels in sorted(locations.items()) if len(voxels)]
    if present:
        voxels = locations[present[generator.integers(len(present))]]
        centre, y, x = (int(value) for value in voxels[generator.integers(len(voxels))])
        top = _inside(y - size[0] // 2, size[0], height)
        left = _inside(x - size[1] // 2, size[1], width)
    else:
        centre = int(generator.integers(depth))
        top = _anywhere(size[0], height, generator)
        left = _anywhere(size[1], width, generator)
    return Patch(case, centre, top, left)


def _inside(start: int, size: int, length: int) -> int:
    """Move a window so that it is inside the slice, or in its middle where it is larger."""
    spare = length - size
    return min(max(start, 0), spare) if spare >= 0 else spare // 2


def _anywhere(size: int, length: int, generator: Generator) -> int:
    spare = length - size
    return int(generator.integers(spare + 1)) if spare >= 0 else spare // 2
