"""CT series in DICOM: a folder, a .zip archive or a multi-frame file, read into one volume in HU.

pydicom reads the headers, numpy the plain voxels, and GDCM (through SimpleITK) the compressed ones. SimpleITK alone
would not do: its reader of series takes files only, not members of an archive, and only warns of missing slices.

Files are found in all subfolders and recognised by content, not by name. Of several CT series the best is read
unless another is chosen, see `_rank`; `Volume.notes` names it and the others. Messages show series by number,
description and UID, and errors also the names of files. Names and IDs of patients are never read.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.machine import available_memory
from kitsattn.volume.archive import Member, members, printable
from kitsattn.volume.dicom.decoder import Decoder, open_decoder
from kitsattn.volume.dicom.headers import Frame, Headers, Image, read_headers
from kitsattn.volume.dicom.mixed import ALL, every_nth, find_period, nth_names, split_scans
from kitsattn.volume.dicom.pixels import check_format, read_stored
from kitsattn.volume.dicom.stack import SAME_PLACE_MM, Slice, Stack, stack_slices
from kitsattn.volume.orientation import RAS_FROM_LPS, canonical_grid
from kitsattn.volume.padding import AIR_HU, stated_padding
from kitsattn.volume.volume import Volume
from kitsattn.volume.voxels import scan_values
from kitsattn.words import name_some, plural

_CT = "CT"
_HU_TYPES = ("", "HU", "US", "HU_MOD")
"""Units of rescaled values that are HU: not stated, stated, unspecified, and those of a mono-energetic image."""

_MOST_RESCALE = 1e6
_LOCALIZER = "LOCALIZER"
_NO_SLICES = {
    *("DOSE_INFO", "DOSE INFO", "SCREEN SAVE", "SCREEN_SAVE", "SCREENSHOT", "CT_SOM5 PROT"),
    *("MIP", "MINIP", "MAX_IP", "MIN_IP", "VRT", "VOLREN", "VOLUME_RENDERING", "SSD", "PROJECTION IMAGE"),
}
"""Image types of dose sheets, screen captures, renderings and projections."""

_ORDINALS = {2: "second", 3: "third"}
_LEAST_BITS = 10
"""Of a CT value: 8 bits hold what a window shows."""

_MOST_OFF_AXIAL = 0.5
"""Sine of the angle, 30 degrees, up to which slices are axial: with a tilted gantry they are, in other planes not."""

_LONGEST_CHOICE = 64


@dataclass(frozen=True)
class Series:
    """A series of DICOM objects.

    Attributes:
        uid: SeriesInstanceUID.
        number: The number that the scanner gave it; empty if none.
        description: SeriesDescription, fit to be shown.
        modality: What made it: CT, MR, SEG, …
        slices: How many slices it has, or objects if they are not images.
    """

    uid: str
    number: str
    description: str
    modality: str
    slices: int

    def __str__(self) -> str:
        """Name it as messages do."""
        number = f"series {self.number}" if self.number else "a series without number"
        description = f' "{self.description}"' if self.description else ""
        count = (
            f"{plural(self.slices, 'slice' if self.modality == _CT else 'image')} of {self.modality or 'no modality'}"
        )
        return f"{number}{description} ({count}, UID {self.uid})"


def list_series(path: Path) -> tuple[Series, ...]:
    """Return the series of a DICOM folder, .zip archive or file, those with the most slices first.

    Raises:
        KitsattnError: If `path` is missing or cannot be read, or is an archive that is damaged, encrypted or too large.
    """
    with members(path) as files:
        return tuple(_describe(images) for images in _by_series(read_headers(files).images))


def read_dicom(path: Path, series: str | None = None) -> Volume:
    """Read a CT series.

    Args:
        path: A folder, which is searched with its subfolders, a .zip archive of one, or a multi-frame file.
        series: Which series: its SeriesInstanceUID or its number; of several scans in one series also which scan, as
            in `7:acquisition=2`, see `mixed`. Without it, the best CT series, see `_rank`, if all are of one study.

    Returns:
        The scan in (z, y, x): int16 where all HU fit without loss, else float32. Its notes name the series.

    Raises:
        KitsattnError: If there is no such series, or it is not one whole volume of CT: it holds several scans, slices
            are missing, different at one place, tilted, irregular, of several sizes or planes, damaged or not in HU,
            or memory is short.
    """
    with members(path) as files, open_decoder() as decoder:
        stack = find_stack(files, series, decoder, path)
        hu = _read_hu(stack, decoder, path)
    if not (series or "").endswith(f":{ALL}"):
        _refuse_alternating(hu, stack, path)
    stored_order = hu.T
    grid, geometry = canonical_grid(stored_order.shape, RAS_FROM_LPS @ stack.affine, path, None)
    return Volume(grid.copy_canonical(stored_order), geometry, grid, stack.notes)


def find_stack(files: Iterable[Member], series: str | None, decoder: Decoder, path: Path) -> Stack:
    """Find the slices of a CT series among files, sort them and check that they form one volume.

    Args:
        files: Of a folder or archive, open.
        series: Which series, as in `read_dicom`.
        decoder: Decodes compressed slices where two are at one place.
        path: The folder or archive; named in errors.

    Returns:
        The slices. Their notes name the series.

    Raises:
        KitsattnError: As `read_dicom`, but for the voxels.
    """
    headers = read_headers(files)
    _refuse_damaged(headers, path)
    every = _by_series(headers.images)
    name, _, part = (series or "").partition(":")
    images = _choose(every, name or None, path)
    notes = [_chosen_note(images, every)]
    if headers.other_files:
        notes.append(f"Ignored {plural(headers.other_files, 'file')} of other kinds.")
    short = images[0].series_number
    if not short or sum(other[0].series_number == short for other in every) > 1:
        short = images[0].series_uid
    try:
        slices = _placed_slices(images, notes, path)
        stack = _stack_part(slices, part, short, lambda one, other: _same_voxels(one, other, decoder, path), path)
    except KitsattnError as error:
        others = [_describe(other) for other in every if other is not images and _rank(other).is_scan]
        if not others:
            raise
        msg = f"{error}; or choose another series by --series: {_name(others)}"
        raise KitsattnError(msg) from error
    return replace(stack, series=short, notes=(*notes, *stack.notes))


def _stack_part(
    slices: Sequence[Slice], part: str, series: str, same_voxels: Callable[[Slice, Slice], bool], path: Path
) -> Stack:
    """Stack the slices of the scan that `part` names, of the only one where it names none; see `mixed`."""

    def is_stack(some: Sequence[Slice]) -> bool:
        try:
            stack_slices(some, same_voxels, path)
        except KitsattnError:
            return False
        return True

    scans = {} if part == ALL else split_scans(slices, is_stack)
    if scans and not part:
        msg = f"{path} holds several scans in series {series}, whose slices overlap: {_choices(series, scans)}"
        raise KitsattnError(msg)
    if part in scans:
        chosen = scans[part]
    elif part in {"", ALL}:
        return stack_slices(slices, same_voxels, path)
    else:
        if every_nth(slices, part) is None:
            has = _choices(series, scans) if scans else f"--series {series} reads it as one"
            msg = f"{path} holds no scan {printable(part, _LONGEST_CHOICE)} in series {series}: {has}"
            raise KitsattnError(msg)
        chosen = every_nth(stack_slices(slices, same_voxels, path).slices, part) or []
    stack = stack_slices(chosen, same_voxels, path)
    note = f"Read {part} of the series, {len(chosen)} of {plural(len(slices), 'slice')}."
    return replace(stack, notes=(note, *stack.notes))


def _choices(series: str, scans: Iterable[str]) -> str:
    return "choose " + " or ".join(f"--series {series}:{scan}" for scan in scans)


def _refuse_damaged(headers: Headers, path: Path) -> None:
    # Which series a damaged header belongs to cannot be known, and a slice that is lost at the end leaves no gap.
    if headers.damaged:
        msg = (
            f"{path} holds {plural(len(headers.damaged), 'DICOM file')} with a header that is damaged or cannot be "
            f"read, {name_some(headers.damaged)}: copy or export the series again, or take them out"
        )
        raise KitsattnError(msg)


def _by_series(images: Iterable[Image]) -> list[list[Image]]:
    """Sort images into series, those with the most slices first."""
    groups: dict[str, list[Image]] = {}
    for image in images:
        groups.setdefault(image.series_uid, []).append(image)
    return sorted(groups.values(), key=lambda group: (-_slice_count(group), group[0].series_uid))


def _slice_count(images: Sequence[Image]) -> int:
    return sum(max(1, len(image.frames)) for image in images)


def _describe(images: Sequence[Image]) -> Series:
    first = images[0]
    modality = Counter(image.modality for image in images).most_common(1)[0][0]
    return Series(first.series_uid, first.series_number, first.description, modality, _slice_count(images))


@dataclass(frozen=True, order=True)
class _Rank:
    """How fit a series is to be read as a CT scan; the greatest is read.

    Attributes:
        is_scan: Whether it has two places or more.
        ct_class: Whether these are CT images by their class, and not secondary captures that state a place.
        axial: Whether they are axial, and not a reformat of another plane.
        original: Whether they are original images by their image type, not projections or renderings.
        places: How many places its slices of CT values are at.
    """

    is_scan: bool
    ct_class: bool
    axial: bool
    original: bool
    places: int


def _rank(images: Sequence[Image]) -> _Rank:
    """Rank a series by its slices in space with CT values; captures, colours and localizers are none of these."""
    fit = [image for image in images if _is_scan_image(image)]
    ct_class = any(image.ct_class for image in fit)
    fit = [image for image in fit if image.ct_class == ct_class]
    places = _places(fit)
    return _Rank(
        is_scan=len(places) > 1,
        ct_class=ct_class,
        axial=any(_is_axial(frame) for image in fit for frame in image.frames),
        original=any(not _NO_SLICES.intersection(image.image_type) for image in fit),
        places=len(places),
    )


def _places(images: Sequence[Image]) -> set[tuple[int, ...]]:
    """Return the places of slices; one whose place cannot be read counts, since its scan is refused and not lost."""
    places: set[tuple[int, ...]] = set()
    for image in images:
        for index, frame in enumerate(image.frames):
            if frame.position is None:
                places.add((len(places), index, 0, 0))
            else:
                places.add(tuple(np.rint(frame.position / SAME_PLACE_MM).astype(np.int64).tolist()))
    return places


def _is_scan_image(image: Image) -> bool:
    """Tell whether an image may hold slices in space with CT values; one with a fault may, and is refused when read."""
    return (
        image.modality == _CT
        and image.samples == 1
        and image.photometric.startswith("MONOCHROME")
        and image.bits_stored >= _LEAST_BITS
        and _LOCALIZER not in image.image_type
        and image.rescale_type.upper() in _HU_TYPES
        and ((image.ct_class and len(image.faults) > 0) or _is_placed(image))
        and (image.signed or all(frame.intercept is not None for frame in image.frames) or len(image.faults) > 0)
    )


def _is_axial(frame: Frame) -> bool:
    orientation = frame.orientation
    return orientation is None or float(np.abs(orientation[[2, 5]]).max()) <= _MOST_OFF_AXIAL


def _choose(every: Sequence[list[Image]], series: str | None, path: Path) -> list[Image]:
    described = [_describe(images) for images in every]
    if not described:
        msg = f"{path} holds no DICOM images: name a folder or .zip archive with a CT series"
        raise KitsattnError(msg)
    ranks = [_rank(images) for images in every]
    scans = [index for index, rank in enumerate(ranks) if rank.is_scan]
    if series is None:
        found = scans or [index for index, one in enumerate(described) if one.modality == _CT]
        if not found:
            msg = f"{path} holds no CT series, but {_name(described)}: name a folder with a CT series"
            raise KitsattnError(msg)
        studies = len({every[index][0].study_uid for index in found})
        if studies > 1:  # perhaps of several patients, of whom nobody may silently get another one's result
            msg = f"{path} holds CT series of {studies} studies, {_name(described[i] for i in found)}: "
            raise KitsattnError(msg + "name the folder of one study, or choose one by --series")
        return every[max(found, key=lambda index: (ranks[index], -index))]
    found = [index for index, one in enumerate(described) if series in {one.uid, one.number}]
    if not found:
        named = _name(described[index] for index in scans or range(len(described)))
        msg = f"{path} holds no series {printable(series, _LONGEST_CHOICE)}, but {named}: choose one"
        raise KitsattnError(msg)
    if len(found) > 1:
        msg = f"{path} holds several series {series}, {_name([described[i] for i in found])}: choose one by its UID"
        raise KitsattnError(msg)
    if described[found[0]].modality != _CT:
        named = f" such as {_name(described[index] for index in scans)}" if scans else ""
        msg = f"{path} holds {described[found[0]]}, which is not a CT: choose a CT series{named}"
        raise KitsattnError(msg)
    return every[found[0]]


def _name(described: Iterable[Series]) -> str:
    return name_some(str(series) for series in described)


def _chosen_note(images: list[Image], every: Sequence[list[Image]]) -> str:
    others = [_describe(other) for other in every if other is not images]
    also = f" The input also holds {_name(others)}." if others else ""
    return f"Read {_describe(images)}.{also}"


def _placed_slices(images: Sequence[Image], notes: list[str], path: Path) -> list[Slice]:
    """Return the slices of a series, all of them CT with size and place; other objects are left out and noted."""
    scan_images = [image for image in images if _LOCALIZER not in image.image_type]
    if scan_images and len(scan_images) < len(images):
        notes.append(f"Left out {plural(len(images) - len(scan_images), 'localizer')} of the series.")
        images = scan_images
    slices: list[Slice] = []
    left_out = 0
    for image in images:
        where = f"{image.member.name} in {path}"
        capture = not image.ct_class or _NO_SLICES.intersection(image.image_type)
        is_picture = capture and image.samples != 1
        if image.faults and not is_picture:
            msg = f"In the header of {where}, {image.faults[0]}: correct it, or export the series again"
            raise KitsattnError(msg)
        if _is_placed(image) and not is_picture:
            slices += [Slice(image, index) for index in range(len(image.frames))]
        elif not capture:
            msg = (
                f"{where} does not state where its slices are, or of what size they are: "
                "its header is damaged or not complete, so copy or export the series again"
            )
            raise KitsattnError(msg)
        else:
            left_out += 1
    if not slices:
        msg = f"{path} holds {_describe(images)}, none of which states its place in the patient: export it again"
        raise KitsattnError(msg)
    if left_out:
        notes.append(f"Left out {plural(left_out, 'object')} of the series without a place, such as screen captures.")
    for image in dict.fromkeys(item.image for item in slices):
        check_format(image, path)
    notes += _oddities(slices)
    for item in slices:
        _check_rescale(item, path)
    return slices


def _oddities(slices: Sequence[Slice]) -> list[str]:
    """Return a sentence on each odd way in which the headers of slices state their values."""
    found = []
    if any(item.image.photometric == "MONOCHROME1" for item in slices):
        found.append("The series is displayed inverted (MONOCHROME1); its HU were taken as they are stated.")
    if any(item.frame.intercept is None for item in slices):
        found.append("The series states no rescale intercept; its values were taken as HU.")
    commas = {tag: value for item in reversed(slices) for tag, value in item.image.commas.items()}
    found += [f'{tag} is "{value}"; its comma was read as a decimal point.' for tag, value in sorted(commas.items())]
    return found


def _is_placed(image: Image) -> bool:
    return (
        image.modality == _CT
        and image.rows > 0
        and image.columns > 0
        and len(image.frames) > 0
        and all(
            frame.position is not None and frame.orientation is not None and frame.spacing_mm is not None
            for frame in image.frames
        )
    )


def _check_rescale(item: Slice, path: Path) -> None:
    image, frame = item.image, item.frame
    where = f"{image.member.name} in {path}"
    if image.rescale_type.upper() not in _HU_TYPES:
        msg = f"{where} holds values in {image.rescale_type}, not in HU: choose another series"
        raise KitsattnError(msg)
    if frame.intercept is None and not image.signed:
        msg = f"{where} states no rescale intercept, without which its values are not in HU: export the series again"
        raise KitsattnError(msg)
    slope, intercept = _rescale(frame)
    if not 0 < abs(slope) <= _MOST_RESCALE or abs(intercept) > _MOST_RESCALE:
        msg = f"{where} has the rescale slope {slope:g} and intercept {intercept:g}: export the series again"
        raise KitsattnError(msg)


def _rescale(frame: Frame) -> tuple[float, float]:
    return (1.0 if frame.slope is None else frame.slope, 0.0 if frame.intercept is None else frame.intercept)


def _same_voxels(one: Slice, other: Slice, decoder: Decoder, path: Path) -> bool:
    first, second = (
        _hu(*next(read_stored(item.image, [item.index], decoder, path)), item, path) for item in (one, other)
    )
    return np.array_equal(first, second)


def _hu(stored: NDArray[Any], padding: NDArray[np.bool_] | None, item: Slice, path: Path) -> NDArray[Any]:
    """Turn stored values into HU, and voxels that the header states to be padding into air."""
    slope, intercept = _rescale(item.frame)
    if padding is None or not padding.any():
        return scan_values(stored, slope, intercept, path)
    assert item.image.padding is not None
    low, high = sorted(end * slope + intercept for end in item.image.padding)
    padding = stated_padding(padding, (low, high))
    # A value of the image stands in for them: theirs might not fit into int16.
    values = scan_values(np.where(padding, stored.flat[np.argmin(padding)], stored), slope, intercept, path)
    values[padding] = AIR_HU
    return values


def _read_hu(stack: Stack, decoder: Decoder, path: Path) -> NDArray[Any]:
    """Read the voxels of all slices, (slice, row, column)."""
    shape = stack.shape
    whole = all(float(value).is_integer() for item in stack.slices for value in _rescale(item.frame))
    dtype = np.dtype(np.int16 if whole else np.float32)
    needed = math.prod(shape) * dtype.itemsize
    free = available_memory()
    if needed > free:
        msg = (
            f"{path} announces {' x '.join(map(str, shape))} voxels, which need {needed / 2**30:.1f} GiB of memory, "
            f"and {free / 2**30:.1f} GiB are free: see that the series is right, or use a machine with more memory"
        )
        raise KitsattnError(msg)
    array: NDArray[Any] = np.empty(shape, dtype)
    of_image: dict[Image, list[int]] = {}
    for place, item in enumerate(stack.slices):
        of_image.setdefault(item.image, []).append(place)
    for image, places in of_image.items():
        frames = [stack.slices[place].index for place in places]
        for place, (stored, padding) in zip(places, read_stored(image, frames, decoder, path), strict=True):
            values = _hu(stored, padding, stack.slices[place], path)
            if values.dtype == np.float32 and array.dtype == np.int16:  # HU that int16 does not hold
                array = array.astype(np.float32)
            array[place] = values
    return array


def _refuse_alternating(hu: NDArray[Any], stack: Stack, path: Path) -> None:
    spacing = stack.slices[0].frame.spacing_mm
    assert spacing is not None
    period = find_period(hu, (float(spacing[0]), float(spacing[1])))
    if period is None:
        return
    msg = (
        f"{path} has slices whose brightness takes turns, every {_ORDINALS[period]} alike, as if series {stack.series} "
        f"held {period} scans: {_choices(stack.series, [*nth_names(period), ALL])}"
    )
    raise KitsattnError(msg)
