"""What planning needs to know of a case: its size, its spacing, and the values of its foreground."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kitsattn.labels import BACKGROUND
from kitsattn.preprocess.crop import Box, body_box
from kitsattn.preprocess.intensity import clip_hu
from kitsattn.volume.geometry import Shape, Triple
from kitsattn.volume.volume import Volume


@dataclass(frozen=True)
class Foreground:
    """Clipped HU of all labelled voxels of a case.

    Attributes:
        voxels: How many there are.
        mean_hu: Their mean.
        std_hu: Their standard deviation.
        min_hu: The lowest.
        max_hu: The highest.
        percentile_00_5_hu: Half a percent lie below.
        percentile_99_5_hu: Half a percent lie above.
    """

    voxels: int
    mean_hu: float
    std_hu: float
    min_hu: float
    max_hu: float
    percentile_00_5_hu: float
    percentile_99_5_hu: float


@dataclass(frozen=True)
class Fingerprint:
    """What planning needs to know of a case.

    Attributes:
        case_id: The case.
        shape: Of the scan, (z, y, x).
        spacing_mm: Of the scan, (z, y, x).
        body_box: The body's box in-plane, y0, y1, x0, x1.
        foreground: Values of its labelled voxels; None if there are none.
    """

    case_id: str
    shape: Shape
    spacing_mm: Triple
    body_box: Box
    foreground: Foreground | None


def take_fingerprint(
    case_id: str, scan: Volume, labels: NDArray[np.uint8], window_hu: tuple[float, float]
) -> Fingerprint:
    """Take the fingerprint of a case.

    All labelled voxels are used, a few million at most, so that the result depends on no sampling.

    Args:
        case_id: The case.
        scan: In HU.
        labels: On the same grid, (z, y, x).
        window_hu: What HU are clipped to.
    """
    geometry = scan.geometry
    values = clip_hu(scan.array[labels != BACKGROUND], window_hu).astype(np.float64)
    foreground = None
    if values.size:
        low, high = np.percentile(values, [0.5, 99.5])
        foreground = Foreground(
            voxels=values.size,
            mean_hu=float(values.mean()),
            std_hu=float(values.std()),
            min_hu=float(values.min()),
            max_hu=float(values.max()),
            percentile_00_5_hu=float(low),
            percentile_99_5_hu=float(high),
        )
    return Fingerprint(case_id, geometry.shape, geometry.spacing_mm, body_box(scan), foreground)
