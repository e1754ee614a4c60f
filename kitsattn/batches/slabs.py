"""Which slices and which part of them make up a slab: shared by training and prediction."""

import numpy as np
from numpy.typing import NDArray


def slice_step(slab_step_mm: float | None, slice_spacing_mm: float) -> int:
    """Return the distance of a slab's slices in slices.

    Args:
        slab_step_mm: Wanted distance in mm; None takes adjacent slices.
        slice_spacing_mm: Distance of the scan's slices.

    Returns:
        The nearest whole number of slices, 1 or more.
    """
    return 1 if slab_step_mm is None else max(1, round(slab_step_mm / slice_spacing_mm))


def slab_indices(centre: int, total: int, slices: int, step: int) -> NDArray[np.intp]:
    """Return the slices of the slab around `centre`; beyond the scan its first or last slice is repeated.

    Args:
        centre: The slice that is predicted, in [0, total).
        total: Slices in the scan.
        slices: Slices in a slab, odd.
        step: Distance of the slab's slices in slices.

    Returns:
        (slices,) indices in [0, total), `centre` in the middle.
    """
    reach = slices // 2
    return np.clip(centre + step * np.arange(-reach, reach + 1), 0, total - 1)


def window_overlap(start: int, size: int, length: int) -> tuple[slice, slice]:
    """Return the part of [0, length) that the window [start, start + size) covers, and where it is in the window."""
    first, last = max(start, 0), min(start + size, length)
    return slice(first, last), slice(first - start, last - start)
