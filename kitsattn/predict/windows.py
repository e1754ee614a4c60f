"""In-plane windows of the training patch's size that cover a slice, and their weights."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """The upper left corner of a window; negative where the slice is smaller and the window reaches beyond it."""

    top: int
    left: int


def cover(shape: tuple[int, int], size: tuple[int, int], overlap: float) -> list[Window]:
    """Return windows that cover a slice.

    The window is the training patch, whatever the slice: image pooling, attention and zero padding tell a network how
    large its picture is and where it is in it. One window around a larger slice, or a smaller one around a smaller
    slice, is cheaper; both lose Dice (docs/decisions.md).

    Args:
        shape: Height and width of the slice.
        size: Height and width of a window. A slice that is no larger gets one, in whose middle it is, as in training.
        overlap: Share of a window, in [0, 1), that at least is in its neighbour where there are several.

    Returns:
        The windows, row by row.
    """
    tops, lefts = (_starts(*lengths, overlap) for lengths in zip(shape, size, strict=True))
    return [Window(top, left) for top in tops for left in lefts]


def importance(size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the weight of each pixel of a window, (height, width): a Gaussian of an eighth of its size.

    nnU-Net's choice: a prediction counts most where it saw its surroundings on all sides. No weight is zero.
    """
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size]
    weights = np.outer(axes[0], axes[1])
    floored: NDArray[np.float32] = np.maximum(weights, weights.max() * 1e-4).astype(np.float32)
    return floored


def _starts(length: int, size: int, overlap: float) -> list[int]:
    if length <= size:
        return [(length - size) // 2]
    count = math.ceil((length - size) / (size * (1 - overlap))) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]
