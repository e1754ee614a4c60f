"""Detection: which lesions of the reference a prediction found, and which of its own are none.

A lesion is a connected component of a region such as tumour. A lesion of the prediction finds one of the reference if
their intersection over union is at least 0.1, the threshold of nnDetection (Baumgartner et al., 2021, arXiv:2106.00817)
for lesions in three dimensions; each is matched once at most, so that the sum of these ratios is as large as can be.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, nan, pi

import numpy as np
from numpy.typing import NDArray

from kitsattn.evaluate.region import RegionPair
from kitsattn.evaluate.spread import resample_cases
from kitsattn.volume.components import find_components, find_voxels

LEAST_IOU = 0.1
SIZES_MM = (0.0, 20.0, 40.0, 70.0, inf)
"""Bounds of the size groups: 4 and 7 cm are those of the stages T1a, T1b and T2 of kidney cancer (TNM, 8th edition)."""

DETECTION_RULE = (
    f"A lesion is a connected component (26 neighbours). It is found if a predicted one has an intersection over union"
    f" of at least {LEAST_IOU} with it, one to one. Its size is the diameter of the sphere of its volume. Precision is"
    " the share of predicted lesions that are true, recall the share of true ones that were found, over all cases."
)
"""What is counted: quoted by every output that has it."""


@dataclass(frozen=True)
class Lesion:
    """A connected component of a region in one of two label maps.

    Attributes:
        volume_ml: Its volume.
        iou: Its intersection over union with the lesion of the other label map that it is matched with; 0 if with none.
    """

    volume_ml: float
    iou: float

    @property
    def diameter_mm(self) -> float:
        """Of the sphere of the same volume."""
        return float((6_000 * self.volume_ml / pi) ** (1 / 3))

    @property
    def matched(self) -> bool:
        """Whether it is matched with a lesion of the other label map."""
        return self.iou > 0


@dataclass(frozen=True)
class Detection:
    """The lesions of one case.

    Attributes:
        reference: Those of the reference; matched ones were found. The largest first.
        predicted: Those of the prediction; matched ones are true. The largest first.
    """

    reference: tuple[Lesion, ...]
    predicted: tuple[Lesion, ...]


@dataclass(frozen=True)
class Counts:
    """Lesions of several cases; the shares are NaN where there are no lesions.

    Attributes:
        reference: How many there are in the references.
        found: How many of them were found.
        predicted: How many there are in the predictions.
        true: How many of them are true.
    """

    reference: int
    found: int
    predicted: int
    true: int

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are true."""
        return self.true / self.predicted if self.predicted else nan

    @property
    def recall(self) -> float:
        """Share of the lesions of the references that were found."""
        return self.found / self.reference if self.reference else nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 true / (predicted + reference)."""
        total = self.predicted + self.reference
        return 2 * self.true / total if total else nan


def match_lesions(pair: RegionPair) -> Detection:
    """Find the lesions of a region in two label maps, and which of them belong together; touching lesions are one."""
    places, numbers, sizes = [], [], []
    for mask in (pair.predicted, pair.reference):
        voxels = find_voxels(mask.view(np.uint8))
        components = find_components(voxels.places)
        places.append(np.ravel_multi_index(tuple(voxels.places.T), mask.shape))
        numbers.append(components.numbers)
        sizes.append(components.sizes)
    _, mine, theirs = np.intersect1d(places[0], places[1], assume_unique=True, return_indices=True)
    pairs, common = np.unique(np.stack([numbers[0][mine], numbers[1][theirs]]), axis=1, return_counts=True)
    iou = common / (sizes[0][pairs[0]] + sizes[1][pairs[1]] - common)
    ratios = np.zeros(len(sizes[0])), np.zeros(len(sizes[1]))
    enough = iou >= LEAST_IOU
    for one, other, ratio in _assign(pairs[:, enough], iou[enough]):
        ratios[0][one] = ratios[1][other] = ratio
    predicted, true = (
        sorted(
            (Lesion(float(size * pair.voxel_ml), float(ratio)) for size, ratio in zip(*side, strict=True)),
            key=lambda lesion: -lesion.volume_ml,
        )
        for side in zip(sizes, ratios, strict=True)
    )
    return Detection(tuple(true), tuple(predicted))


def _assign(pairs: NDArray[np.int32], iou: NDArray[np.float64]) -> Iterator[tuple[int, int, float]]:
    """Choose pairs of lesions, each lesion once at most, whose ratios have the largest sum.

    Groups of lesions that are linked by pairs are few lesions each, however many specks there are in all.

    Args:
        pairs: Numbers of a predicted and of a true lesion, (2, pairs).
        iou: Their ratios, (pairs,).

    Yields:
        Both numbers and the ratio of each chosen pair.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - 0.2 s, which `evaluate dice` does without
    from scipy.sparse import coo_array  # noqa: PLC0415 - the same
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415 - the same

    if not len(iou):
        return
    first = int(pairs[0].max()) + 1
    nodes = first + int(pairs[1].max()) + 1
    graph = coo_array((np.ones(len(iou)), (pairs[0], first + pairs[1])), shape=(nodes, nodes))
    groups = connected_components(graph, directed=False)[1][pairs[0]]
    order = np.argsort(groups, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        rows, columns = (np.unique(side, return_inverse=True) for side in pairs[:, group])
        ratios = np.zeros((len(rows[0]), len(columns[0])))
        ratios[rows[1], columns[1]] = iou[group]
        for row, column in zip(*linear_sum_assignment(ratios, maximize=True), strict=True):
            if ratios[row, column]:
                yield int(rows[0][row]), int(columns[0][column]), float(ratios[row, column])


def count_lesions(cases: Sequence[Detection], low_mm: float = 0.0, high_mm: float = inf) -> Counts:
    """Count the lesions of some cases.

    Args:
        cases: The lesions of each.
        low_mm: Those of smaller diameter are not counted.
        high_mm: Nor those of this one and larger.
    """
    reference = [lesion for case in cases for lesion in case.reference if low_mm <= lesion.diameter_mm < high_mm]
    predicted = [lesion for case in cases for lesion in case.predicted if low_mm <= lesion.diameter_mm < high_mm]
    found, true = (sum(lesion.matched for lesion in lesions) for lesions in (reference, predicted))
    return Counts(len(reference), found, len(predicted), true)


def intervals(cases: Sequence[Detection]) -> dict[str, tuple[float, float]]:
    """Return 95 % confidence intervals of precision, recall and f1: cases are drawn, for lesions of one are alike.

    Args:
        cases: The lesions of each.

    Returns:
        By name, lower and upper end; NaN for fewer than two cases, or where a share is not defined.
    """
    each = [count_lesions([case]) for case in cases]
    found, true, reference, predicted = (
        np.array([getattr(counts, name) for counts in each], float)
        for name in ("found", "true", "reference", "predicted")
    )
    return {
        "precision": resample_cases(true, predicted),
        "recall": resample_cases(found, reference),
        "f1": resample_cases(2 * true, predicted + reference),
    }
