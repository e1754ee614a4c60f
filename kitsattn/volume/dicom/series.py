"""CT series in DICOM: a folder, a .zip archive or a multi-frame file, read into one volume in HU.

pydicom reads the headers, numpy the plain voxels, and GDCM (through SimpleITK) the compressed ones. SimpleITK alone
would not do: its reader of series takes files only, not members of an archive, and only warns of missing slices.

Files are searched in all subfolders and told by content, whatever their names. Of several series the CT series with
the most slices is read unless another is chosen; `Volume.notes` names it and the others. Messages show series by
number, description and UID, and errors also the names of files. Names and IDs of patients are never read.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.jobs import available_memory
from kitsattn.volume.archive import Member, members, printable
from kitsattn.volume.dicom.decoder import Decoder, open_decoder
from kitsattn.volume.dicom.headers import Frame, Headers, Image, read_headers
from kitsattn.volume.dicom.pixels import check_format, read_stored
from kitsattn.volume.dicom.stack import Slice, Stack, stack_slices
from kitsattn.volume.orientation import RAS_FROM_LPS, canonical_grid
from kitsattn.volume.volume import Volume
from kitsattn.volume.voxels import scan_values
from kitsattn.words import name_some, plural

_CT = "CT"
_HU_TYPES = ("", "HU", "US", "HU_MOD")
"""Units of rescaled values that are HU: not stated, stated, unspecified, and those of a mono-energetic image."""

_MOST_RESCALE = 1e6
_LONGEST_CHOICE = 64


@dataclass(frozen=True)
class Series:
    """A series of DICOM objects.

    Attributes:
        uid: SeriesInstanceUID.
        number: The number that the scanner gave it; empty if none.
        description: SeriesDescription, fit to be shown.
        modality: What made it: CT, MR, SEG, …
        slices: How many slices it has, or objects where they are no images.
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
        series: Which series: its SeriesInstanceUID or its number. Without it, the CT series with the most slices, if
            all CT series are of one study.

    Returns:
        The scan in (z, y, x): int16 where all HU fit without loss, else float32. Its notes name the series.

    Raises:
        KitsattnError: If there is no such series, or it is not one whole volume of CT: slices are missing, different
            at one place, tilted, irregular, of several sizes or planes, damaged or not in HU, or memory is short.
    """
    with members(path) as files, open_decoder() as decoder:
        stack = find_stack(files, series, decoder, path)
        stored_order = _read_hu(stack, decoder, path).T
    grid, geometry = canonical_grid(stored_order.shape, RAS_FROM_LPS @ stack.affine, path, None)
    return Volume(grid.copy_canonical(stored_order), geometry, grid, stack.notes)


def find_stack(files: Iterable[Member], series: str | None, decoder: Decoder, path: Path) -> Stack:
    """Find the slices of a CT series among files, sort them and check that they form one volume.

    Args:
        files: Of a folder or archive, open.
        series: Which series, as in `read_dicom`.
        decoder: Decodes compressed slices where two lie at one place.
        path: The folder or archive; named in errors.

    Returns:
        The slices. Their notes name the series.

    Raises:
        KitsattnError: As `read_dicom`, but for the voxels.
    """
    headers = read_headers(files)
    _refuse_damaged(headers, path)
    every = _by_series(headers.images)
    images = _choose(every, series, path)
    notes = [_chosen_note(images, every)]
    if headers.other_files:
        notes.append(f"Ignored {plural(headers.other_files, 'file')} of other kinds.")
    slices = _placed_slices(images, notes, path)
    stack = stack_slices(slices, lambda one, other: _same_voxels(one, other, decoder, path), path)
    return replace(stack, notes=(*notes, *stack.notes))


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


def _choose(every: Sequence[list[Image]], series: str | None, path: Path) -> list[Image]:
    described = [_describe(images) for images in every]
    if not described:
        msg = f"{path} holds no DICOM images: name a folder or .zip archive with a CT series"
        raise KitsattnError(msg)
    if series is None:
        found = [index for index, one in enumerate(described) if one.modality == _CT]
        if not found:
            msg = f"{path} holds no CT series, but {_name(described)}: name a folder with a CT series"
            raise KitsattnError(msg)
        studies = len({every[index][0].study_uid for index in found})
        if studies > 1:  # perhaps of several patients, of whom nobody may silently get another one's result
            msg = f"{path} holds CT series of {studies} studies, {_name(described[i] for i in found)}: "
            raise KitsattnError(msg + "name the folder of one study, or choose one by --series")
    else:
        found = [index for index, one in enumerate(described) if series in {one.uid, one.number}]
        if not found:
            msg = f"{path} holds no series {printable(series, _LONGEST_CHOICE)}, but {_name(described)}: choose one"
            raise KitsattnError(msg)
        if len(found) > 1:
            msg = f"{path} holds several series {series}, {_name([described[i] for i in found])}: choose one by its UID"
            raise KitsattnError(msg)
        if described[found[0]].modality != _CT:
            msg = f"{path} holds {described[found[0]]}, which is no CT: choose a CT series"
            raise KitsattnError(msg)
    return every[found[0]]


def _name(described: Iterable[Series]) -> str:
    return name_some(str(series) for series in described)


def _chosen_note(images: list[Image], every: Sequence[list[Image]]) -> str:
    others = [_describe(other) for other in every if other is not images]
    also = f" The input also holds {_name(others)}." if others else ""
    return f"Read {_describe(images)}.{also}"


def _placed_slices(images: Sequence[Image], notes: list[str], path: Path) -> list[Slice]:
    """Return the slices of a series, all of them CT with size and place; what is no slice is left out and noted."""
    slices: list[Slice] = []
    left_out = 0
    for image in images:
        if _is_placed(image):
            slices += [Slice(image, index) for index in range(len(image.frames))]
        elif image.ct_class:
            msg = (
                f"{image.member.name} in {path} does not state where its slices lie, or of what size they are: "
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
    if any(image.photometric == "MONOCHROME1" for image in images):
        notes.append("The series is displayed inverted (MONOCHROME1); its HU were taken as they are stated.")
    if any(item.frame.intercept is None for item in slices):
        notes.append("The series states no rescale intercept; its values were taken as HU.")
    for item in slices:
        _check_rescale(item, path)
    return slices


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
        _hu(next(read_stored(item.image, [item.index], decoder, path)), item, path) for item in (one, other)
    )
    return np.array_equal(first, second)


def _hu(stored: NDArray[Any], item: Slice, path: Path) -> NDArray[Any]:
    return scan_values(stored, *_rescale(item.frame), path)


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
        for place, stored in zip(places, read_stored(image, frames, decoder, path), strict=True):
            values = _hu(stored, stack.slices[place], path)
            if values.dtype == np.float32 and array.dtype == np.int16:  # HU that int16 does not hold
                array = array.astype(np.float32)
            array[place] = values
    return array
