"""The metrics of a region: what each is called, and its value for two label maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.evaluate.overlap import EMPTY_RULE, count_overlap, dice, region_mask
from kitsattn.evaluate.surface import average_distance, find_distances, find_surface, hausdorff_95, surface_dice
from kitsattn.labels import Region
from kitsattn.volume.geometry import Triple


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        key: Its name in JSON.
        title: Its name in tables.
        digits: How many decimal places tables show.
    """

    key: str
    title: str
    digits: int


DICE = Metric("dice", "Dice", 4)
SURFACE_DICE = Metric("surface_dice", "Surface Dice", 4)
HD95 = Metric("hd95_mm", "HD95, mm", 2)
ASSD = Metric("assd_mm", "ASSD, mm", 2)
METRICS = (DICE, SURFACE_DICE, HD95, ASSD)

DISTANCE_RULE = (
    "HD95 and ASSD of a region that is empty in both label maps are 0. Where it is empty in only one of them they are"
    " not defined, and left out of the mean."
)
"""What HD95 and ASSD of empty regions are: quoted by every output that has them."""


def rules_of(metrics: Sequence[Metric], regions: Sequence[Region]) -> tuple[str, ...]:
    """Return what a reader must know of metrics of regions."""
    rules = []
    if DICE in metrics or SURFACE_DICE in metrics:
        rules.append(EMPTY_RULE)
    if HD95 in metrics or ASSD in metrics:
        rules.append(DISTANCE_RULE)
    if SURFACE_DICE in metrics:
        tolerances = ", ".join(f"{region.key} {region.tolerance_mm:.4g} mm" for region in regions)
        rules.append(f"Tolerances of surface Dice: {tolerances}.")
    return tuple(rules)


def measure_region(
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    region: Region,
    spacing_mm: Triple,
    metrics: Sequence[Metric],
) -> dict[str, float]:
    """Return metrics of a region in two label maps, by key; HD95 and ASSD may be NaN.

    Args:
        prediction: Label values, (z, y, x).
        reference: The same, on the same grid.
        region: Which values count.
        spacing_mm: Distance of the voxels along z, y, x.
        metrics: Which ones.
    """
    values: dict[str, float] = {}
    if DICE in metrics:
        values[DICE.key] = dice(count_overlap(prediction, reference, region))
    if all(metric is DICE for metric in metrics):
        return values
    box = _common_box(prediction, reference, region)
    predicted, true = (find_surface(region_mask(labels[box], region), spacing_mm) for labels in (prediction, reference))
    far = HD95 in metrics or ASSD in metrics
    distances = find_distances(predicted, true, spacing_mm, limit_mm=np.inf if far else region.tolerance_mm)
    if SURFACE_DICE in metrics:
        values[SURFACE_DICE.key] = surface_dice(distances, region.tolerance_mm)
    if HD95 in metrics:
        values[HD95.key] = hausdorff_95(distances)
    if ASSD in metrics:
        values[ASSD.key] = average_distance(distances)
    return values


def _common_box(
    prediction: NDArray[np.integer[Any]], reference: NDArray[np.integer[Any]], region: Region
) -> tuple[slice, ...]:
    """Return the smallest box that holds a region in both label maps; one without voxels where it is in neither."""
    _, height, width = reference.shape
    slices, rows, columns = [], np.zeros(height, bool), np.zeros(width, bool)
    for z, (predicted, true) in enumerate(zip(prediction, reference, strict=True)):
        mask = region_mask(predicted, region) | region_mask(true, region)
        if mask.any():
            slices.append(z)
            rows |= mask.any(axis=1)
            columns |= mask.any(axis=0)
    sides = (slices, np.flatnonzero(rows), np.flatnonzero(columns))
    return tuple(slice(side[0], side[-1] + 1) if len(side) else slice(0, 0) for side in sides)
