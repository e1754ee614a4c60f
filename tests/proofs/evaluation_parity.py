"""Scores of many pairs of regions, in each definition, against the package that it is named after.

    python tests/proofs/evaluation_parity.py [--pairs 1000] [--crops 20] [--seed 0]

It needs a Python that has kitsattn, surface-distance 0.1, MedPy 0.5.2 and MONAI 1.6.1. Both regions of a pair have
voxels: what empty ones score is our own rule, and the packages' differ. There are

- blobs of any roughness, alike or strangers, that touch the border of the grid, on grids of whole and of odd spacings,
  with tolerances that are and are not distances on the grid,
- the same in one slice, and single voxels,
- with $KITSATTN_TEST_DATA, crops of two label maps of KiTS19 from its folder kits19-labels, the prediction moved and
  eroded.

For each package and score the largest absolute difference is printed, and the largest relative to the score, or to 1
where that is less. The exit code is 1 if a relative one is above 1e-6.

MONAI computes in float32, in which not even the rank of a percentile is exact. Its percentiles are therefore taken in
float64 here; as it is, its HD95 was up to 9e-5 mm off in 1020 pairs.
"""

import argparse
import importlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.evaluate.definition import Definition
from kitsattn.evaluate.overlap import count_overlap
from kitsattn.evaluate.surface import (
    average_distance,
    find_distances,
    find_surface,
    hausdorff_95,
    surface_dice,
)
from kitsattn.volume.geometry import Triple
from kitsattn.volume.nifti import read_labels

LIMIT = 1e-6
WHOLE_SPACINGS: tuple[Triple, ...] = ((1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (5.0, 2.0, 1.0))
WHOLE_TOLERANCES_MM = (0.0, 1.0, 2.0, 5.0)
CROP = (32, 96, 96)

Scores = dict[str, float]
"""By the name of the score."""
Differences = dict[tuple[Definition, str], list[tuple[str, float, float]]]
"""By package and score, of each pair: its kind, the absolute and the relative difference."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two regions on one grid.

    Attributes:
        kind: What they are an example of.
        prediction: (z, y, x), true inside.
        reference: The same.
        spacing_mm: Distance of the voxels along z, y, x.
        tolerance_mm: Of surface Dice.
    """

    kind: str
    prediction: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    spacing_mm: Triple
    tolerance_mm: float


def draw_grid(rng: np.random.Generator) -> tuple[Triple, float]:
    """Return a spacing and a tolerance: every third time whole numbers, so that equal distances are frequent."""
    if rng.random() < 1 / 3:
        return WHOLE_SPACINGS[rng.integers(len(WHOLE_SPACINGS))], float(rng.choice(WHOLE_TOLERANCES_MM))
    z, y, x = rng.uniform(0.4, 6, 3).tolist()
    return (z, y, x), float(rng.uniform(0.1, 6))


def draw_blobs(rng: np.random.Generator, kind: str) -> Pair:
    """Return two blobs, in one slice if the kind says so."""
    shape = [1 if kind == "one slice" else int(rng.integers(2, 25)), *rng.integers(2, 25, 2)]
    noise = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, *[rng.uniform(0, 3)] * 3))
    noise[1] = rng.choice([0.1, 0.5, 1.0, 5.0]) * noise[1] + noise[0]
    # The highest value is always inside, so that no region is empty.
    prediction, reference = (one >= np.quantile(one, rng.choice([0.1, 0.5, 0.8, 0.95, 1.0])) for one in noise)
    return Pair(kind, prediction, reference, *draw_grid(rng))


def draw_voxels(rng: np.random.Generator) -> Pair:
    """Return two regions of one voxel."""
    masks = np.zeros((2, *rng.integers(1, 12, 3)), bool)
    for mask in masks:
        mask.flat[rng.integers(mask.size)] = True
    return Pair("single voxels", masks[0], masks[1], *draw_grid(rng))


def crop_label_maps(rng: np.random.Generator, folder: Path, count: int) -> Iterator[Pair]:
    """Yield crops around voxels of the kidneys, or of the tumours, of two label maps."""
    paths = sorted(folder.glob("*.nii.gz"))
    for path in rng.choice(np.array(paths), 2, replace=False):
        volume = read_labels(path)
        left = count // 2
        while left:
            inside = volume.array >= rng.integers(1, 3)
            if not inside.any():
                continue
            voxels = np.argwhere(inside)
            start = voxels[rng.integers(len(voxels))] - rng.integers(CROP)
            box = tuple(slice(max(0, first), first + size) for first, size in zip(start, CROP, strict=True))
            reference = inside[box]
            moved = np.roll(reference, rng.integers(-2, 3, 3), (0, 1, 2))
            prediction = ndimage.binary_erosion(moved) if rng.random() < 1 / 2 else moved
            if prediction.any():
                left -= 1
                tolerance_mm = float(rng.uniform(0.5, 3))
                yield Pair("crops of KiTS19", prediction, reference, volume.geometry.spacing_mm, tolerance_mm)


def draw_pairs(seed: int, count: int, crops: int) -> Iterator[Pair]:
    """Yield pairs: three in five are blobs, one in five blobs in one slice, one in five single voxels; then crops."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = ("blobs", "blobs", "blobs", "one slice", "single voxels")[number % 5]
        yield draw_voxels(rng) if kind == "single voxels" else draw_blobs(rng, kind)
    data = os.environ.get("KITSATTN_TEST_DATA")
    if data and crops:
        yield from crop_label_maps(rng, Path(data) / "kits19-labels", crops)


def score_ours(pair: Pair, definition: Definition) -> Scores:
    """Return our scores in a definition."""
    masks = (pair.prediction, pair.reference)
    prediction, reference = (find_surface(mask, pair.spacing_mm, definition=definition) for mask in masks)
    distances = find_distances(prediction, reference, pair.spacing_mm)
    [mask.astype(np.uint8) for mask in masks]
    return {
        "Dice": count_overlap(*masks).dice,
        "HD95": hausdorff_95(distances),
        "ASSD": average_distance(distances),
        "surface Dice": surface_dice(distances, pair.tolerance_mm),
    }


def score_with_surface_distance(pair: Pair) -> Scores:
    """Return what surface-distance computes; of its two average distances the mean."""
    metrics = importlib.import_module("surface_distance.metrics")
    found = metrics.compute_surface_distances(pair.reference, pair.prediction, pair.spacing_mm)
    return {
        "Dice": metrics.compute_dice_coefficient(pair.reference, pair.prediction),
        "HD95": metrics.compute_robust_hausdorff(found, 95),
        "ASSD": float(np.mean(metrics.compute_average_surface_distance(found))),
        "surface Dice": metrics.compute_surface_dice_at_tolerance(found, pair.tolerance_mm),
    }


def score_with_medpy(pair: Pair) -> Scores:
    """Return what MedPy computes, which has no surface Dice."""
    metrics = importlib.import_module("medpy.metric.binary")
    masks = (pair.prediction, pair.reference)
    return {
        "Dice": metrics.dc(*masks),
        "HD95": metrics.hd95(*masks, voxelspacing=pair.spacing_mm),
        "ASSD": metrics.assd(*masks, voxelspacing=pair.spacing_mm),
    }


def score_with_monai(pair: Pair) -> Scores:
    """Return what MONAI computes."""
    metrics = importlib.import_module("monai.metrics")
    masks = [torch.from_numpy(mask)[None, None] for mask in (pair.prediction, pair.reference)]
    settings: dict[str, Any] = {"include_background": True, "spacing": pair.spacing_mm}
    values = {
        "Dice": metrics.compute_dice(*masks),
        "HD95": metrics.compute_hausdorff_distance(*masks, percentile=95, **settings),
        "ASSD": metrics.compute_average_surface_distance(*masks, symmetric=True, **settings),
        "surface Dice": metrics.compute_surface_dice(*masks, class_thresholds=[pair.tolerance_mm], **settings),
    }
    return {name: float(value) for name, value in values.items()}


PACKAGES: dict[Definition, Callable[[Pair], Scores]] = {
    Definition.surface_distance: score_with_surface_distance,
    Definition.medpy: score_with_medpy,
    Definition.monai: score_with_monai,
}


def adapt_packages() -> None:
    """Give surface-distance what numpy 2 has no longer, and MONAI exact ranks."""
    vars(np).update(Inf=np.inf, NaN=np.nan)
    vars(ndimage).update(filters=ndimage, morphology=ndimage)
    quantile = torch.quantile
    vars(torch).update(quantile=lambda values, share: quantile(values.double(), share))
    warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of its own arguments


def print_table(differences: Differences) -> float:
    """Print the largest differences, and return the largest relative one; NaN counts as infinite."""
    print("package           score         pairs  largest difference  relative")
    largest = 0.0
    for (package, name), found in differences.items():
        absolute, relative = np.nan_to_num([values for _, *values in found], nan=np.inf).max(axis=0).tolist()
        print(f"{package:16}  {name:12}  {len(found):5}  {absolute:18.1e}  {relative:8.1e}")
        largest = max(largest, relative)
    kinds = Counter(kind for kind, *_ in next(iter(differences.values())))
    print("pairs: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return largest


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="of blobs and voxels")
    parser.add_argument("--crops", type=int, default=20, help="of label maps, where there are any")
    parser.add_argument("--seed", type=int, default=0, help="of all pairs")
    options = parser.parse_args()
    adapt_packages()
    differences: Differences = {}
    for pair in draw_pairs(options.seed, options.pairs, options.crops):
        for definition, score in PACKAGES.items():
            ours = score_ours(pair, definition)
            for name, theirs in score(pair).items():
                absolute = abs(ours[name] - theirs)
                found = differences.setdefault((definition, name), [])
                found.append((pair.kind, absolute, absolute / max(1.0, abs(theirs))))
    return int(print_table(differences) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
