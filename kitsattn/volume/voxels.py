"""What voxel values may be: a scan is int16 or float32, a label map uint8, and nothing is lost on the way."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.words import number, plural

WHOLE_WITHIN = 0.01
"""How far a label may be from its whole number: float32 arithmetic puts it 1e-7 away, 16 bits with a scale 1e-5."""
MOST_WITHIN = 0.25
"""The same for 8 bits with a scale, where half a step is added: 0.004 for labels up to 2, 0.23 for labels up to 117."""

_INT16 = np.iinfo(np.int16)
_MOST_LABEL = np.iinfo(np.uint8).max


def scan_values(stored: NDArray[Any], slope: float, intercept: float, path: Path) -> NDArray[Any]:
    """Return stored values as HU: int16 where that loses nothing, else float32.

    Args:
        stored: Numbers as they are in the file, any integer or floating dtype, any shape.
        slope: What stored values are multiplied with.
        intercept: What is added then.
        path: The file that is named in errors.

    Raises:
        KitsattnError: If a voxel is NaN or infinite, or becomes so in float32.
    """
    whole = stored.dtype.kind in "iub" and float(slope).is_integer() and float(intercept).is_integer()
    if whole:
        ends = [int(value) * int(slope) + int(intercept) for value in (stored.min(), stored.max())]
        if min(ends) >= _INT16.min and max(ends) <= _INT16.max:
            if slope == 1 and intercept == 0:
                return stored.astype(np.int16, copy=False)
            return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(np.int16)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is refused
        values = stored.astype(np.float32, copy=False)
        if slope != 1 or intercept != 0:
            values = values * np.float32(slope) + np.float32(intercept)
    _refuse_non_finite(values, path, "replace them (air is -1000 HU)")
    return values


def label_values(stored: NDArray[Any], slope: float, intercept: float, path: Path) -> NDArray[np.uint8]:
    """Return stored values as labels: the whole numbers they are nearest to.

    A value may be `WHOLE_WITHIN` of its number. In whole numbers with a slope below 1, as nibabel writes an array of
    floats into a file of integers, it may be half a step of the slope further away, `MOST_WITHIN` at most.

    Args:
        stored: Numbers as they are in the file, any integer or floating dtype, any shape.
        slope: What stored values are multiplied with.
        intercept: What is added then.
        path: The file that is named in errors.

    Raises:
        KitsattnError: If a value is NaN, or not that near to a whole number from 0 to 255.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored if slope == 1 and intercept == 0 else stored * float(slope) + float(intercept)
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    _refuse_non_finite(values, path, "set them to the label they belong to (0 is background)")
    whole = np.rint(values) if values.dtype.kind == "f" else values
    if whole.min() < 0 or whole.max() > _MOST_LABEL:
        low, high = values.min(), values.max()
        msg = f"{path} holds values from {low:g} to {high:g}: a label map holds whole numbers from 0 to {_MOST_LABEL}"
        raise KitsattnError(msg)
    labels: NDArray[np.uint8] = whole.astype(np.uint8, copy=False)
    if values.dtype.kind == "f":
        step = abs(float(slope)) if stored.dtype.kind in "iu" and abs(slope) < 1 else 0.0
        within = min(WHOLE_WITHIN + step / 2, MOST_WITHIN)
        distances = np.abs(np.subtract(values, whole, out=whole), out=whole)
        if distances.max() > within:
            example = float(values.flat[int(distances.argmax())])
            msg = (
                f"{path} holds the value {number(example, round(example))}: a label map holds whole numbers from 0 to "
                f"{_MOST_LABEL}; export it again as labels, not as probabilities or resampled with interpolation"
            )
            raise KitsattnError(msg)
    return labels


def foreground_box(labels: NDArray[np.integer[Any]]) -> tuple[slice, slice, slice]:
    """Return the smallest box that holds all voxels that are not 0; one without voxels where all are.

    It looks at voxels in the order in which they are in memory: 4 ms for 270 x 512 x 512, in whatever order.

    Args:
        labels: Values from 0 on, (z, y, x), contiguous, or a view with axes in another order or direction.
    """
    order = np.argsort([-abs(stride) for stride in labels.strides])
    forward = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in labels.strides)
    stored = labels[forward].transpose(order)
    plane = np.bitwise_or.reduce(stored, axis=0)
    # Of each slice the maximum, which is found many voxels at a time; whether there is any would be asked one by one.
    occupied = np.array([one.max(initial=0) for one in stored]) > 0, plane.any(axis=1), plane.any(axis=0)
    box = [slice(0, 0)] * 3
    for axis, side in zip(order, occupied, strict=True):
        found = np.flatnonzero(side[forward[axis]])
        if len(found):
            box[axis] = slice(int(found[0]), int(found[-1]) + 1)
    return box[0], box[1], box[2]


def refuse_non_numbers(dtype: np.dtype[Any], path: Path) -> None:
    """Refuse colours and complex numbers.

    Raises:
        KitsattnError: If a voxel of this dtype is not one real number.
    """
    if dtype.kind not in "iufb":
        kind = "complex numbers" if dtype.kind == "c" else "several values a voxel, such as colours"
        msg = f"{path} holds {kind}: a CT scan or label map holds one real number a voxel"
        raise KitsattnError(msg)


def _refuse_non_finite(stored: NDArray[Any], path: Path, cure: str) -> None:
    # min and max carry NaN and infinities along, without a mask as large as the scan.
    if stored.dtype.kind == "f" and not (np.isfinite(stored.min()) and np.isfinite(stored.max())):
        nan = int(np.count_nonzero(np.isnan(stored)))
        infinite = int(np.count_nonzero(np.isinf(stored)))
        counts = [(nan, "NaN"), (infinite, "infinite")]
        what = " and ".join(
            f"{plural(count, 'voxel')} that {'is' if count == 1 else 'are'} {name}" for count, name in counts if count
        )
        msg = f"{path} has {what}: {cure} and try again"
        raise KitsattnError(msg)
