"""The slices of a DICOM series in their order in the patient, and what stops them from being one volume.

Slices are sorted by their place along the normal of their plane, never by number. They must be on a regular grid: a
slice may be up to a tenth of the slice distance off its place along the stack and up to a quarter of a pixel off
across it, since scanners and archives round positions; more than a hundredth is reported. A gap of one and a half
slice distances or more means missing slices, which nobody may guess. A tilted gantry is refused, not straightened:
the label map belongs onto the scan's own slices, and those of a tilted scan form no orthogonal grid. It is in use for
heads, hardly for the abdomen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.volume.dicom.headers import Frame, Image
from kitsattn.volume.orientation import SHEAR_TOLERANCE
from kitsattn.words import plural

SAME_PLACE_MM = 0.01
"""How close two slices are that are at the same place."""

IRREGULAR_TOLERANCE = 0.1
"""How far a slice may be off its regular place along the stack, as a part of the slice distance."""

ACROSS_TOLERANCE = 0.25
"""How far it may be off across the stack, as a part of the smaller pixel spacing."""

_REPORTED = 0.01
_MISSING = 1.5
_SAME_COSINE = 1e-3
_UNIT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Slice:
    """One slice of a series.

    Attributes:
        image: The file that it is in.
        index: Which frame of the file it is.
    """

    image: Image
    index: int

    @property
    def frame(self) -> Frame:
        """Where it is."""
        return self.image.frames[self.index]


@dataclass(frozen=True)
class Stack:
    """The slices of a volume, at least two.

    Attributes:
        slices: In their order along the normal.
        affine: 4 x 4, maps (column, row, slice) to mm towards Left, Posterior, Superior.
        notes: What was odd, a sentence each.
        series: The name by which `--series` chooses their series; empty if nobody has said it yet.
    """

    slices: tuple[Slice, ...]
    affine: NDArray[np.float64]
    notes: tuple[str, ...]
    series: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of slices, rows and columns."""
        return (len(self.slices), self.slices[0].image.rows, self.slices[0].image.columns)


def stack_slices(slices: Sequence[Slice], same_voxels: Callable[[Slice, Slice], bool], path: Path) -> Stack:
    """Sort the slices of a series and check that they form one volume.

    Args:
        slices: All of them with a place, in any order.
        same_voxels: Tells whether two slices at one place hold the same values.
        path: The folder or archive; named in errors.

    Raises:
        KitsattnError: If they are of different sizes or planes, if some are missing or differ at one place, if they
            are tilted or irregular, or if there is one only.
    """
    notes: list[str] = []
    _refuse_different(slices, path)
    along_row, along_column, normal = _axes(slices[0], path)
    kept = sorted(slices, key=lambda item: (float(position_of(item) @ normal), item.image.member.name, item.index))
    kept = _without_duplicates(kept, normal, same_voxels, notes, path)
    if len(kept) == 1:
        msg = f"{path} holds one slice of its series, and a scan has several: name the folder with all of them"
        raise KitsattnError(msg)
    positions = np.array([position_of(item) for item in kept])
    _refuse_gaps(positions @ normal, kept, path)
    step = _regular_step(positions, normal, kept, notes, path)
    tilt = step / np.linalg.norm(step)
    if max(abs(float(tilt @ along_row)), abs(float(tilt @ along_column))) > SHEAR_TOLERANCE:
        angle = np.degrees(np.arccos(min(1.0, float(tilt @ normal))))
        msg = (
            f"{path} has slices that are tilted by {angle:.1f} degrees against their stack (gantry tilt), which form "
            "no orthogonal grid: straighten the series first, with dcm2niix say"
        )
        raise KitsattnError(msg)
    spacing = _spacing(kept[0])
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[1]
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return Stack(tuple(kept), affine, tuple(notes))


def position_of(item: Slice) -> NDArray[np.float64]:
    """Return where the first voxel of a slice of a stack is, in mm towards Left, Posterior, Superior."""
    position = item.frame.position
    assert position is not None
    return position


def _orientation(item: Slice) -> NDArray[np.float64]:
    orientation = item.frame.orientation
    assert orientation is not None
    return orientation


def _spacing(item: Slice) -> NDArray[np.float64]:
    spacing = item.frame.spacing_mm
    assert spacing is not None
    return spacing


def _refuse_different(slices: Sequence[Slice], path: Path) -> None:
    first = slices[0]
    for item in slices:
        if (item.image.rows, item.image.columns) != (first.image.rows, first.image.columns):
            what = "sizes"
            values = [f"{one.image.rows} x {one.image.columns} voxels" for one in (first, item)]
        elif not np.allclose(_spacing(item), _spacing(first), rtol=1e-3, atol=0):
            what = "pixel spacings"
            values = [" x ".join(f"{value:g}" for value in _spacing(one)) + " mm" for one in (first, item)]
        elif not np.allclose(_orientation(item), _orientation(first), rtol=0, atol=_SAME_COSINE):
            what = "orientations"
            values = [one.image.member.name for one in (first, item)]
        else:
            continue
        msg = (
            f"{path} has slices of different {what} in one series ({values[0]} and {values[1]}): "
            "put those of one stack into a folder of their own"
        )
        raise KitsattnError(msg)


def _axes(item: Slice, path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the unit vectors along a row, along a column, and of the normal, which is right-handed to them."""
    along_row, along_column = _orientation(item)[:3], _orientation(item)[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if any(abs(length - 1) > _UNIT_TOLERANCE for length in lengths) or abs(along_row @ along_column) > _UNIT_TOLERANCE:
        msg = f"{item.image.member.name} in {path} states an orientation that is not a rotation: export it again"
        raise KitsattnError(msg)
    if not np.all(_spacing(item) > 0):
        values = " x ".join(f"{value:g}" for value in _spacing(item))
        msg = f"{item.image.member.name} in {path} has a pixel spacing of {values} mm: export it again"
        raise KitsattnError(msg)
    along_row, along_column = along_row / lengths[0], along_column / lengths[1]
    normal = np.cross(along_row, along_column)
    return along_row, along_column, normal / np.linalg.norm(normal)


def _without_duplicates(
    slices: Sequence[Slice],
    normal: NDArray[np.float64],
    same_voxels: Callable[[Slice, Slice], bool],
    notes: list[str],
    path: Path,
) -> list[Slice]:
    kept = [slices[0]]
    for item in slices[1:]:
        before = kept[-1]
        if abs(float((position_of(item) - position_of(before)) @ normal)) > SAME_PLACE_MM:
            kept.append(item)
            continue
        apart = float(np.linalg.norm(position_of(item) - position_of(before)))
        if apart > ACROSS_TOLERANCE * float(_spacing(item).min()) or not same_voxels(before, item):
            msg = (
                f"{path} has different slices at one place in one series, {before.image.member.name} and "
                f"{item.image.member.name}: put those of one scan into a folder of their own"
            )
            raise KitsattnError(msg)
    dropped = len(slices) - len(kept)
    if dropped:
        notes.append(f"Left out {plural(dropped, 'slice')} that the series holds more than once.")
    return kept


def _refuse_gaps(places: NDArray[np.float64], slices: Sequence[Slice], path: Path) -> None:
    distances = np.diff(places)
    usual = float(np.median(distances))
    gaps = np.flatnonzero(distances >= _MISSING * usual)
    if not len(gaps):
        return
    first = int(gaps[0])
    names = f"{slices[first].image.member.name} and {slices[first + 1].image.member.name}"
    missing = round(float(distances[first]) / usual) - 1
    further = f" and at {plural(len(gaps) - 1, 'further place')}" if len(gaps) > 1 else ""
    msg = (
        f"{path} has slices {usual:.3g} mm apart, but {distances[first]:.3g} mm between {names}{further}, as if "
        f"{plural(max(missing, 1), 'slice')} were missing: export the series again, whole"
    )
    raise KitsattnError(msg)


def _regular_step(
    positions: NDArray[np.float64], normal: NDArray[np.float64], slices: Sequence[Slice], notes: list[str], path: Path
) -> NDArray[np.float64]:
    """Return the step from slice to slice; slices that are far off a regular stack are refused, a little off noted."""
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(positions) - 1)
    off = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    distance = float(step @ normal)
    along = off @ normal
    across = np.linalg.norm(off - along[:, None] * normal, axis=1)
    along_part, across_part = np.abs(along) / distance, across / float(_spacing(slices[0]).min())
    worst = int(np.argmax(np.maximum(along_part / IRREGULAR_TOLERANCE, across_part / ACROSS_TOLERANCE)))
    name, off_mm = slices[worst].image.member.name, float(np.linalg.norm(off[worst]))
    if along_part[worst] > IRREGULAR_TOLERANCE or across_part[worst] > ACROSS_TOLERANCE:
        msg = (
            f"{path} has slices that form no regular stack, {distance:.3g} mm apart on average: {name} is "
            f"{off_mm:.3g} mm off its place; reconstruct the series with one slice distance and one field of view"
        )
        raise KitsattnError(msg)
    if max(along_part.max(), across_part.max()) > _REPORTED:
        notes.append(f"The slices are up to {off_mm:.2g} mm off a regular stack, {distance:.4g} mm apart.")
    return step
