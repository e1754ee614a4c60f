"""Whether the values of a scan are HU."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.volume.volume import Volume

OFFSET = 1024
"""What unsigned CT files add to HU: minus the rescale intercept of most scanners."""

TISSUE_FROM = -250
"""HU from which on voxels are of the body: air and lung are below."""

ASSUMED_NOTE = "The values were taken as HU without a check (--assume-hu)."

_SAMPLE_STEPS = 100
_PADDING_BELOW = -1100
_AIR = (_PADDING_BELOW, -900)
_FAT = (TISSUE_FROM, -50)
_FAT_PEAK, _BELOW_WATER = (-130, -70), (-65, -5)
_BODY = (TISSUE_FROM, 300)
_TISSUE_PEAK_FROM = -150
_BIN_HU = 50
_SHIFTED_BODY = (-200 + OFFSET, 300 + OFFSET)
_SHIFTED_AIR = (1, 60)
_SHIFTED_AIR_PEAK = (16, 32)
_PEAK_WIDTH = 9
_LEAST_TISSUE = 0.001
_LEAST_FAT = 0.003
_LEAST_AIR = 0.01
_LEAST_BODY = 0.5
_LEAST_BODY_WITHOUT_FAT = 0.9
_LEAST_SHIFTED = 0.005
_LEAST_SHIFTED_BODY = 0.4
_LEAST_SHIFTED_SUSPICION = 0.1
_LEAST_SHIFTED_AIR = 0.02
_LEAST_NARROWNESS = 0.6
_AIR_TWICE = (-1000 - OFFSET - 100, -1000 - OFFSET + 100)
_MOST_OF_ONE_VALUE = 0.3
_DENSE_FROM = 300
_GREY_MAX = 255
_BRIGHT = 200
_MANY_VALUES = 64


def check_hu(volume: Volume, *, assume: bool = False) -> Volume:
    """Return a scan that is in HU; correct an offset of 1024 where that is certain, refuse anything else.

    The evidence is taken from about a million voxels on a regular grid. Values below -1100 are padding outside the
    field of view (-2000, -2048, -3024 are common) and do not count. The judgement is made over the body, whatever the
    field around it: over the voxels from -250 HU on, which leaves out air and lung. Where there is no air, 0 may stand
    for it, and is left out too. A scan is in HU if

    - its body is at least 0.1 % of the voxels, and at least half of it is where fat and soft tissue do, -250 to 300;
    - where a hundredth of the voxels are below it, the body's values are most frequent above -150: with the offset
      subtracted twice only bone is left, and its values are most frequent at the lower end;
    - not a hundredth of the voxels are noise around -2024, where air is with the offset subtracted twice: padding is
      one value;
    - at least 0.3 % of the body is where fat does, -250 to -50, which grey values, MR and offset CT do not reach; or,
      in phantoms and bodies without fat, at least 1 % of the voxels are air, -1100 to -900; and
    - without air, it is not an offset scan whose noisy air reaches the values of fat: such a scan has at least 0.5 % of
      its voxels, and 60 % of those above 300, where offset soft tissue is, 824 to 1324, and no peak at fat.

    Air of one single value may be padding around MR or grey values. It counts where nine tenths of the body are between
    -250 and 300, unless the body has more than 64 values, which run from 0 to above 200: MR and grey values begin at 0.

    An offset of 1024 is certain if all of the following hold; 1024 is then subtracted, and values that were negative
    become -1024:

    - the values are whole numbers, and they are not in HU by the rules above,
    - at least 0.5 % of the voxels, 40 % of those above air, and 60 % of those above 300, are where offset soft tissue
      does, 824 to 1324 (MR spreads wider), and
    - at least 2 % are where offset air does, 1 to 60, with their peak at 16 to 32 (an offset of 1000 has it at 0).

    Args:
        volume: A scan as it was read.
        assume: Whether the values are taken as HU without a check.

    Returns:
        The volume itself, or one with a note: the corrected one, or one that was not checked.

    Raises:
        KitsattnError: If the scan is not in HU and the correction is not certain.
    """
    if assume:
        return replace(volume, notes=(*volume.notes, ASSUMED_NOTE))
    array = volume.array
    measured = sample_voxels(array)
    twice = _is_offset_twice(array)
    if _is_hu(measured) and not twice:
        return volume
    if _is_surely_offset(measured):
        note = f"The values had an offset of {OFFSET}; it was subtracted to get HU."
        return replace(volume, array=np.maximum(array, 0) - OFFSET, notes=(*volume.notes, note))
    if twice:
        reason = f"air seems to be around {-1000 - OFFSET}, as if an offset of {OFFSET} had been subtracted twice"
    elif _share(measured[measured > _SHIFTED_AIR[1]], _SHIFTED_BODY) >= _LEAST_SHIFTED_SUSPICION:
        reason = f"soft tissue seems to be around {OFFSET}, but this is not certain"
    elif measured.size and measured.min() >= 0 and measured.max() <= _GREY_MAX:
        reason = f"the values run from {measured.min():g} to {measured.max():g}, as grey values do"
    else:
        tissue = measured[measured >= TISSUE_FROM]
        reason = (
            f"{_share(measured, _AIR):.2%} of the voxels have the value of air, and of the {tissue.size} of "
            f"{measured.size} sampled voxels above it {_share(tissue, _FAT):.2%} have that of fat"
        )
    where = "the scan" if volume.source is None else str(volume.source.path)
    msg = (
        f"{where} does not seem to be a CT scan in Hounsfield units ({reason}): "
        "export it again in HU, or add --assume-hu if its values are HU"
    )
    raise KitsattnError(msg)


def sample_voxels(array: NDArray[Any]) -> NDArray[Any]:
    """Return about a million voxels of a scan, on a regular grid, without padding outside the field of view; 1-D."""
    sample = _sample(array)
    measured: NDArray[Any] = sample[sample >= _PADDING_BELOW]
    return measured


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    return array[tuple(slice(None, None, max(1, size // _SAMPLE_STEPS)) for size in array.shape)]


def _is_offset_twice(array: NDArray[Any]) -> bool:
    """Tell whether the offset of 1024 was subtracted twice: then air is at -2024; padding has one value, air noise."""
    sample = _sample(array)
    air = sample[(sample >= _AIR_TWICE[0]) & (sample <= _AIR_TWICE[1])]
    if air.size < _LEAST_AIR * sample.size:
        return False
    return bool(np.unique(np.rint(air), return_counts=True)[1].max() < _MOST_OF_ONE_VALUE * air.size)


def _is_hu(measured: NDArray[Any]) -> bool:
    """Tell whether values are HU; the rules are in `check_hu`."""
    air = measured[(measured >= _AIR[0]) & (measured <= _AIR[1])]
    has_air = air.size >= _LEAST_AIR * measured.size
    # Without air, 0 may stand for it.
    tissue = measured[(measured >= TISSUE_FROM) & (has_air | (measured != 0))]
    if tissue.size <= _LEAST_TISSUE * measured.size or _share(tissue, _BODY) < _LEAST_BODY:
        return False
    # Where a display window ends above -250, its lowest value stands for all air.
    is_clipped = np.count_nonzero(measured < TISSUE_FROM) < _LEAST_AIR * measured.size
    if not is_clipped and _peak_bin(tissue) < _TISSUE_PEAK_FROM:
        return False
    if _share(tissue, _FAT) >= _LEAST_FAT:
        return has_air or not _may_be_offset(measured)
    return has_air and (air.min() < air.max() or _is_body_in_padding(tissue))


def _is_body_in_padding(tissue: NDArray[Any]) -> bool:
    """Tell whether tissue without fat, in air of one single value, is that of CT."""
    from_zero = tissue.min() == 0 and tissue.max() > _BRIGHT and np.unique(tissue).size > _MANY_VALUES
    return _share(tissue, _BODY) >= _LEAST_BODY_WITHOUT_FAT and not from_zero


def _may_be_offset(measured: NDArray[Any]) -> bool:
    """Tell whether values without air at -1000 may be HU + 1024, though noise reaches where fat is in HU."""
    if _share(measured, _FAT_PEAK) > _share(measured, _BELOW_WATER):
        return False
    return _is_narrow_around_offset(measured)


def _is_narrow_around_offset(measured: NDArray[Any]) -> bool:
    dense = measured[measured > _DENSE_FROM]
    return _share(measured, _SHIFTED_BODY) >= _LEAST_SHIFTED and _share(dense, _SHIFTED_BODY) >= _LEAST_NARROWNESS


def _peak_bin(values: NDArray[Any]) -> float:
    """Return the lower end of the most frequent 50 HU of the body's values; infinite if there are none."""
    counts, edges = np.histogram(values, (_BODY[1] - _BODY[0]) // _BIN_HU, _BODY)
    return float(edges[counts.argmax()]) if counts.any() else np.inf


def _is_surely_offset(measured: NDArray[Any]) -> bool:
    """Tell whether CT values are HU + 1024 beyond doubt; the rule is in `check_hu`."""
    if measured.dtype.kind != "i" or not _is_narrow_around_offset(measured):
        return False
    low, high = _SHIFTED_AIR
    air = measured[(measured >= low) & (measured <= high)]
    body = _share(measured[measured > high], _SHIFTED_BODY)
    if body < _LEAST_SHIFTED_BODY or air.size < _LEAST_SHIFTED_AIR * measured.size:
        return False
    counts = np.bincount(air - low, minlength=high - low + 1)
    peak = low + _PEAK_WIDTH // 2 + int(np.convolve(counts, np.ones(_PEAK_WIDTH), "valid").argmax())
    return _SHIFTED_AIR_PEAK[0] <= peak <= _SHIFTED_AIR_PEAK[1]


def _share(values: NDArray[Any], band: tuple[int, int]) -> float:
    """Return which part of `values` is in a band; 0 of no values."""
    if not values.size:
        return 0.0
    return float(np.count_nonzero((values >= band[0]) & (values <= band[1])) / values.size)
