"""How a file's array axes map to (z, y, x) and back, for every file format."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.volume.geometry import Geometry, Shape, Triple
from kitsattn.volume.volume import FileGrid
from kitsattn.words import number

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns an affine of DICOM's and SimpleITK's world, (Left, Posterior, Superior), into NIfTI's."""

SPATIAL_AXES = 3

SHEAR_TOLERANCE = 0.01
"""Largest cosine between two axes of a grid that still counts as orthogonal: 0.57 degrees.

Rounded headers stay far below it, a gantry tilt that was not corrected is above it.
"""

_AS_NEAR = 0.01
"""Sums of three cosines that differ by less are rounding: a scan that is turned by 45 degrees is between two axes."""

_LONGEST_MM = 3000.0
"""Longer axes are a damaged header, or a slip of units: no scanner's are, and resampled they would fill the memory."""

_FARTHEST_MM = 1e6
"""Farther from the origin, the float32 numbers of a NIfTI header no longer tell voxels apart."""

_AXIS_CODES = {"S": (0, False), "I": (0, True), "P": (1, False), "A": (1, True), "L": (2, False), "R": (2, True)}
"""Direction that a file axis runs to -> the axis of (z, y, x) it is, and whether it runs against it."""


def canonical_grid(
    shape: tuple[int, ...], affine: NDArray[np.float64], path: Path, header: object
) -> tuple[FileGrid, Geometry]:
    """Find the axes of (z, y, x) that are closest to a file's axes, which may be oblique.

    Args:
        shape: Number of voxels along the file's three axes.
        affine: 4 x 4, maps file indices to RAS mm.
        path: The file; named in errors.
        header: Kept in the FileGrid.

    Returns:
        How the file's array turns into (z, y, x), and where that array is.

    Raises:
        KitsattnError: If the spacing is zero or not finite, an axis is longer than 3 m, the origin farther than 1 km,
            or the axes are not orthogonal.
    """
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or not np.all(np.isfinite(spacing)) or np.any(spacing == 0):
        raise bad_spacing(path, spacing)
    longest = float((spacing * shape).max())
    if longest > _LONGEST_MM:
        msg = f"{path} has an axis of {longest / 1000:g} m, longer than any scanner: fix the spacing in its header"
        raise KitsattnError(msg)
    if np.abs(affine[:3, 3]).max() > _FARTHEST_MM:
        place = ", ".join(f"{value:g}" for value in affine[:3, 3])
        msg = f"{path} has its origin at ({place}) mm, farther than 1 km: fix its header"
        raise KitsattnError(msg)
    cosines = affine[:3, :3] / spacing
    shear = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        cosine = number(shear, SHEAR_TOLERANCE)
        msg = (
            f"{path} has a sheared affine (cosine {cosine} between two axes, at most {SHEAR_TOLERANCE} is allowed): "
            "resample it onto an orthogonal grid first"
        )
        raise KitsattnError(msg)
    # Rows Superior, Posterior, Left; columns the file's axes.
    toward = np.array([cosines[2], -cosines[1], -cosines[0]])
    # Of axes that are about as near, the same in each file of one grid, whichever way its numbers were rounded.
    nearness = {axes: float(np.abs(toward[range(3), axes]).sum()) for axes in permutations(range(3))}
    z, y, x = next(axes for axes, near in nearness.items() if near > max(nearness.values()) - _AS_NEAR)
    order = (z, y, x)
    flipped = (bool(toward[0, z] < 0), bool(toward[1, y] < 0), bool(toward[2, x] < 0))
    canonical = np.eye(4)
    canonical[:3, 3] = affine[:3, 3]
    for axis in range(3):
        column = affine[:3, order[axis]]
        canonical[:3, axis] = -column if flipped[axis] else column
        if flipped[axis]:
            canonical[:3, 3] += column * (shape[order[axis]] - 1)
    canonical_shape: Shape = (shape[z], shape[y], shape[x])
    return FileGrid(path, order, flipped, header), Geometry.from_ras(canonical_shape, canonical)


def file_affine(geometry: Geometry, grid: FileGrid) -> NDArray[np.float64]:
    """Return the 4 x 4 affine from file indices to RAS mm of a volume that is laid out as `grid` says."""
    canonical = geometry.to_ras()
    affine = np.eye(4)
    affine[:3, 3] = canonical[:3, 3]
    for axis in range(3):
        column = canonical[:3, axis]
        affine[:3, grid.order[axis]] = -column if grid.flipped[axis] else column
        if grid.flipped[axis]:
            affine[:3, 3] += column * (geometry.shape[axis] - 1)
    return affine


def layout(axes: str, path: Path) -> FileGrid:
    """Return the layout of a new file whose axes run to `axes`, such as "RAS" or KiTS19's "IPL".

    Raises:
        ValueError: If `axes` does not name each of S/I, P/A and L/R once.
    """
    codes = [_AXIS_CODES.get(code) for code in axes]
    if sorted(code[0] for code in codes if code) != [0, 1, 2] or None in codes:
        msg = f"axes must name each of S or I, P or A, L or R once, got {axes!r}"
        raise ValueError(msg)
    order, flipped = [0, 0, 0], [False, False, False]
    for file_axis, code in enumerate(axes):
        axis, runs_against = _AXIS_CODES[code]
        order[axis], flipped[axis] = file_axis, runs_against
    return FileGrid(path, (order[0], order[1], order[2]), (flipped[0], flipped[1], flipped[2]), header=None)


def bad_spacing(path: Path, spacing: NDArray[Any] | Triple) -> KitsattnError:
    """Return the error for a file whose spacing is zero or not finite."""
    values = " x ".join(f"{float(value):g}" for value in spacing)
    return KitsattnError(
        f"{path} has a spacing of {values} mm, but every axis needs a finite one above 0: fix its header"
    )
