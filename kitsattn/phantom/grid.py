"""The grid of a phantom in body coordinates, and smooth noise on it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kitsattn.volume.geometry import Shape, Triple

Floats = NDArray[np.float32]

_SCANNER_BLUR_MM = 1.0
_LATTICE = 32


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels are in the patient.

    Attributes:
        z_mm: Body coordinates of the slices, increasing.
        y_mm: Of the rows.
        x_mm: Of the columns.
        spacing_mm: Distance between voxels along z, y, x.
    """

    z_mm: Floats
    y_mm: Floats
    x_mm: Floats
    spacing_mm: Triple

    @classmethod
    def starting_at(cls, first_mm: Triple, shape: Shape, spacing_mm: Triple) -> "Grid":
        """Return the grid whose voxel (0, 0, 0) is at `first_mm` in body coordinates."""
        z_mm, y_mm, x_mm = (
            (first + np.arange(count) * spacing).astype(np.float32)
            for first, count, spacing in zip(first_mm, shape, spacing_mm, strict=True)
        )
        return cls(z_mm, y_mm, x_mm, spacing_mm)

    @property
    def shape(self) -> Shape:
        """Number of voxels along z, y, x."""
        return (len(self.z_mm), len(self.y_mm), len(self.x_mm))

    @property
    def blur_mm(self) -> Triple:
        """How wide edges are along z, y, x: a voxel and, in the plane, the scanner's own blur."""
        z, y, x = self.spacing_mm
        return (z, math.hypot(y, _SCANNER_BLUR_MM), math.hypot(x, _SCANNER_BLUR_MM))


class Texture:
    """Smooth noise in space, from about -1 to 1: a random lattice, interpolated."""

    def __init__(self, rng: np.random.Generator, pitch_mm: float, grid: Grid) -> None:
        self._lattice = rng.uniform(-1.7, 1.7, (_LATTICE,) * 3).astype(np.float32)
        self._pitch_mm = pitch_mm
        self._rows = _steps(grid.y_mm, pitch_mm)
        self._columns = _steps(grid.x_mm, pitch_mm)

    def at(self, z_mm: float) -> Floats:
        """Return the noise of the slice at height `z_mm`, (rows, columns)."""
        (low,), (high,), (weight,) = _steps(np.array([z_mm], np.float32), self._pitch_mm)
        plane = self._lattice[low] + weight * (self._lattice[high] - self._lattice[low])
        low, high, weight = self._rows
        first = plane[low]
        lines = first + weight[:, None] * (plane[high] - first)
        low, high, weight = self._columns
        first = lines.take(low, axis=1)
        second: Floats = lines.take(high, axis=1)
        second -= first
        second *= weight
        second += first
        return second


def _steps(at_mm: Floats, pitch_mm: float) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return the lattice points before and after each position, and the weight of the one after."""
    place = at_mm.astype(np.float64) / pitch_mm
    low = np.floor(place)
    part = place - low
    weight = (part * part * (3.0 - 2.0 * part)).astype(np.float32)
    before = low.astype(np.intp)
    return before % _LATTICE, (before + 1) % _LATTICE, weight
