"""A volume: an array with its geometry, and the memory of how it lay in its file."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.volume.geometry import Geometry

_TILE = (32, 8, 32)
"""Voxels that are copied at once where the fastest axis changes."""


@dataclass(frozen=True)
class FileGrid:
    """How a volume's array lay in the file it came from: what is needed to write a label map onto the same grid.

    Attributes:
        path: The file.
        order: For each axis (z, y, x) of the volume, the axis of the file's array it came from.
        flipped: For each axis (z, y, x), whether it ran the other way in the file.
        header: The file's own header: a `nibabel` NIfTI header or a `SimpleITK` image without voxels.
    """

    path: Path
    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    header: Any

    def to_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array in file order into (z, y, x); a view."""
        turned = np.transpose(array, self.order)
        return np.flip(turned, tuple(axis for axis in range(3) if self.flipped[axis]))

    def copy_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array in file order into (z, y, x), contiguous; a copy unless it is that way already."""
        turned = self.to_canonical(array)
        if abs(turned.strides[2]) == turned.itemsize:
            return np.ascontiguousarray(turned)
        copy = np.empty(turned.shape, turned.dtype)
        copy_tiles(copy, turned)
        return copy

    def to_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn a (z, y, x) array into file order; a view."""
        turned = np.flip(array, tuple(axis for axis in range(3) if self.flipped[axis]))
        return np.transpose(turned, np.argsort(self.order))


@dataclass(frozen=True)
class Volume:
    """A scan or a label map.

    Attributes:
        array: (z, y, x); x grows to the patient's Left, y to Posterior, z to Superior. A scan is int16 or float32
            in HU, a label map uint8.
        geometry: Where the voxels are.
        source: How the array lay in its file; None for a volume made in memory.
        notes: What a reader should know of how it was read, one sentence each; empty if nothing was odd.
    """

    array: NDArray[Any]
    geometry: Geometry
    source: FileGrid | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that array and geometry agree."""
        if self.array.shape != self.geometry.shape:
            msg = f"array of shape {self.array.shape} with a geometry of shape {self.geometry.shape}"
            raise ValueError(msg)

    def with_array(self, array: NDArray[Any]) -> "Volume":
        """Return the same grid and source with another array."""
        return replace(self, array=array)


def copy_tiles(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy an array of three axes into one of the same shape whose fastest axis is another.

    KiTS19 files have the slice axis fastest. Tile by tile, what is read together is still in the cache when its
    neighbours are wanted.
    """
    for corner in product(*(range(0, size, step) for size, step in zip(source.shape, _TILE, strict=True))):
        tile = tuple(slice(start, start + step) for start, step in zip(corner, _TILE, strict=True))
        target[tile] = source[tile]
