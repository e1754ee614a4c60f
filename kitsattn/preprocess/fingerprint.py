"""What planning needs to know of a data set: sizes, spacings, and the values of the foreground.

nnU-Net pools the foreground by drawing the same number of voxels from every case, with replacement. Here every case
keeps the histogram of its foreground, at whole HU, and their equally weighted mean is the distribution that nnU-Net
draws from: the same statistics without the chance, the same for any number of workers, and for any window, since
nothing is clipped yet.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kitsattn.labels import BACKGROUND
from kitsattn.preprocess.crop import Box
from kitsattn.volume.geometry import Shape, Triple
from kitsattn.volume.volume import Volume

_HU_RANGE = (-32768, 32767)


@dataclass(frozen=True)
class Foreground:
    """The values of all labelled voxels of a case, as a histogram at whole HU.

    Attributes:
        lowest_hu: HU of the first count.
        counts: Number of voxels at `lowest_hu`, `lowest_hu` + 1, …; the first and the last are not 0.
    """

    lowest_hu: int
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that there are voxels."""
        if not self.counts or min(self.counts) < 0 or self.counts[0] == 0:
            msg = "counts must begin with a number above 0 and have none below 0"
            raise ValueError(msg)

    @property
    def voxels(self) -> int:
        """How many voxels there are."""
        return sum(self.counts)


@dataclass(frozen=True)
class Fingerprint:
    """What planning needs to know of a case.

    Attributes:
        case_id: The case.
        shape: Of the scan, (z, y, x).
        spacing_mm: Of the scan, (z, y, x).
        body_box: The body's box in-plane, y0, y1, x0, x1.
        voxels: Class name to number of voxels on the scan's grid; background is left out.
        foreground: Values of its labelled voxels; None if there are none.
    """

    case_id: str
    shape: Shape
    spacing_mm: Triple
    body_box: Box
    voxels: Mapping[str, int]
    foreground: Foreground | None


@dataclass(frozen=True)
class Intensities:
    """Statistics of a data set's foreground, every case weighing the same, as nnU-Net defines them.

    Attributes:
        mean_hu: The mean.
        std_hu: The standard deviation.
        min_hu: The lowest value.
        max_hu: The highest value.
        median_hu: Half are below.
        percentile_00_5_hu: Half a percent is below.
        percentile_99_5_hu: Half a percent is above.
    """

    mean_hu: float
    std_hu: float
    min_hu: float
    max_hu: float
    median_hu: float
    percentile_00_5_hu: float
    percentile_99_5_hu: float


def take_fingerprint(
    case_id: str, scan: Volume, labels: NDArray[np.uint8], classes: Mapping[str, int], body_box: Box
) -> Fingerprint:
    """Take the fingerprint of a case.

    Args:
        case_id: The case.
        scan: In HU.
        labels: On the same grid, (z, y, x).
        classes: Class name to label value.
        body_box: Of the scan, as `crop.body_box` finds it.
    """
    geometry = scan.geometry
    voxels = dict.fromkeys((name for name, value in classes.items() if value != BACKGROUND), 0)
    values = []
    for hu, label in zip(scan.array, labels, strict=True):
        labelled = label != BACKGROUND
        if labelled.any():
            values.append(hu[labelled])
            found = np.bincount(label[labelled], minlength=256)
            voxels = {name: count + int(found[classes[name]]) for name, count in voxels.items()}
    foreground = None
    if values:
        whole = np.clip(np.rint(np.concatenate(values)), *_HU_RANGE).astype(np.int64)
        lowest = int(whole.min())
        foreground = Foreground(lowest, tuple(np.bincount(whole - lowest).tolist()))
    return Fingerprint(case_id, geometry.shape, geometry.spacing_mm, body_box, voxels, foreground)


def pool_intensities(
    fingerprints: Sequence[Fingerprint], window_hu: tuple[float, float] | None = None
) -> Intensities | None:
    """Return the statistics of the foreground of all cases.

    Args:
        fingerprints: Of the cases.
        window_hu: What the values are clipped to first; None leaves them as they are.

    Returns:
        The statistics; None if no case has a foreground.
    """
    known = [fingerprint.foreground for fingerprint in fingerprints if fingerprint.foreground is not None]
    if not known:
        return None
    lowest = min(foreground.lowest_hu for foreground in known)
    highest = max(foreground.lowest_hu + len(foreground.counts) for foreground in known)
    weights = np.zeros(highest - lowest)
    for foreground in known:
        start = foreground.lowest_hu - lowest
        weights[start : start + len(foreground.counts)] += np.array(foreground.counts) / foreground.voxels / len(known)
    hu = np.arange(lowest, highest, dtype=np.float64)
    if window_hu is not None:
        hu = np.clip(hu, *window_hu)
    mean = float(weights @ hu)
    cumulated = np.cumsum(weights)
    low, median, high = (float(hu[np.searchsorted(cumulated, share * cumulated[-1])]) for share in (0.005, 0.5, 0.995))
    return Intensities(
        mean_hu=mean,
        std_hu=math.sqrt(float(weights @ (hu - mean) ** 2)),
        min_hu=float(hu[0]),
        max_hu=float(hu[-1]),
        median_hu=median,
        percentile_00_5_hu=low,
        percentile_99_5_hu=high,
    )
