"""How HU are clipped and normalised."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
