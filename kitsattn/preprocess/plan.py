"""The plan: how every scan of a data set is prepared, readable and editable as JSON."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from kitsattn.config import read_settings, to_json
from kitsattn.errors import KitsattnError
from kitsattn.preprocess.fingerprint import Fingerprint
from kitsattn.preprocess.resample import resampled_shape

PAPER_WINDOW_HU = (-300.0, 300.0)

_PATCH_MULTIPLE = 32
_PATCH_AT_LEAST = 32
_PATCH_AT_MOST = 512


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How scans are prepared; a checkpoint carries the plan it was trained with.

    Attributes:
        spacing_mm: Target spacing in-plane, (y, x); the distance of slices is left as it is.
        clip_hu: Window that HU are clipped to.
        mean_hu: Mean of the clipped foreground, subtracted.
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
        if not all(math.isfinite(value) and value > 0 for value in self.spacing_mm):
            msg = f"spacing_mm must be finite and above 0, got {self.spacing_mm}"
            raise ValueError(msg)
        if not (all(map(math.isfinite, self.clip_hu)) and self.clip_hu[0] < self.clip_hu[1]):
            msg = f"clip_hu must be a lower and a higher value, got {self.clip_hu}"
            raise ValueError(msg)
        if not (math.isfinite(self.mean_hu) and math.isfinite(self.std_hu) and self.std_hu > 0):
            msg = f"mean_hu must be finite and std_hu above 0, got {self.mean_hu} and {self.std_hu}"
            raise ValueError(msg)
        if min(self.patch_size) < _PATCH_AT_LEAST:
            msg = f"patch_size must be {_PATCH_AT_LEAST} or more, got {self.patch_size}"
            raise ValueError(msg)

    @property
    def air(self) -> float:
        """Prepared value of air: what patches that reach beyond a slice are filled with."""
        return (self.clip_hu[0] - self.mean_hu) / self.std_hu

    @property
    def identity(self) -> str:
        """Checksum of what decides the prepared values; the patch size does not."""
        content = {key: value for key, value in to_json(self).items() if key != "patch_size"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def plan_dataset(fingerprints: Sequence[Fingerprint], *, spacing_mm: tuple[float, float] | None = None) -> Plan:
    """Make the plan of a data set from the fingerprints of its cases.

    Spacing is the median over cases, axis by axis. Mean and standard deviation are those of a foreground to which
    every case contributes equally, whatever its size, as nnU-Net samples it. The patch covers the median body.

    Args:
        fingerprints: Taken with the paper's window.
        spacing_mm: Target spacing in-plane (y, x), instead of the median.

    Raises:
        KitsattnError: If no case has a foreground, or all of it has one value.
    """
    known = [fingerprint.foreground for fingerprint in fingerprints if fingerprint.foreground is not None]
    if not known:
        msg = "no case has a labelled voxel: check that the label maps hold kidneys, or give a plan with --plan"
        raise KitsattnError(msg)
    mean = fmean(foreground.mean_hu for foreground in known)
    square = fmean(foreground.std_hu**2 + foreground.mean_hu**2 for foreground in known)
    std = math.sqrt(max(square - mean**2, 0.0))
    if std == 0:
        msg = f"all labelled voxels have the value {mean:g} HU: check that images and label maps belong together"
        raise KitsattnError(msg)
    if spacing_mm is None:
        # NIfTI keeps spacing in fp32: without rounding, 2.2 mm would read 2.200000047683716 in the plan.
        spacing_mm = (
            round(median(fingerprint.spacing_mm[1] for fingerprint in fingerprints), 6),
            round(median(fingerprint.spacing_mm[2] for fingerprint in fingerprints), 6),
        )
    bodies = []
    for fingerprint in fingerprints:
        y0, y1, x0, x1 = fingerprint.body_box
        _, row_mm, column_mm = fingerprint.spacing_mm
        bodies.append(resampled_shape((y1 - y0, x1 - x0), (row_mm, column_mm), spacing_mm))
    return Plan(
        spacing_mm=spacing_mm,
        mean_hu=mean,
        std_hu=std,
        patch_size=(_patch(median(rows for rows, _ in bodies)), _patch(median(columns for _, columns in bodies))),
    )


def read_plan(path: Path, *, spacing_mm: float | None = None) -> Plan:
    """Read a plan that a user gives, with the spacing replaced where one is given too.

    Raises:
        KitsattnError: If the file is missing, malformed, or has unknown keys or impossible values.
    """
    plan = read_settings(Plan, path)
    return plan if spacing_mm is None else replace(plan, spacing_mm=(spacing_mm, spacing_mm))


def _patch(size: float) -> int:
    return min(_PATCH_AT_MOST, math.ceil(size / _PATCH_MULTIPLE) * _PATCH_MULTIPLE)
