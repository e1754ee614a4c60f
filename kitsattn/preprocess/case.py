"""One scan's way to the prepared grid and back, used alike by preprocessing and prediction."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kitsattn.labels import BACKGROUND
from kitsattn.preprocess.crop import Box, body_box
from kitsattn.preprocess.intensity import clip_hu
from kitsattn.preprocess.plan import Target
from kitsattn.preprocess.resample import resample_labels, resample_linear, resample_scan, resampled_shape
from kitsattn.volume.geometry import Shape
from kitsattn.volume.volume import Volume

_BLOCK = 16
"""Slices that are resampled at once: 16 of 512 x 512 take 17 MB."""


@dataclass(frozen=True)
class Placement:
    """How a prepared grid is in the scan's grid; both have the same slices.

    Attributes:
        scan_shape: Of the scan, (z, y, x).
        box: The part of each slice that was prepared, y0, y1, x0, x1, ends exclusive.
        prepared_shape: Height and width that this part was resampled to.
    """

    scan_shape: Shape
    box: Box
    prepared_shape: tuple[int, int]

    @property
    def box_shape(self) -> tuple[int, int]:
        """Height and width of the prepared part on the scan's grid."""
        y0, y1, x0, x1 = self.box
        return y1 - y0, x1 - x0


@dataclass(frozen=True)
class PreparedScan:
    """A scan whose slices are prepared when they are asked for, so that few are held at once.

    Attributes:
        scan: In HU.
        target: What it is brought to.
        placement: Where the prepared grid is in it.
    """

    scan: Volume
    target: Target
    placement: Placement

    @property
    def shape(self) -> Shape:
        """Shape of the prepared scan, (z, height, width)."""
        return self.placement.scan_shape[0], *self.placement.prepared_shape

    def hu(self, start: int, stop: int) -> NDArray[np.float32]:
        """Prepare slices `start` to `stop` (exclusive): crop, clip, resample.

        Returns:
            (stop - start, height, width), in HU.
        """
        y0, y1, x0, x1 = self.placement.box
        prepared: NDArray[np.float32] = np.empty((stop - start, *self.placement.prepared_shape), np.float32)
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            clipped = clip_hu(self.scan.array[first:last, y0:y1, x0:x1], self.target.clip_hu)
            prepared[first - start : last - start] = resample_scan(clipped, self.placement.prepared_shape)
        return prepared


def prepare_scan(scan: Volume, target: Target) -> PreparedScan:
    """Decide how a scan is prepared; nothing is resampled yet.

    Args:
        scan: In HU, as `check_hu` returns it.
        target: What it is brought to.
    """
    y0, y1, x0, x1 = box = body_box(scan)
    _, row_mm, column_mm = scan.geometry.spacing_mm
    shape = resampled_shape((y1 - y0, x1 - x0), (row_mm, column_mm), target.spacing_mm)
    return PreparedScan(scan, target, Placement(scan.geometry.shape, box, shape))


def prepare_labels(labels: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Bring slices of a label map to the prepared grid.

    Args:
        labels: Slices on the scan's grid, (n, y, x).
        placement: Where the prepared grid is in it.

    Returns:
        (n, height, width).
    """
    y0, y1, x0, x1 = placement.box
    return resample_labels(labels[:, y0:y1, x0:x1], placement.prepared_shape)


def restore_probabilities(probabilities: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Bring probabilities from the prepared grid to the scan's voxels, linearly.

    Args:
        probabilities: (classes, n, height, width) on the prepared grid.
        placement: Where that grid is in the scan.

    Returns:
        (classes, n, box height, box width), within the box only.
    """
    return resample_linear(probabilities, placement.box_shape)


def decide_labels(probabilities: NDArray[np.float32], placement: Placement) -> NDArray[np.uint8]:
    """Choose the most probable class of each voxel; outside the box is background.

    Args:
        probabilities: (classes, n, box height, box width), as `restore_probabilities` returns them.
        placement: Where the box is in the scan.

    Returns:
        (n, y, x) on the scan's grid; where classes are equally probable the lower one.
    """
    y0, y1, x0, x1 = placement.box
    labels = np.full((probabilities.shape[1], *placement.scan_shape[1:]), BACKGROUND, np.uint8)
    labels[:, y0:y1, x0:x1] = probabilities.argmax(axis=0)
    return labels
