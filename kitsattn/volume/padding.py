"""Padding: the voxels around the image of a scan, where nothing was measured. It is read as air.

The rule, for every format:

- What the header of a DICOM image states as padding (PixelPaddingValue and PixelPaddingRangeLimit, stored values) is
  padding. Where its HU are those of tissue, only what reaches the edge of its slice is: a voxel within the body may
  have the same value.
- A value of -1500 HU or less is padding: -2000, -2048, -3024, -32768 are common. Vacuum has -1000 HU; noise, undershoot
  at edges and the splines of resampling reach -1200 HU.
- A value above 3071 HU, the most that 12 bits give, is padding if all eight corners of the scan hold it: so unsigned
  padding comes out of converters, as 62512 HU for example. Metal is never in all corners, and is kept.

Padding becomes -1024 HU, the least value of most scanners.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.volume.volume import Volume

AIR_HU = -1024
PADDING_HU = -1500
"""The highest value that is padding by itself."""

_HIGHEST_HU = 3071
_LOWEST_TISSUE_HU = -900
"""Of a lung in inspiration."""


def fill_padding(scan: Volume) -> Volume:
    """Return a scan whose padding is air, by the values alone; the scan itself if it has none.

    Args:
        scan: In HU, int16 or float32. Its array is not changed.
    """
    array, notes = scan.array, scan.notes
    if array.min() <= PADDING_HU:
        array = np.where(array <= PADDING_HU, array.dtype.type(AIR_HU), array)
    corner = array[0, 0, 0]
    if corner > _HIGHEST_HU and np.all(array[np.ix_([0, -1], [0, -1], [0, -1])] == corner):
        array = np.where(array == corner, array.dtype.type(AIR_HU), array)
        notes = (*notes, f"The corners of the scan hold {corner:g} HU; all voxels of this value were read as air.")
    return scan if array is scan.array else replace(scan, array=array, notes=notes)


def stated_padding(padding: NDArray[np.bool_], ends_hu: tuple[float, float]) -> NDArray[np.bool_]:
    """Return which voxels of a slice are padding, of those with the values that its header states for padding.

    Args:
        padding: Which voxels have such a value, (rows, columns).
        ends_hu: The least and the greatest of these values in HU.
    """
    if ends_hu[1] <= _LOWEST_TISSUE_HU or ends_hu[0] > _HIGHEST_HU:
        return padding
    from scipy import ndimage  # noqa: PLC0415 - hardly any scan needs it

    regions: NDArray[Any] = ndimage.label(padding)[0]
    edges = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return padding & np.isin(regions, edges)
