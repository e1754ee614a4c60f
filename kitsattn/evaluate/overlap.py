"""Overlap of two masks: voxel counts, and the coefficients from them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one region in two label maps.

    Attributes:
        predicted: Voxels of the region in the prediction.
        reference: Voxels of the region in the reference.
        common: Voxels of the region in both.
    """

    predicted: int
    reference: int
    common: int

    @property
    def dice(self) -> float:
        """Dice coefficient, 2 |P & R| / (|P| + |R|), in [0, 1]; 1 where both are empty."""
        total = self.predicted + self.reference
        return 2 * self.common / total if total else 1.0

    @property
    def jaccard(self) -> float:
        """Jaccard index, |P & R| / |P | R|, in [0, 1]; 1 where both are empty."""
        union = self.predicted + self.reference - self.common
        return self.common / union if union else 1.0


def count_overlap(predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Overlap:
    """Count the voxels of two masks, (z, y, x).

    Raises:
        ValueError: If the shapes differ.
    """
    if predicted.shape != reference.shape:
        msg = f"a prediction of shape {predicted.shape} against a reference of shape {reference.shape}"
        raise ValueError(msg)
    # Slice by slice, what both have in common stays in the cache.
    common = sum(np.count_nonzero(one & other) for one, other in zip(predicted, reference, strict=True))
    return Overlap(int(np.count_nonzero(predicted)), int(np.count_nonzero(reference)), int(common))
