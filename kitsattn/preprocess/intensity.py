"""Values of a scan: whether they are HU, and how they are clipped and normalised."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.volume.volume import Volume

OFFSET = 1024
"""What unsigned CT files add to HU: minus the rescale intercept of most scanners."""

_SAMPLE_STEPS = 100
_PADDING_BELOW = -1100
_FAT = (-250, -50)
_BODY = (-200, 300)
_SHIFTED_BODY = (_BODY[0] + OFFSET, _BODY[1] + OFFSET)
_SHIFTED_AIR = (1, 60)
_SHIFTED_AIR_PEAK = (16, 32)
_PEAK_WIDTH = 9
_LEAST_FAT = 0.003
_LEAST_BODY = 0.01
_LEAST_SHIFTED_BODY = 0.1
_LEAST_SHIFTED_AIR = 0.02
_LEAST_NARROWNESS = 0.6
_DENSE_FROM = 300
_GREY_MAX = 255


def check_hu(volume: Volume) -> Volume:
    """Return a scan that is in HU; mend an offset of 1024 where that is certain, refuse anything else.

    The evidence is taken from about a million voxels on a regular grid. Values below -1100 are padding outside the
    field of view (-2000, -2048, -3024 are common) and do not count. Every CT of an abdomen, cropped or windowed,
    with contrast or without, holds fat. So a scan is in HU if

    - at least 0.3 % of its voxels lie where fat does, -250 to -50, which grey values, MR and offset CT never reach,
    - at least 1 % lie where soft tissue does, -200 to 300, and
    - less than 10 % lie where soft tissue would lie with an offset of 1024 (in HU only dense bone and metal do).

    An offset of 1024 is certain if all of the following hold; 1024 is then subtracted, and values that were negative
    become -1024:

    - the values are whole numbers, and fat is missing where HU would have it,
    - at least 10 % of the voxels, and 60 % of those above 300, lie where offset soft tissue does, 824 to 1324 (MR
      spreads wider), and
    - at least 2 % lie where offset air does, 1 to 60, with their peak at 16 to 32 (an offset of 1000 has it at 0).

    Args:
        volume: A scan as it was read.

    Returns:
        The volume itself, or the mended one with a note.

    Raises:
        KitsattnError: If the scan is not in HU and the mend is not certain.
    """
    array = volume.array
    sample = array[tuple(slice(None, None, max(1, size // _SAMPLE_STEPS)) for size in array.shape)]
    measured = sample[sample >= _PADDING_BELOW]
    fat, body, shifted = _share(measured, _FAT), _share(measured, _BODY), _share(measured, _SHIFTED_BODY)
    if fat >= _LEAST_FAT and body >= _LEAST_BODY and shifted < _LEAST_SHIFTED_BODY:
        return volume
    where = "the scan" if volume.source is None else str(volume.source.path)
    if fat < _LEAST_FAT and shifted >= _LEAST_SHIFTED_BODY:
        if _is_surely_offset(measured):
            note = f"The values had an offset of {OFFSET}; it was subtracted to get HU."
            return replace(volume, array=np.maximum(array, 0) - OFFSET, notes=(*volume.notes, note))
        reason = f"soft tissue seems to lie around {OFFSET}, but this is not certain"
    elif measured.size and measured.min() >= 0 and measured.max() <= _GREY_MAX:
        reason = f"the values run from {measured.min():g} to {measured.max():g}, as grey values do"
    else:
        reason = f"{fat:.2%} of the voxels lie where fat does and {body:.2%} where soft tissue does"
    msg = f"{where} does not seem to be a CT scan in Hounsfield units ({reason}): export it again, in HU"
    raise KitsattnError(msg)


def clip_hu(array: NDArray[Any], window_hu: tuple[float, float]) -> NDArray[np.float32]:
    """Return HU as float32, clipped to a window."""
    low, high = window_hu
    return np.clip(array.astype(np.float32), low, high)


def normalise(hu: NDArray[np.float32], mean_hu: float, std_hu: float) -> NDArray[np.float32]:
    """Return values whose foreground has mean 0 and standard deviation 1, nnU-Net's scheme for CT.

    Args:
        hu: Clipped to the plan's window, any shape.
        mean_hu: Mean of the foreground over the training cases.
        std_hu: Its standard deviation.
    """
    return (hu - np.float32(mean_hu)) * np.float32(1 / std_hu)


def _is_surely_offset(measured: NDArray[Any]) -> bool:
    """Tell whether CT values are HU + 1024 beyond doubt; the rule stands in `check_hu`."""
    if measured.dtype.kind != "i":
        return False
    dense = measured[measured > _DENSE_FROM]
    low, high = _SHIFTED_AIR
    air = measured[(measured >= low) & (measured <= high)]
    if _share(dense, _SHIFTED_BODY) < _LEAST_NARROWNESS or air.size < _LEAST_SHIFTED_AIR * measured.size:
        return False
    counts = np.bincount(air - low, minlength=high - low + 1)
    peak = low + _PEAK_WIDTH // 2 + int(np.convolve(counts, np.ones(_PEAK_WIDTH), "valid").argmax())
    return _SHIFTED_AIR_PEAK[0] <= peak <= _SHIFTED_AIR_PEAK[1]


def _share(values: NDArray[Any], band: tuple[int, int]) -> float:
    """Return which part of `values` lies in a band; 0 of no values."""
    if not values.size:
        return 0.0
    return float(np.count_nonzero((values >= band[0]) & (values <= band[1])) / values.size)
