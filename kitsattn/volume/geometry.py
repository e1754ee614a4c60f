"""Where voxels lie in the patient: one immutable description, axes (z, y, x)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

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

    def difference(self, other: "Geometry", tolerance_mm: float = 1e-2) -> str | None:
        """Describe how the two grids differ in world space.

        Args:
            other: The grid to compare with.
            tolerance_mm: How far apart two corners may lie and still count as the same place.

        Returns:
            A phrase, or None where the grids are the same.
        """
        if self.shape != other.shape:
            return f"shape (z, y, x) {self.shape} against {other.shape}"
        corners = np.array([[z, y, x, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)], dtype=np.float64)
        corners[:, :3] *= np.array(self.shape) - 1
        distance = np.linalg.norm(corners @ (self.to_ras() - other.to_ras()).T, axis=1).max()
        if distance > tolerance_mm:
            return f"the grids lie up to {distance:.3g} mm apart"
        return None


def _triple(values: NDArray[np.float64]) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))


def voxel_ml(spacing_mm: Triple) -> float:
    """Return the volume in millilitres of a voxel of that size."""
    return math.prod(spacing_mm) / 1_000
