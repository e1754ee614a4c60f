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


def cover(shape: tuple[int, int], size: tuple[int, int]) -> list[Window]:
    """Return windows of `size` that cover a slice of `shape`, overlapping by half or more where there are several.

    A slice that is no larger than the window gets one window, in whose middle it lies, as in training: zero padding
    tells a network where it is, and one pixel more to the left is another phase of its strides.
    """
    return [Window(top, left) for top in _starts(shape[0], size[0]) for left in _starts(shape[1], size[1])]


def importance(size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the weight of each pixel of a window, (height, width): a Gaussian of an eighth of its size.

    nnU-Net's choice: a prediction counts most where it saw its surroundings on all sides. No weight is zero.
    """
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size]
    weights = np.outer(axes[0], axes[1])
    floored: NDArray[np.float32] = np.maximum(weights, weights.max() * 1e-4).astype(np.float32)
    return floored


def _starts(length: int, size: int) -> list[int]:
    if length <= size:
        return [(length - size) // 2]
    count = math.ceil((length - size) / (size / 2)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]
