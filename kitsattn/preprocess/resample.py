"""In-plane resampling as two small matrices, one an axis: cubic splines for scans, linear for probabilities and labels.

Interpolation is linear in the samples and separable. With samples c along an axis of length n, the value at place t of
m is sum_j W[t, j] c[j], so a slice becomes W_rows @ slice @ W_columns.T. Column j of W is what interpolation makes of
the j-th unit vector; the library's own interpolation of an identity matrix is therefore the whole operator, with the
spline's prefilter and the edges as `scipy.ndimage.zoom` treats them (`grid_mode`: place t is at (t + 1/2) n/m - 1/2,
and beyond the edge the last sample goes on). Cubic is what nnU-Net uses for scans: `skimage.transform.resize` with
order 3, mode "edge", without anti-aliasing, clipped to the input's range.

W is banded. A linear value has two neighbours; a cubic spline's prefilter falls by |sqrt(3) - 2| = 0.27 a sample
(M. Unser, Splines: a perfect fit for signal and image processing, IEEE Signal Processing Magazine 1999), so weights
further than 14 samples from the place are below 1e-7. W is cut into blocks of rows, each with only the columns that
count: a 512 x 512 slice to 561 x 561 takes 0.08 instead of 0.62 billion operations.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.labels import BACKGROUND

Order = Literal[1, 3]
"""Of the spline: linear or cubic."""

_BLOCK = 32
"""Places in one block of a matrix: more waste operations on zeros, fewer pay for more calls."""
_NEGLIGIBLE = 1e-7
"""Weight that is left out; of 600 HU it would be 6e-5, and few are left out at either end."""
_TIE = 1e-5
"""Memberships that differ by less are equal: they are sums of rounded weights."""


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
    resampled = _apply(slices, shape, order=3)
    return np.clip(resampled, low, high, out=resampled)


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
    flat = images.reshape(-1, *images.shape[-2:])
    return _apply(flat, shape, order=1).reshape(*images.shape[:-2], *shape)


def resample_labels(labels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample label maps: each class is resampled linearly as a membership, and the largest wins.

    No class appears that was not there. Where two are equal the higher label wins, as in nnU-Net, whose default
    gives a voxel to the last class that reaches one half. Nothing thin is lost: a part of a class (connected within
    its slice) that would vanish altogether is drawn at the places its voxels fall into, unless a higher label needs
    the same places.

    Args:
        labels: (n, height, width); 0 is background.
        shape: Height and width to have.

    Returns:
        (n, *shape).
    """
    if labels.shape[1:] == shape:
        return labels
    winner = np.full((len(labels), *shape), BACKGROUND, np.uint8)
    labelled = labels != BACKGROUND
    rows, columns = (_reach(labelled.any(axis=axes), size) for axes, size in zip(((0, 2), (0, 1)), shape, strict=True))
    if rows is None or columns is None:
        return winner
    # All that is not background is in one box of the slices, and only the places around it see anything else.
    inside = labels[:, rows.source, columns.source]
    won = winner[:, rows.target, columns.target]
    largest = np.zeros(won.shape, np.float32)
    others = np.ones(won.shape, np.float32)
    classes = [int(value) for value in np.unique(inside) if value != BACKGROUND]
    for value in classes:
        membership = rows.weights @ (inside == value).astype(np.float32) @ columns.weights.T
        won[membership >= largest - _TIE] = value
        np.maximum(largest, membership, out=largest)
        others -= membership
    won[others > largest + _TIE] = BACKGROUND
    places = np.ix_(np.arange(len(labels)), rows.nearest, columns.nearest)
    for value in classes:
        _keep_parts(inside == value, won, places, value)
    return winner


@dataclass(frozen=True)
class _Block:
    """Some rows of a matrix without the columns that are zero in all of them."""

    target: slice
    source: slice
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class _Reach:
    """The part of a linear resampling along one axis that a range of samples takes part in.

    Attributes:
        source: The samples.
        target: The places that any of them counts in.
        weights: (places, samples).
        nearest: For each sample, which of these places it falls into.
    """

    source: slice
    target: slice
    weights: NDArray[np.float32]
    nearest: NDArray[np.intp]


def _reach(present: NDArray[np.bool_], target: int) -> _Reach | None:
    """Return what the samples from the first to the last that is present reach; None if there is none."""
    found = np.flatnonzero(present)
    if not found.size:
        return None
    first, last = int(found[0]), int(found[-1]) + 1
    weights = resampling_matrix(len(present), target, 1)[:, first:last]
    # Enlarged or kept, every sample counts somewhere; reduced, samples between two places may count nowhere.
    nearest = ((np.arange(first, last) + 0.5) * target / len(present)).astype(np.intp)
    touched = np.union1d(np.flatnonzero(weights.any(axis=1)), nearest)
    start, stop = int(touched[0]), int(touched[-1]) + 1
    return _Reach(slice(first, last), slice(start, stop), weights[start:stop], nearest - start)


def _keep_parts(
    mask: NDArray[np.bool_], won: NDArray[np.uint8], places: tuple[NDArray[np.intp], ...], value: int
) -> None:
    """Give back to a class, in `won`, those of its parts that have no place left where their voxels fall."""
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = True
    parts, count = ndimage.label(mask, in_plane)
    kept = np.zeros(count + 1, bool)
    kept[parts[won[places] == value]] = True
    kept[0] = True
    if not kept.all():
        lost = np.nonzero(~kept[parts])
        won[lost[0], places[1][0, lost[1], 0], places[2][0, 0, lost[2]]] = value


@lru_cache(maxsize=64)
def _blocks(samples: int, target: int, order: Order) -> tuple[_Block, ...]:
    matrix = resampling_matrix(samples, target, order)
    blocks = []
    for start in range(0, target, _BLOCK):
        rows = matrix[start : start + _BLOCK]
        counting = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
        source = slice(int(counting[0]), int(counting[-1]) + 1)
        blocks.append(_Block(slice(start, start + len(rows)), source, np.ascontiguousarray(rows[:, source])))
    return tuple(blocks)


def _apply(images: NDArray[np.float32], shape: tuple[int, int], order: Order) -> NDArray[np.float32]:
    """Resample (n, height, width) to (n, *shape), rows first."""
    count, height, width = images.shape
    tall = np.empty((count, shape[0], width), np.float32)
    for block in _blocks(height, shape[0], order):
        np.matmul(block.weights, images[:, block.source], out=tall[:, block.target])
    resampled = np.empty((count, *shape), np.float32)
    for block in _blocks(width, shape[1], order):
        np.matmul(tall[:, :, block.source], block.weights.T, out=resampled[:, :, block.target])
    return resampled
