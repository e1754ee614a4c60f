"""What is scored and how: the metrics of a region, and their values for two label maps."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kitsattn.evaluate.definition import Definition
from kitsattn.evaluate.detection import DETECTION_RULE
from kitsattn.evaluate.overlap import EMPTY_RULE, count_overlap, dice, region_mask
from kitsattn.evaluate.surface import (
    average_distance,
    find_distances,
    find_surface,
    hausdorff_95,
    surface_dice,
)
from kitsattn.labels import KITS19, Region, ScoringProtocol
from kitsattn.volume.geometry import Triple, voxel_ml
from kitsattn.volume.voxels import foreground_box


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        key: Its name in JSON.
        title: Its name in tables.
        digits: How many decimal places tables show.
        best: What is best: high values, low ones, or those near zero.
        parts: What it is made from and is given with it, by name in JSON.
    """

    key: str
    title: str
    digits: int
    best: Literal["high", "low", "zero"]
    parts: tuple[str, ...] = ()

    def size(self, value: float) -> float:
        """Return what is compared of a value: of one whose best is zero how far it is from it."""
        return abs(value) if self.best == "zero" else value

    def error(self, value: float) -> float:
        """Return what is the larger the worse a value is."""
        return -value if self.best == "high" else self.size(value)


DICE = Metric("dice", "Dice", 4, "high")
SURFACE_DICE = Metric("surface_dice", "Surface Dice", 4, "high")
HD95 = Metric("hd95_mm", "HD95, mm", 2, "low")
ASSD = Metric("assd_mm", "ASSD, mm", 2, "low")
VOLUME = Metric("volume_difference_ml", "Volume difference, ml", 2, "zero", ("predicted_ml", "reference_ml"))
METRICS = (DICE, SURFACE_DICE, HD95, ASSD, VOLUME)
SURFACE_METRICS = frozenset({SURFACE_DICE, HD95, ASSD})

DISTANCE_RULE = (
    "HD95 and ASSD of a region that is empty in both label maps are 0. Where it is empty in only one of them they are"
    " not defined, and left out of the mean."
)
"""What HD95 and ASSD of empty regions are: quoted by every output that has them."""


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how.

    Attributes:
        protocol: Which labels there are, and which regions are scored.
        metrics: What regions are scored by.
        lesions: Whether the lesions of regions that consist of them are counted.
        definition: What a surface is, for the metrics of surfaces.
    """

    protocol: ScoringProtocol = KITS19
    metrics: tuple[Metric, ...] = (DICE,)
    lesions: bool = False
    definition: Definition = Definition.surface_distance

    @property
    def rules(self) -> tuple[str, ...]:
        """What a reader must know of the scores, one sentence or more each."""
        metrics, rules = self.metrics, []
        if DICE in metrics or SURFACE_DICE in metrics:
            rules.append(EMPTY_RULE)
        if HD95 in metrics or ASSD in metrics:
            rules.append(DISTANCE_RULE)
        if SURFACE_DICE in metrics:
            regions = self.protocol.regions
            tolerances = ", ".join(f"{region.key} {region.tolerance_mm:.4g} mm" for region in regions)
            rules.append(f"Tolerances of surface Dice: {tolerances}.")
        if not SURFACE_METRICS.isdisjoint(metrics):
            rules.append(f"Definition of surfaces: {self.definition}.")
        if VOLUME in metrics:
            rules.append("Volume differences are prediction less reference.")
        if self.lesions:
            rules.append(DETECTION_RULE)
        return tuple(rules)


def measure_region(
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    region: Region,
    spacing_mm: Triple,
    scoring: Scoring,
) -> dict[str, float]:
    """Return the metrics of a region in two label maps, and their parts, by key; HD95 and ASSD may be NaN.

    Args:
        prediction: Label values, (z, y, x).
        reference: The same, on the same grid.
        region: Which values count.
        spacing_mm: Distance of the voxels along z, y, x.
        scoring: Says which metrics, and how.
    """
    metrics = scoring.metrics
    values: dict[str, float] = {}
    if DICE in metrics or VOLUME in metrics:
        overlap = count_overlap(prediction, reference, region)
        if DICE in metrics:
            values[DICE.key] = dice(overlap)
        if VOLUME in metrics:
            ml = voxel_ml(spacing_mm)
            values |= {"predicted_ml": overlap.predicted * ml, "reference_ml": overlap.reference * ml}
            values[VOLUME.key] = (overlap.predicted - overlap.reference) * ml
    if SURFACE_METRICS.isdisjoint(metrics):
        return values
    masks = [region_mask(labels, region) for labels in (prediction, reference)]
    box = foreground_box((masks[0] | masks[1]).view(np.uint8))
    predicted, true = (find_surface(mask[box], spacing_mm, definition=scoring.definition) for mask in masks)
    far = HD95 in metrics or ASSD in metrics
    distances = find_distances(predicted, true, spacing_mm, limit_mm=np.inf if far else region.tolerance_mm)
    if SURFACE_DICE in metrics:
        values[SURFACE_DICE.key] = surface_dice(distances, region.tolerance_mm)
    if HD95 in metrics:
        values[HD95.key] = hausdorff_95(distances)
    if ASSD in metrics:
        values[ASSD.key] = average_distance(distances)
    return values
