"""Where voxels are in the patient: one immutable description, axes (z, y, x)."""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from kitsattn.words import number

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

SAME_GRID_VOXELS = 0.25
"""How far apart, in voxels, two grids may put a voxel and still be the same.

Files round: spacings to a few decimals, positions to float32. A shift of half a voxel, which a mix-up of corners and
centres makes, is another grid.
"""

_QUATERNION_RAD = 2e-3
"""How far two readers may turn one NIfTI file: the angle is not counted as a difference.

A qform stores three numbers of a unit quaternion in float32. The fourth is the root of what is left to 1, and near 0 it
is wrong by the root of their rounding, 3e-4. Where one program takes it for 0 and another does not, they differ by up
to 0.0012 rad (measured with nibabel and SimpleITK on 600 orientations), which is 0.7 voxels of 0.8 mm at 500 mm.
"""

_SAME_STEP = 0.01
"""By how much of a voxel one step along an axis may differ: among few voxels another spacing leads not far away."""

_SPL_FROM_RAS = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Turns a world vector in RAS (x to Right, y to Anterior, z to Superior) into (Superior, Posterior, Left)."""


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume.

    Array axes are (z, y, x). World axes are (Superior, Posterior, Left), in mm and in the same order, so that
    an unrotated scan has the identity as its direction.

    Attributes:
        shape: Number of voxels along z, y, x.
        spacing_mm: Distance between voxel centres along z, y, x.
        origin_mm: World position of the centre of voxel (0, 0, 0).
        direction: Row i, column j: component along world axis i of the unit vector of array axis j.
    """

    shape: Shape
    spacing_mm: Triple
    origin_mm: Triple
    direction: tuple[Triple, Triple, Triple]

    @classmethod
    def axial(cls, shape: Shape, spacing_mm: Triple, origin_mm: Triple = (0.0, 0.0, 0.0)) -> "Geometry":
        """Return the geometry of an unrotated axial scan."""
        identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        return cls(shape, spacing_mm, origin_mm, identity)

    @classmethod
    def from_ras(cls, shape: Shape, affine: NDArray[np.float64]) -> "Geometry":
        """Return the geometry of a (z, y, x) array whose 4 x 4 `affine` maps (z, y, x) indices to RAS mm.

        Raises:
            ValueError: If an axis of the affine has no length.
        """
        matrix = _SPL_FROM_RAS @ affine[:3, :3]
        spacing = np.linalg.norm(matrix, axis=0)
        if not np.all(spacing > 0):
            msg = f"the affine has an axis of no length: spacing {spacing.tolist()}"
            raise ValueError(msg)
        origin = _SPL_FROM_RAS @ affine[:3, 3]
        direction = matrix / spacing
        rows = tuple((float(row[0]), float(row[1]), float(row[2])) for row in direction)
        return cls(shape, _triple(spacing), _triple(origin), (rows[0], rows[1], rows[2]))

    def to_ras(self) -> NDArray[np.float64]:
        """Return the 4 x 4 affine that maps (z, y, x) indices to RAS mm."""
        affine = np.eye(4)
        affine[:3, :3] = _SPL_FROM_RAS.T @ (np.array(self.direction) * np.array(self.spacing_mm))
        affine[:3, 3] = _SPL_FROM_RAS.T @ np.array(self.origin_mm)
        return affine

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return voxel_ml(self.spacing_mm)

    def difference(self, other: "Geometry", tolerance_voxels: float = SAME_GRID_VOXELS) -> str | None:
        """Describe how the two grids differ in world space.

        Args:
            other: The grid to compare with.
            tolerance_voxels: How far apart they may put a voxel, as `voxels_apart` measures it.

        Returns:
            A phrase, or None where the grids are the same.
        """
        if self.shape != other.shape:
            return f"shape (z, y, x) {self.shape} against {other.shape}"
        own, others = self.to_ras(), other.to_ras()
        distance = voxels_apart(self.shape, own, others)
        step = float(np.abs(np.linalg.solve(own[:3, :3], others[:3, :3]) - np.eye(3)).max())
        if distance > tolerance_voxels or step > _SAME_STEP:
            return f"the grids are up to {number(distance, tolerance_voxels)} voxels apart"
        return None


def voxels_apart(shape: Shape, affine: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return how far apart two grids put the same voxel, at most and along one axis, in voxels of the first.

    A turn within the rounding of NIfTI's quaternions does not count: it is undone around the corner where the grids
    agree best, as files state where their first voxel is.

    Args:
        shape: Number of voxels along the axes of both.
        affine: 4 x 4, maps indices to mm; its axes have a length.
        other: The same for the other grid.
    """
    last = np.array(shape) - 1
    corners = np.array(list(product((0, 1), repeat=3))) * last
    at_corners = np.column_stack([corners, np.ones(len(corners))])
    shifts = np.abs(np.linalg.solve(affine, other @ at_corners.T).T[:, :3] - corners)
    spacing, other_spacing = (np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (affine, other))
    turn = (affine[:3, :3] / spacing).T @ (other[:3, :3] / other_spacing) - np.eye(3)
    if np.linalg.norm(turn) <= math.sqrt(2) * _QUATERNION_RAD:
        return float((shifts + np.abs(other_spacing / spacing - 1) * last).max(axis=1).min())
    return float(shifts.max())


def _triple(values: NDArray[np.float64]) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))


def voxel_ml(spacing_mm: Triple) -> float:
    """Return the volume in millilitres of a voxel of that size."""
    return math.prod(spacing_mm) / 1_000
