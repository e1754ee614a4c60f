"""The headers of DICOM images: what a CT series needs of them, and nothing that tells who the patient is.

Read are the series' UID, number, description and modality, the image's type, acquisition number, size, place and
pixel format, and the frames' own places in enhanced multi-frame images. Names, IDs and dates of patients and studies
are skipped over.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from kitsattn.volume.archive import Member, printable

_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
"""What files of old writers begin with, which leave preamble and magic out."""

_META_GROUP = 2
_FIRST_PIXELS = 0x7FE00008
_IMPLICIT_SYNTAX = "1.2.840.10008.1.2"
_BIG_ENDIAN_SYNTAX = "1.2.840.10008.1.2.2"
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""CT images, and enhanced ones, which hold many slices a file."""

_DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
NATIVE_SYNTAXES = (_IMPLICIT_SYNTAX, "1.2.840.10008.1.2.1", _BIG_ENDIAN_SYNTAX)

_TRANSFER_SYNTAX = 0x00020010
_MEDIA_CLASS = 0x00020002
_IMAGE_TYPE = 0x00080008
_CLASS = 0x00080016
_MODALITY = 0x00080060
_DESCRIPTION = 0x0008103E
_STUDY_UID = 0x0020000D
_SERIES_UID = 0x0020000E
_SERIES_NUMBER = 0x00200011
_ACQUISITION = 0x00200012
_POSITION = 0x00200032
_ORIENTATION = 0x00200037
_SAMPLES = 0x00280002
_PHOTOMETRIC = 0x00280004
_FRAMES = 0x00280008
_ROWS = 0x00280010
_COLUMNS = 0x00280011
_SPACING = 0x00280030
_BITS_ALLOCATED = 0x00280100
_BITS_STORED = 0x00280101
_HIGH_BIT = 0x00280102
_SIGNED = 0x00280103
_INTERCEPT = 0x00281052
_SLOPE = 0x00281053
_RESCALE_TYPE = 0x00281054
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230
_POSITION_GROUP = 0x00209113
_ORIENTATION_GROUP = 0x00209116
_MEASURES_GROUP = 0x00289110
_RESCALE_GROUP = 0x00289145

_TAGS = [
    *(_IMAGE_TYPE, _CLASS, _MODALITY, _DESCRIPTION, _STUDY_UID, _SERIES_UID, _SERIES_NUMBER, _ACQUISITION),
    *(_POSITION, _ORIENTATION, _SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _SPACING, _BITS_ALLOCATED),
    *(_BITS_STORED, _HIGH_BIT, _SIGNED, _INTERCEPT, _SLOPE, _RESCALE_TYPE, _SHARED_GROUPS, _FRAME_GROUPS),
]
_LONGEST_TEXT = 64
_LONGEST_IMAGE_TYPE = 256
_LONGEST_VALUE = 1 << 26
"""Longer values are skipped, so that a damaged length asks for no memory; 64 MiB hold the groups of 50,000 frames."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Where a slice lies, and how its stored values turn into HU; a field is None where the file does not state it.

    Attributes:
        position: Of the first voxel, in mm, towards Left, Posterior, Superior.
        orientation: Unit vectors along a row and along a column, six numbers.
        spacing_mm: Between rows, and between columns.
        slope: What stored values are multiplied with.
        intercept: What is added then.
    """

    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing_mm: NDArray[np.float64] | None
    slope: float | None
    intercept: float | None


@dataclass(frozen=True, eq=False)
class Image:
    """A DICOM object of a series: an image with its frames, or something else of another modality.

    Attributes:
        member: The file.
        study_uid: The UID of its study; empty if none.
        series_uid: The UID of its series.
        series_number: The number that the scanner gave the series; empty if none.
        description: The series' description, fit to be shown.
        modality: What made the object: CT, MR, SEG, …
        ct_class: Whether it is by its class a CT image, which must state place and size, and not a screen capture say.
        image_type: Its values in capitals, such as ORIGINAL, PRIMARY, AXIAL.
        acquisition: The number of the acquisition, fit to be shown; empty if none.
        rows: Number of rows, 0 if there are none.
        columns: Number of columns, 0 if there are none.
        samples: Values a voxel.
        photometric: How values are to be displayed.
        bits_allocated: Bits that a voxel takes.
        bits_stored: Bits of those that hold its value.
        high_bit: The highest of those.
        signed: Whether the highest bit is a sign.
        rescale_type: The unit that the rescaled values are in; empty if it is not stated.
        syntax: The UID of the transfer syntax.
        implicit: Whether data elements are stored without their type.
        pixels_at: Where the element of the voxels begins in the file.
        frames: Its slices; none where the object is no image.
    """

    member: Member
    study_uid: str
    series_uid: str
    series_number: str
    description: str
    modality: str
    ct_class: bool
    image_type: tuple[str, ...]
    acquisition: str
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    rescale_type: str
    syntax: str
    implicit: bool
    pixels_at: int
    frames: tuple[Frame, ...]

    @property
    def big_endian(self) -> bool:
        """Whether the highest byte of a number comes first."""
        return self.syntax == _BIG_ENDIAN_SYNTAX

    @property
    def frame_bytes(self) -> int:
        """Bytes of a slice that is stored without compression."""
        return self.rows * self.columns * (self.bits_allocated // 8)


@dataclass(frozen=True)
class Headers:
    """What the files of a folder or archive are.

    Attributes:
        images: The DICOM objects that state their series.
        damaged: Names of files that begin as DICOM and cannot be read further.
        other_files: How many files are none of both.
    """

    images: tuple[Image, ...]
    damaged: tuple[str, ...]
    other_files: int


def read_headers(files: Iterable[Member]) -> Headers:
    """Read the headers of all DICOM files among `files`."""
    images: list[Image] = []
    damaged: list[str] = []
    others = 0
    for member in files:
        try:
            # What pydicom would warn of is either read rightly or ends as a damaged header.
            with member.open() as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = _read_image(file, member)
        except Exception:  # noqa: BLE001 - a parser of bytes that may be anything raises anything
            damaged.append(member.name)
            continue
        if image is None:
            others += 1
        else:
            images.append(image)
    return Headers(tuple(images), tuple(damaged), others)


def _read_image(file: IO[bytes], member: Member) -> Image | None:
    """Read a header; None where the file is no object of a series.

    Raises:
        Exception: Nearly any, where it begins as DICOM and is damaged.
    """
    start = file.read(_PREAMBLE_BYTES + len(_MAGIC))
    marked = start[_PREAMBLE_BYTES:] == _MAGIC
    if not marked:
        if start[:2] not in _FIRST_GROUPS or start[3:4] != b"\0":
            return None
        file.seek(0)
    # Values are taken as they are stored: pydicom would check and convert each of them, with warnings that quote it.
    from pydicom.filereader import read_dataset  # noqa: PLC0415 - who reads no DICOM need not wait for it

    stream = cast("Any", file)
    meta = _Elements(read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group > _META_GROUP))  # noqa: FBT003
    syntax = meta.text(_TRANSFER_SYNTAX) or _IMPLICIT_SYNTAX
    if syntax == _DEFLATED_SYNTAX:
        msg = "a deflated header would be unpacked whole, however large it may become"
        raise NotImplementedError(msg)
    dataset = read_dataset(
        stream,
        syntax == _IMPLICIT_SYNTAX,
        syntax != _BIG_ENDIAN_SYNTAX,
        stop_when=lambda tag, _vr, _length: tag >= _FIRST_PIXELS,
        defer_size=_LONGEST_VALUE,
        specific_tags=cast("Any", _TAGS),
    )
    header = _Elements(dataset)
    if not header.text(_SERIES_UID):
        if marked and meta.text(_MEDIA_CLASS) != _DIRECTORY_CLASS:
            msg = "its header names no series"
            raise EOFError(msg)
        return None
    bits = header.integer(_BITS_ALLOCATED, 16)
    stored = header.integer(_BITS_STORED, bits)
    return Image(
        member=member,
        study_uid=header.text(_STUDY_UID),
        series_uid=header.text(_SERIES_UID),
        series_number=header.text(_SERIES_NUMBER),
        description=header.text(_DESCRIPTION),
        modality=header.text(_MODALITY),
        ct_class=header.text(_CLASS) in _CT_CLASSES,
        image_type=tuple(header.text(_IMAGE_TYPE, _LONGEST_IMAGE_TYPE).upper().split("\\")),
        acquisition=header.text(_ACQUISITION),
        rows=header.integer(_ROWS, 0),
        columns=header.integer(_COLUMNS, 0),
        samples=header.integer(_SAMPLES, 1),
        photometric=header.text(_PHOTOMETRIC),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=header.integer(_HIGH_BIT, stored - 1),
        signed=header.integer(_SIGNED, 0) == 1,
        rescale_type=header.text(_RESCALE_TYPE),
        syntax=syntax,
        implicit=bool(dataset.original_encoding[0]),
        pixels_at=file.tell(),
        frames=_read_frames(header),
    )


class _Elements:
    """The data elements of a data set, by tag, as text and numbers."""

    def __init__(self, dataset: Any) -> None:  # noqa: ANN401 - pydicom's data sets, which give anything
        self._dataset = dataset
        self._little_endian = bool(dataset.original_encoding[1])

    def text(self, tag: int, longest: int = _LONGEST_TEXT) -> str:
        value = self._value(tag)[: 4 * longest]
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        return printable(text, longest)

    def integer(self, tag: int, default: int) -> int:
        value = self._value(tag)
        return int.from_bytes(value[:2], "little" if self._little_endian else "big") if value else default

    def numbers(self, tag: int, count: int) -> NDArray[np.float64] | None:
        """Return decimal numbers; None where there are not `count` finite ones."""
        try:
            values = np.array([float(text) for text in self._value(tag).decode("ascii").strip(" \0").split("\\")])
        except ValueError:
            return None
        return values if len(values) == count and np.all(np.isfinite(values)) else None

    def number(self, tag: int) -> float | None:
        values = self.numbers(tag, 1)
        return None if values is None else float(values[0])

    def items(self, tag: int) -> Sequence["_Elements"]:
        if tag not in self._dataset:
            return []
        return [_Elements(item) for item in self._dataset[tag].value]

    def _value(self, tag: int) -> bytes:
        if tag not in self._dataset:
            return b""
        value = self._dataset.get_item(tag).value
        return value if isinstance(value, bytes) else b""


def _read_frames(header: _Elements) -> tuple[Frame, ...]:
    groups = header.items(_FRAME_GROUPS)
    if groups:
        shared = header.items(_SHARED_GROUPS)[:1]
        return tuple(_read_frame([header, *shared, group], grouped=True) for group in groups)
    count = header.number(_FRAMES)
    if count is not None and count != 1:
        return ()  # several frames that do not state where they lie
    return (_read_frame([header], grouped=False),)


def _read_frame(sources: Sequence[_Elements], *, grouped: bool) -> Frame:
    """Gather what a frame states of itself; a later source counts more."""
    found: dict[int, NDArray[np.float64]] = {}
    asked = (
        (_POSITION, _POSITION_GROUP, 3),
        (_ORIENTATION, _ORIENTATION_GROUP, 6),
        (_SPACING, _MEASURES_GROUP, 2),
        (_SLOPE, _RESCALE_GROUP, 1),
        (_INTERCEPT, _RESCALE_GROUP, 1),
    )
    for tag, group, count in asked:
        for source in sources:
            holders = [source, *(source.items(group) if grouped else [])]
            for holder in holders:
                values = holder.numbers(tag, count)
                if values is not None:
                    found[tag] = values
    slope, intercept = (float(found[tag][0]) if tag in found else None for tag in (_SLOPE, _INTERCEPT))
    return Frame(found.get(_POSITION), found.get(_ORIENTATION), found.get(_SPACING), slope, intercept)
