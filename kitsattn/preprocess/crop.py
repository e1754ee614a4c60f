"""The body's box in-plane: rows and columns of air and table are left out, all slices are kept."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.volume.volume import Volume

Box = tuple[int, int, int, int]
"""y0, y1, x0, x1 in voxels, ends exclusive."""

_BODY_HU = -300
_COARSE_MM = (6.0, 3.0, 3.0)
_OPENING_MM = 9.0
_MARGIN_MM = 10.0
_LEAST_PART = 0.1


def body_box(volume: Volume) -> Box:
    """Find the box that holds the body in every slice.

    On a grid of about 6 x 3 x 3 mm, what is denser than -300 HU is opened in-plane with a disc of 9 mm radius, which
    takes the shells of table and mattress away but none of a body's round outline. Of the parts that are left the
    largest is the body; parts of at least a tenth of it, such as arms, count too. 10 mm are added all around.

    Args:
        volume: In HU.

    Returns:
        The box, or the whole slice where no body is found.
    """
    spacing = volume.geometry.spacing_mm
    depth_step, row_step, column_step = (
        max(1, int(coarse / fine)) for coarse, fine in zip(_COARSE_MM, spacing, strict=True)
    )
    dense = volume.array[::depth_step, ::row_step, ::column_step] > _BODY_HU
    disc = _disc(_OPENING_MM / (row_step * spacing[1]), _OPENING_MM / (column_step * spacing[2]))
    # Padded, so that a body that reaches the edge of the picture is not eroded from there.
    margin = (disc.shape[1] // 2, disc.shape[2] // 2)
    padded = np.pad(dense, ((0, 0), (margin[0],) * 2, (margin[1],) * 2), mode="edge")
    opened = ndimage.binary_opening(padded, disc)
    parts, count = ndimage.label(opened)
    height, width = volume.geometry.shape[1:]
    if not count:
        return 0, height, 0, width
    sizes = np.bincount(parts.ravel())[1:]
    kept = np.flatnonzero(sizes >= _LEAST_PART * sizes.max()) + 1
    body = np.isin(parts, kept)[:, margin[0] : margin[0] + dense.shape[1], margin[1] : margin[1] + dense.shape[2]]
    _, rows, columns = body.nonzero()
    y0, y1 = _extent(rows, row_step, spacing[1], height)
    x0, x1 = _extent(columns, column_step, spacing[2], width)
    return y0, y1, x0, x1


def _extent(samples: NDArray[np.intp], step: int, spacing_mm: float, size: int) -> tuple[int, int]:
    """Return the voxels, end exclusive, that coarse samples cover along one axis, with the margin."""
    margin = math.ceil(_MARGIN_MM / spacing_mm)
    return max(0, int(samples.min()) * step - margin), min(size, (int(samples.max()) + 1) * step + margin)


def _disc(rows: float, columns: float) -> NDArray[np.bool_]:
    """Return an elliptic structure of one slice with the given radii in samples."""
    y, x = np.ogrid[-int(rows) : int(rows) + 1, -int(columns) : int(columns) + 1]
    disc: NDArray[np.bool_] = (y / max(rows, 1)) ** 2 + (x / max(columns, 1)) ** 2 <= 1
    return disc[None]
