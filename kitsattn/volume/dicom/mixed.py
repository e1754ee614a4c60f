"""Several scans in one series: two phases, gates or reconstructions that share a SeriesInstanceUID.

Headers tell most of them apart: slices are sorted by what their headers state of the scan (`headers.Frame.traits`), and
they are several scans if each kind is a regular stack of its own and the stacks overlap. Acquisitions that follow each
other along the patient are one scan. Where headers say nothing, the voxels do: with two contrast phases that alternate,
the same place in the patient is brighter in every second slice.

`--series 7:acquisition=2` chooses one of them, `7:slices=1of2` every second slice from the first on, `7:all` all.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from kitsattn.volume.dicom.headers import TRAITS
from kitsattn.volume.dicom.stack import SAME_PLACE_MM, Slice, position_of

ALL = "all"

_MOST_TRAITS = 3
"""How many traits together may tell scans apart, such as acquisition and kernel."""

_NOT_STATED = "none"
_NO_LABEL = re.compile(r"[^\w.+-]+")
_LONGEST_LABEL = 40
_EVERY = re.compile(r"slices=(\d{1,2})of(\d{1,2})")

_PERIODS = (2, 3)
_BLOCK_MM = 20.0
_BLOCK_SAMPLES = 8
_TISSUE_HU = (-200, 300)
_LEAST_SWING_HU = 20.0
_RETURN = 0.25
"""How near the slice one period on comes back to this one, as a part of the swing between them."""

_LEAST_BLOCKS = 3


def split_scans(slices: Sequence[Slice], is_stack: Callable[[Sequence[Slice]], bool]) -> Mapping[str, Sequence[Slice]]:
    """Sort the slices of a series into the scans that their headers tell apart.

    Args:
        slices: Of one series, each with a place, in any order.
        is_stack: Tells whether slices form one regular stack.

    Returns:
        The slices of each scan by its name, such as `acquisition=2`; empty if they are one scan. Where all slices
        together are not a stack, it is enough that one of the kinds is: then only those that are appear.
    """
    varying = [name for name in TRAITS if 1 < len({_label(item, (name,)) for item in slices}) <= len(slices) / 2]
    splits = [
        _split(slices, chosen)
        for count in range(1, min(_MOST_TRAITS, len(varying)) + 1)
        for chosen in combinations(varying, count)
    ]
    splits = [split for split in splits if _overlap(split)]
    for split in splits:
        if all(len(part) > 1 and is_stack(part) for part in split.values()):
            return split
    if not splits or is_stack(slices):
        return {}
    for split in splits:
        stacks = {name: part for name, part in split.items() if is_stack(part)}
        if 2 * sum(map(len, stacks.values())) >= len(slices):
            return stacks
    return {}


def every_nth(stacked: Sequence[Slice], part: str) -> Sequence[Slice] | None:
    """Return the slices of a stack that `slices=1of2` names, counted from 1; None if `part` is not such a name."""
    match = _EVERY.fullmatch(part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= len(stacked):
        return None
    return stacked[int(match[1]) - 1 :: int(match[2])]


def nth_names(period: int) -> list[str]:
    """Name the scans whose slices take turns."""
    return [f"slices={number}of{period}" for number in range(1, period + 1)]


def find_period(hu: NDArray[np.int16 | np.float32], spacing_mm: tuple[float, float]) -> int | None:
    """Return after how many slices the brightness of tissue comes back, as where phases take turns; None if never.

    Each slice is divided into blocks of 20 mm, whose mean over soft tissue hardly has noise. A block takes turns if its
    brightness swings by 20 HU or more and comes back to a quarter of that, for two periods on end. No anatomy does that
    in three blocks of the same slices.

    Args:
        hu: (slice, row, column).
        spacing_mm: Between rows, and between columns.
    """
    means = _block_means(hu, spacing_mm)
    for period in _PERIODS:
        runs = 2 * period
        if len(means) < runs + period:
            continue
        begins = range(len(means) - period)
        swing = np.array([np.ptp(means[begin : begin + period], axis=0) for begin in begins])
        back = np.abs(means[period:] - means[:-period])
        turns = (swing >= _LEAST_SWING_HU) & (back <= _RETURN * swing)
        steady = np.lib.stride_tricks.sliding_window_view(turns, runs, axis=0).all(axis=-1)
        if steady.sum(axis=1).max() >= _LEAST_BLOCKS:
            return period
    return None


def _label(item: Slice, names: Sequence[str]) -> str:
    """Name what a slice states, so that it can be typed in a shell; 650.0 and 650 are the same."""
    return ",".join(f"{name}={_plain(item.frame.traits.get(name, _NOT_STATED))}" for name in names)


def _plain(value: str) -> str:
    try:
        return f"{float(value):.10g}"
    except ValueError:
        return _NO_LABEL.sub("-", value).strip("-")[:_LONGEST_LABEL]


def _split(slices: Sequence[Slice], names: Sequence[str]) -> dict[str, list[Slice]]:
    parts: dict[str, list[Slice]] = {}
    for item in slices:
        parts.setdefault(_label(item, names), []).append(item)
    return dict(sorted(parts.items(), key=lambda part: _natural(part[0])))


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort `acquisition=2` before `acquisition=10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _overlap(parts: Mapping[str, Sequence[Slice]]) -> bool:
    """Tell whether two parts share a stretch of the patient, along the normal of the first slice."""
    first = next(iter(parts.values()))[0].frame.orientation
    assert first is not None
    normal = np.cross(first[:3], first[3:])
    places = [[float(position_of(item) @ normal) for item in part] for part in parts.values()]
    ends = sorted((min(part), max(part)) for part in places)
    return any(after[0] <= before[1] + SAME_PLACE_MM for before, after in pairwise(ends))


def _block_means(hu: NDArray[np.int16 | np.float32], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    """Return the mean of soft tissue in each block, (slice, block)."""
    sides = [max(1, min(size, round(_BLOCK_MM / step))) for size, step in zip(hu.shape[1:], spacing_mm, strict=True)]
    steps = [max(1, side // _BLOCK_SAMPLES) for side in sides]
    counts = [size // side for size, side in zip(hu.shape[1:], sides, strict=True)]
    places = [
        (np.arange(count)[:, None] * side + np.arange(0, side, step)).ravel()
        for count, side, step in zip(counts, sides, steps, strict=True)
    ]
    taken = [len(range(0, side, step)) for side, step in zip(sides, steps, strict=True)]
    means = []
    for one in hu:
        sample = np.clip(one[np.ix_(*places)], *_TISSUE_HU).astype(np.float32)
        means.append(sample.reshape(counts[0], taken[0], counts[1], taken[1]).mean(axis=(1, 3)).ravel())
    return np.array(means)
