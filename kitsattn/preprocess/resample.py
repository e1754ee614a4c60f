"""In-plane resampling as two small matrices, one an axis: cubic splines for scans, linear for probabilities and labels.

Interpolation is linear in the samples, so the library's own interpolation of an identity matrix is the operator: it
holds the spline prefilter and the edges as `scipy.ndimage.zoom` treats them. Cubic is what nnU-Net uses for scans
(`skimage.transform.resize` with order 3, mode "edge", without anti-aliasing, clipped to the input's range).
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Order = Literal[1, 3]
"""Of the spline: linear or cubic."""


def resampled_shape(
    shape: tuple[int, int], spacing_mm: tuple[float, float], target_mm: tuple[float, float]
) -> tuple[int, int]:
    """Return how many samples an image has at another spacing, at least one along each axis."""
    rows, columns = (
        max(1, round(old / new * size)) for size, old, new in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return rows, columns


@lru_cache(maxsize=64)
def resampling_matrix(samples: int, target: int, order: Order) -> NDArray[np.float32]:
    """Return the matrix that interpolates `samples` values at `target` places, edges aligned.

    Args:
        samples: Length of the axis.
        target: Length it is to have.
        order: Of the spline.

    Returns:
        (target, samples), read-only.
    """
    identity = np.eye(samples)
    splines = ndimage.zoom(identity, [target / samples, 1.0], order=order, mode="nearest", grid_mode=True)
    matrix: NDArray[np.float32] = splines.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def resample_scan(slices: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resample slices with cubic splines, each clipped to its own range.

    Args:
        slices: (n, height, width).
        shape: Height and width to have.

    Returns:
        (n, *shape).
    """
    if slices.shape[1:] == shape:
        return slices
    low, high = slices.min(axis=(1, 2), keepdims=True), slices.max(axis=(1, 2), keepdims=True)
    return np.clip(_apply(slices, shape, order=3), low, high)


def resample_linear(images: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resample images linearly.

    Args:
        images: (..., height, width).
        shape: Height and width to have.

    Returns:
        (..., *shape).
    """
    if images.shape[-2:] == shape:
        return images
    return _apply(images, shape, order=1)


def resample_labels(labels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample label maps: each class is resampled linearly as a membership, and the largest wins.

    No class appears that was not there. Where two are equal the lower label wins.

    Args:
        labels: (n, height, width).
        shape: Height and width to have.

    Returns:
        (n, *shape).
    """
    if labels.shape[1:] == shape:
        return labels
    classes = np.unique(labels)
    winner = np.full((len(labels), *shape), classes[0], np.uint8)
    if len(classes) == 1:
        return winner
    largest = resample_linear((labels == classes[0]).astype(np.float32), shape)
    for value in classes[1:]:
        membership = resample_linear((labels == value).astype(np.float32), shape)
        wins = membership > largest
        winner[wins] = value
        np.maximum(largest, membership, out=largest)
    return winner


def _apply(images: NDArray[np.float32], shape: tuple[int, int], order: Order) -> NDArray[np.float32]:
    rows = resampling_matrix(images.shape[-2], shape[0], order)
    columns = resampling_matrix(images.shape[-1], shape[1], order)
    resampled = rows @ images @ columns.T
    return resampled.astype(np.float32, copy=False)
