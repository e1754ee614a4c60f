"""Whether values of a scan were lost before it came here: clipped to a window, air replaced by 0, or filled in.

A network does not refuse such a scan: it finds less in it. So whoever predicts or prepares it is warned.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.volume.hu import TISSUE_FROM, sample_voxels
from kitsattn.volume.volume import Volume

_RANGE_HU = (-1100, 3100)
_WHOLE_HU = (-900, 1000)
"""The range of a CT ends beyond: in air or padding below, in bone, metal or the scanner's own limit above."""
_BESIDE = 1
"""HU by which rounding may spread a value."""
_RINGING_HU = 100
"""How far beyond a window splines lead that resampled a clipped scan: an eighth of 800 HU."""
_INSIDE = 3
_RISE = 3
"""A clipped end has at least as many times the voxels of the values next to it; noise has about as many."""
_LEAST_CUT = 0.002
"""Share of the body's voxels that only clipping puts at one value."""
_OUTLIERS = 0.0001
"""Share of the body's voxels that may be beyond a clipped end for other reasons."""
_NEAR_HU = 50
_SPIKE = 10
"""A value that was filled in has at least as many times the voxels of any other within 50 HU."""
_LEAST_ZEROS = 0.01
_LEAST_FILLED = 0.02
_LEAST_VOXELS = 10


def note_cuts(scan: Volume) -> Volume:
    """Return a scan with a note on each loss of values that is found in it.

    About a million voxels are looked at, and the edges of the slices: the air, padding or body that a scan holds there
    does not have one single value above -900 HU. Values are counted at whole HU.

    - Clipped to a window: at least 0.2 % of the body, and three times as many voxels as the values next to it inside,
      have one value, and none or only the ringing of splines is beyond. An end below -900 or above 1000 is sound.
    - Air replaced by 0: at least 1 % of the voxels, or 2 % of those at the edges, are 0, ten times as many as any
      other value within 50 HU.
    - Filled in, by resampling, turning or masking: the same for another value at the edges.

    Args:
        scan: In HU.

    Returns:
        The volume itself, or one with notes.
    """
    voxels = _Histogram.of(sample_voxels(scan.array))
    edges = _Histogram.of(np.concatenate([scan.array[:, [0, -1]].ravel(), scan.array[:, :, [0, -1]].ravel()]))
    notes = []
    ends = _clipped_ends(voxels)
    if ends:
        notes.append(
            f"The values are cut off at {' and '.join(map(str, ends))} HU, as in an export for display: what is beyond "
            "is lost, and kidneys and tumours may be missed or outlined wrongly; export the whole range."
        )
    filled = edges.most_frequent_spike()
    zeros = voxels.near(0)
    if filled == 0 or (zeros >= _LEAST_ZEROS * voxels.total and voxels.is_spike(0)):
        notes.append(
            f"0 HU stands for air ({zeros / max(voxels.total, 1):.0%} of the voxels): networks take it for tissue, and "
            "kidneys and tumours may be missed; export the scan with its air, which is -1000 HU."
        )
    elif filled is not None and all(abs(filled - end) > _RINGING_HU for end in ends):
        share = f"{edges.near(filled) / edges.total:.0%} of the voxels at the edges of the slices"
        notes.append(
            f"{share} are {filled} HU, filled in by resampling or masking: networks may take it for tissue; "
            "fill in air, which is -1000 HU."
        )
    return replace(scan, notes=(*scan.notes, *notes)) if notes else scan


@dataclass(frozen=True)
class _Histogram:
    """How often each whole HU occurs.

    Attributes:
        counts: From the lower end of `_RANGE_HU` on.
    """

    counts: NDArray[np.intp]

    @classmethod
    def of(cls, values: NDArray[Any]) -> "_Histogram":
        """Count values; those beyond the range count at its ends."""
        low, high = _RANGE_HU
        whole = np.clip(np.rint(values) if values.dtype.kind == "f" else values, low, high).astype(np.int32)
        return cls(np.bincount(whole - low, minlength=high - low + 1))

    @property
    def total(self) -> int:
        """Number of voxels."""
        return int(self.counts.sum())

    def between(self, low: int, high: int) -> NDArray[np.intp]:
        """Return the counts from `low` to `high` HU, both included."""
        first = _RANGE_HU[0]
        return self.counts[max(low - first, 0) : max(high + 1 - first, 0)]

    def near(self, hu: int) -> int:
        """Return how many voxels have a value, but for rounding."""
        return int(self.between(hu - _BESIDE, hu + _BESIDE).sum())

    def is_spike(self, hu: int) -> bool:
        """Tell whether a value is far more frequent than any other near it."""
        below = self.between(hu - _NEAR_HU, hu - _BESIDE - 1)
        above = self.between(hu + _BESIDE + 1, hu + _NEAR_HU)
        beside = max(int(below.max(initial=0)), int(above.max(initial=0)))
        return self.near(hu) >= max(_SPIKE * beside, _LEAST_VOXELS)

    def most_frequent_spike(self) -> int | None:
        """Return the most frequent value above air, if it is a spike."""
        hu = _WHOLE_HU[0] + int(self.between(_WHOLE_HU[0], _RANGE_HU[1]).argmax())
        return hu if self.near(hu) >= _LEAST_FILLED * self.total and self.is_spike(hu) else None


def _clipped_ends(voxels: _Histogram) -> list[int]:
    """Return the HU that values are clipped to below and above, as far as they are."""
    body = int(voxels.between(TISSUE_FROM, _RANGE_HU[1]).sum())
    ends = []
    low = _clipped_end(voxels.counts, body)
    if low is not None and low + _RANGE_HU[0] > _WHOLE_HU[0]:
        ends.append(low + _RANGE_HU[0])
    # What stands for air is not the body.
    air = [hu for hu in {0, *ends} if hu >= TISSUE_FROM and voxels.is_spike(hu)]
    high = _clipped_end(voxels.counts[::-1], body - sum(map(voxels.near, air)))
    if high is not None and _RANGE_HU[1] - high < _WHOLE_HU[1]:
        ends.append(_RANGE_HU[1] - high)
    return ends


def _clipped_end(counts: NDArray[np.intp], body: int) -> int | None:
    """Return the index of a plateau at the beginning of counts, behind ringing at most; None if there is none."""
    first = int(np.searchsorted(np.cumsum(counts), _OUTLIERS * body, "right"))
    if first == len(counts):
        return None
    searched = counts[first : first + _RINGING_HU + 1]
    place = first + int(searched.argmax())
    plateau = counts[max(place - _BESIDE, 0) : place + _BESIDE + 1].sum()
    inside = counts[place + _BESIDE + 1 : place + _BESIDE + 1 + _INSIDE].sum()
    is_plateau = plateau >= max(_LEAST_CUT * body, _LEAST_VOXELS, _RISE * inside, counts[first : place - _BESIDE].sum())
    return place if is_plateau else None
