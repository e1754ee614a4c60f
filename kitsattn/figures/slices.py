"""Which slices of a labelled scan tell most about its kidneys and tumours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.labels import BACKGROUND, TUMOUR
from kitsattn.volume.geometry import Geometry

Labels = NDArray[np.integer[Any]]

MOST_AXIAL = 5
_MARGIN_MM = 45.0
_SMALLEST_GAP_MM = 8.0


@dataclass(frozen=True)
class SheetSlices:
    """What a sheet shows of a volume.

    Attributes:
        axial: Indices along z of the axial views, from the top of the patient to the bottom.
        coronal: Index along y of the coronal view.
        box: The part along z, y, x that is shown.
        kidney_found: Whether there is a labelled voxel at all.
    """

    axial: tuple[int, ...]
    coronal: int
    box: tuple[slice, slice, slice]
    kidney_found: bool


def choose_slices(label_maps: Sequence[Labels], geometry: Geometry, *, most: int = MOST_AXIAL) -> SheetSlices:
    """Choose the slices that tell most about kidneys and tumours.

    Axial: through the largest area of tumour, through the largest area of kidney on each side, and near both ends of
    the kidneys, where 5 % of their volume is beyond; where some of these are close together, further ones that
    part the volume evenly. Coronal: through the largest area. All views are cut to the surroundings of what is
    labelled. Without a labelled voxel the axial slices are spread evenly, and the whole scan is shown.

    Args:
        label_maps: Label maps, (z, y, x), on the same grid; their areas are added.
        geometry: The grid.
        most: How many axial slices at most; those that are named first above are chosen first.

    Returns:
        The slices.
    """
    depth, height, width = geometry.shape
    z_step, y_step, x_step = geometry.spacing_mm
    area_zx = np.zeros((depth, width), dtype=np.int64)
    area_y = np.zeros(height, dtype=np.int64)
    tumour_z = np.zeros(depth, dtype=np.int64)
    for labels in label_maps:
        for z in range(depth):
            # Once only: a stored label map unpacks a slice each time it is asked.
            values = labels[z]
            labelled = values != BACKGROUND
            area_zx[z] += np.count_nonzero(labelled, axis=0)
            area_y += np.count_nonzero(labelled, axis=1)
            tumour_z[z] += np.count_nonzero(values == TUMOUR)
    area_z, area_x = area_zx.sum(axis=1), area_zx.sum(axis=0)
    gap = max(1, round(_SMALLEST_GAP_MM / z_step))
    if not area_z.any():
        spread = _quantiles(np.ones(depth, dtype=np.int64), (0.1, 0.3, 0.5, 0.7, 0.9))
        whole = (slice(0, depth), slice(0, height), slice(0, width))
        return SheetSlices(_apart(spread, gap, most), height // 2, whole, kidney_found=False)
    # The middle of all that is labelled is between two kidneys, or within a single one.
    first, last = np.flatnonzero(area_x)[[0, -1]]
    middle = (first + last + 1) // 2
    areas = (tumour_z, area_zx[:, :middle].sum(axis=1), area_zx[:, middle:].sum(axis=1))
    wanted = [int(area.argmax()) for area in areas if area.any()]
    wanted += _quantiles(area_z, (0.05, 0.95, 0.5, 0.25, 0.75, 0.15, 0.85))
    box = (_surroundings(area_z, z_step), _surroundings(area_y, y_step), _surroundings(area_x, x_step))
    return SheetSlices(_apart(wanted, gap, most), int(area_y.argmax()), box, kidney_found=True)


def _quantiles(area: NDArray[np.int64], shares: Sequence[float]) -> list[int]:
    cumulated = np.cumsum(area)
    return [int(np.searchsorted(cumulated, share * cumulated[-1])) for share in shares]


def _apart(wanted: Sequence[int], gap: int, most: int) -> tuple[int, ...]:
    chosen: list[int] = []
    for z in wanted:
        if len(chosen) < most and all(abs(z - other) >= gap for other in chosen):
            chosen.append(z)
    return tuple(sorted(chosen, reverse=True))


def _surroundings(area: NDArray[np.int64], step_mm: float) -> slice:
    first, last = np.flatnonzero(area)[[0, -1]]
    margin = round(_MARGIN_MM / step_mm)
    return slice(max(0, int(first) - margin), min(len(area), int(last) + 1 + margin))
