"""The plan: how every scan of a data set is prepared, readable and editable as JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

from kitsattn.config import read_settings
from kitsattn.errors import KitsattnError
from kitsattn.preprocess.fingerprint import Fingerprint, pool_intensities
from kitsattn.preprocess.resample import resampled_shape
from kitsattn.volume.geometry import Triple

PAPER_WINDOW_HU = (-300.0, 300.0)

Window = Literal["paper", "nnunet"]
"""Which rule makes the window and the normalisation.

`paper`: the paper's [-300, 300] HU; mean and standard deviation of the foreground clipped to it. `nnunet`: nnU-Net's
scheme for CT, the 0.5 and 99.5 percentiles of the foreground; mean and standard deviation of the foreground as it is.
"""

MOST_PIXELS = 4096
"""Rows or columns of a prepared slice at most: beyond, a spacing is a slip of the pen (mm, not cm or m)."""

_LEAST_HU, _MOST_HU = -32768, 32767
_PATCH_MULTIPLE = 32
_PATCH_AT_LEAST = 32
_PATCH_AT_MOST = 512


@dataclass(frozen=True)
class Target:
    """What decides the values that are stored for a case.

    These are HU on the target grid. Mean, standard deviation and patch size come in when cases are read: so a data set
    that has grown needs only its new cases prepared, unless the median spacing changes with them, and a case can be
    prepared before all others are read.

    Attributes:
        spacing_mm: In-plane, (y, x); the distance of slices is left as it is.
        clip_hu: Window that HU are clipped to.
    """

    spacing_mm: tuple[float, float]
    clip_hu: tuple[float, float]

    def __post_init__(self) -> None:
        """Check the values."""
        if not all(math.isfinite(value) and value > 0 for value in self.spacing_mm):
            msg = f"spacing_mm must be finite and above 0, got {self.spacing_mm}"
            raise ValueError(msg)
        low, high = self.clip_hu
        # Stored as int16 at whole HU.
        if not (low + 1 <= high and low >= _LEAST_HU and high <= _MOST_HU):
            msg = f"clip_hu must be a lower and a higher value from {_LEAST_HU} to {_MOST_HU}, got {self.clip_hu}"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How scans are prepared; a checkpoint carries the plan it was trained with.

    Attributes:
        spacing_mm: Target spacing in-plane, (y, x); the distance of slices is left as it is.
        clip_hu: Window that HU are clipped to.
        mean_hu: Mean of the foreground, subtracted.
        std_hu: Its standard deviation, divided by.
        patch_size: Height and width of training patches and prediction windows.
    """

    spacing_mm: tuple[float, float]
    clip_hu: tuple[float, float] = PAPER_WINDOW_HU
    mean_hu: float
    std_hu: float
    patch_size: tuple[int, int]

    def __post_init__(self) -> None:
        """Check the values."""
        _ = self.target  # checks spacing and window
        if not (math.isfinite(self.mean_hu) and math.isfinite(self.std_hu) and self.std_hu > 0):
            msg = f"mean_hu must be finite and std_hu above 0, got {self.mean_hu} and {self.std_hu}"
            raise ValueError(msg)
        if min(self.patch_size) < _PATCH_AT_LEAST or max(self.patch_size) > MOST_PIXELS:
            msg = f"patch_size must be {_PATCH_AT_LEAST} or more, {MOST_PIXELS} at most, got {self.patch_size}"
            raise ValueError(msg)

    def __str__(self) -> str:
        """Return the numbers as people read them."""
        row_mm, column_mm = self.spacing_mm
        low, high = self.clip_hu
        return (
            f"{row_mm:g} x {column_mm:g} mm, {low:g} to {high:g} HU, mean {self.mean_hu:.1f} HU, "
            f"deviation {self.std_hu:.1f} HU, patches of {self.patch_size[0]} x {self.patch_size[1]}"
        )

    @property
    def air(self) -> float:
        """Prepared value of air: what patches that reach beyond a slice are filled with."""
        return (self.clip_hu[0] - self.mean_hu) / self.std_hu

    @property
    def target(self) -> Target:
        """What of the plan decides the stored values."""
        return Target(self.spacing_mm, self.clip_hu)


def median_spacing(spacings_mm: Sequence[Triple]) -> tuple[float, float]:
    """Return the median in-plane spacing (y, x) of scans whose spacings are (z, y, x): nnU-Net's rule, axis by axis."""
    # NIfTI keeps spacing in fp32: without rounding, 2.2 mm would read 2.200000047683716 in the plan.
    return round(median(row for _, row, _ in spacings_mm), 6), round(median(column for _, _, column in spacings_mm), 6)


def plan_dataset(
    fingerprints: Sequence[Fingerprint], *, spacing_mm: tuple[float, float] | None = None, window: Window = "paper"
) -> Plan:
    """Make the plan of a data set from the fingerprints of its cases.

    Spacing is the median over cases, axis by axis. Mean and standard deviation are those of a foreground to which
    every case contributes equally, whatever its size, as nnU-Net samples it. The patch covers the median body.

    Args:
        fingerprints: Of the cases.
        spacing_mm: Target spacing in-plane (y, x), instead of the median.
        window: Which rule makes window and normalisation.

    Raises:
        KitsattnError: If no case has a foreground, or all of it has one value.
    """
    clip_hu = PAPER_WINDOW_HU
    values = pool_intensities(fingerprints, clip_hu if window == "paper" else None)
    if values is None:
        msg = "no case has a labelled voxel: check that the label maps hold kidneys, or give a plan with --plan"
        raise KitsattnError(msg)
    if window == "nnunet":
        clip_hu = (values.percentile_00_5_hu, values.percentile_99_5_hu)
    if values.std_hu == 0 or clip_hu[0] == clip_hu[1]:
        msg = (
            f"all labelled voxels have the value {values.median_hu:g} HU: "
            "check that images and label maps belong together"
        )
        raise KitsattnError(msg)
    if spacing_mm is None:
        spacing_mm = median_spacing([fingerprint.spacing_mm for fingerprint in fingerprints])
    bodies = []
    for fingerprint in fingerprints:
        y0, y1, x0, x1 = fingerprint.body_box
        _, row_mm, column_mm = fingerprint.spacing_mm
        bodies.append(resampled_shape((y1 - y0, x1 - x0), (row_mm, column_mm), spacing_mm))
    return Plan(
        spacing_mm=spacing_mm,
        clip_hu=clip_hu,
        mean_hu=values.mean_hu,
        std_hu=values.std_hu,
        patch_size=(_patch(median(rows for rows, _ in bodies)), _patch(median(columns for _, columns in bodies))),
    )


def read_plan(path: Path, *, spacing_mm: float | None = None) -> Plan:
    """Read a plan that a user gives, with the spacing replaced where one is given too.

    Raises:
        KitsattnError: If the file is missing, malformed, or has unknown keys or impossible values.
    """
    if not path.is_file():
        msg = f"{path} does not exist: name a plan, such as the plan.json that an earlier preprocessing left"
        raise KitsattnError(msg)
    plan = read_settings(Plan, path)
    return plan if spacing_mm is None else replace(plan, spacing_mm=(spacing_mm, spacing_mm))


def _patch(size: float) -> int:
    return min(_PATCH_AT_MOST, math.ceil(size / _PATCH_MULTIPLE) * _PATCH_MULTIPLE)
