"""The headers of DICOM images: what a CT series needs of them, and nothing that tells who the patient is.

Read are the series' UID, number, description and modality, the image's type, size, place, pixel format and padding,
what tells several scans of one series apart, and the frames' own places in enhanced multi-frame images. Names, IDs
and dates of patients and studies are skipped over.

A number that is absent and one that cannot be read are different things: the first may have a default, the second is
kept in `Image.faults`, and its series is refused.
"""

import re
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
_PADDING = 0x00280120
_PADDING_LIMIT = 0x00280121
_INTERCEPT = 0x00281052
_SLOPE = 0x00281053
_RESCALE_TYPE = 0x00281054
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230
_POSITION_GROUP = 0x00209113
_ORIENTATION_GROUP = 0x00209116
_MEASURES_GROUP = 0x00289110
_RESCALE_GROUP = 0x00289145

TRAITS: Mapping[str, tuple[int, ...]] = {
    "acquisition": (0x00200012, 0x00209156),
    "temporal": (0x00200100, 0x00209128),
    "cardiac": (0x00209241,),
    "respiratory": (0x00209245,),
    "trigger": (0x00181060, 0x00209153),
    "echo": (0x00180086,),
    "stack": (0x00209056,),
    "kernel": (0x00181210,),
    "algorithm": (0x00189315,),
    "filter": (0x00181160,),
    "thickness": (0x00180050,),
    "kvp": (0x00180060,),
    "event": (0x00083010,),
    "type": (_IMAGE_TYPE, 0x00089007),
    "description": (_DESCRIPTION,),
}
"""What may tell scans of one series apart, by the name that `--series` gives it; the second tag is an enhanced image's.

In this order: acquisition number, temporal position, percentage of the cardiac and of the respiratory phase, trigger
time, echo, stack, convolution kernel, reconstruction algorithm, filter, slice thickness, tube voltage, irradiation
event, image or frame type, series description.
"""

_TRAIT_GROUPS = (0x00209111, 0x00189118, 0x00209253, 0x00189314, 0x00189304, 0x00189325, _MEASURES_GROUP, 0x00189329)
"""Functional groups that hold them: frame content, cardiac and respiratory synchronisation, reconstruction,
acquisition details, X-ray details, pixel measures, frame type."""

_TAGS = [
    *(_IMAGE_TYPE, _CLASS, _MODALITY, _DESCRIPTION, _STUDY_UID, _SERIES_UID, _SERIES_NUMBER, _POSITION, _ORIENTATION),
    *(_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _SPACING, _BITS_ALLOCATED, _BITS_STORED, _HIGH_BIT, _SIGNED),
    *(_PADDING, _PADDING_LIMIT, _INTERCEPT, _SLOPE, _RESCALE_TYPE, _SHARED_GROUPS, _FRAME_GROUPS),
    *(tag for tags in TRAITS.values() for tag in tags),
]
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
"""Value representations (VR) of binary numbers, with their format in `struct`."""

_BYTES = ("OB", "OD", "OF", "OL", "OV", "OW", "AT")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""A decimal string (DS) of the standard; `float` would also read `1_0`, `nan` and other digits."""

_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9],\d{3}", re.ASCII)
_NO_TEXT = b"a sequence"
_BLANK = b" "
_COUNTS = {1: "one decimal number", 2: "two decimal numbers", 3: "three decimal numbers", 6: "six decimal numbers"}
_LONGEST_TEXT = 64
_LONGEST_BYTES = 16
_LONGEST_IMAGE_TYPE = 256
_LONGEST_VALUE = 1 << 26
"""Longer values are skipped, so that a damaged length asks for no memory; 64 MiB hold the groups of 50,000 frames."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Where a slice is, how its stored values turn into HU, and what scan it belongs to; None is not stated.

    Attributes:
        position: Of the first voxel, in mm, towards Left, Posterior, Superior.
        orientation: Unit vectors along a row and along a column, six numbers.
        spacing_mm: Between rows, and between columns.
        slope: What stored values are multiplied with.
        intercept: What is added then.
        traits: What may tell it apart from slices of other scans in the series, see `TRAITS`; only what is stated.
    """

    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing_mm: NDArray[np.float64] | None
    slope: float | None
    intercept: float | None
    traits: Mapping[str, str]


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
        rows: Number of rows, 0 if there are none.
        columns: Number of columns, 0 if there are none.
        samples: Values a voxel.
        photometric: How values are to be displayed.
        bits_allocated: Bits that a voxel takes.
        bits_stored: Bits of those that hold its value.
        high_bit: The highest of those.
        signed: Whether the highest bit is a sign.
        padding: The least and the greatest stored value of padding; None if the header states none.
        rescale_type: The unit that the rescaled values are in; empty if it is not stated.
        syntax: The UID of the transfer syntax.
        implicit: Whether data elements are stored without their type.
        pixels_at: Where the element of the voxels begins in the file.
        frames: Its slices; none if the object is not an image.
        faults: Numbers of its header that are stated and cannot be read, with their tag and value.
        commas: Numbers that were read with a decimal comma: tag and value, by keyword.
    """

    member: Member
    study_uid: str
    series_uid: str
    series_number: str
    description: str
    modality: str
    ct_class: bool
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    rescale_type: str
    syntax: str
    implicit: bool
    pixels_at: int
    frames: tuple[Frame, ...]
    faults: tuple[str, ...]
    commas: Mapping[str, str]

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
    """Read a header; None if the file is not part of a series.

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
    signed = header.integer(_SIGNED, 0)
    if signed not in {0, 1}:
        header.report.fault(header, _SIGNED, "neither 0 nor 1")
    frames = _read_frames(header)
    return Image(
        member=member,
        study_uid=header.text(_STUDY_UID),
        series_uid=header.text(_SERIES_UID),
        series_number=header.text(_SERIES_NUMBER),
        description=header.text(_DESCRIPTION),
        modality=header.text(_MODALITY),
        ct_class=header.text(_CLASS) in _CT_CLASSES,
        image_type=tuple(header.text(_IMAGE_TYPE, _LONGEST_IMAGE_TYPE).upper().split("\\")),
        rows=header.integer(_ROWS, 0),
        columns=header.integer(_COLUMNS, 0),
        samples=header.integer(_SAMPLES, 1),
        photometric=header.text(_PHOTOMETRIC),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=header.integer(_HIGH_BIT, stored - 1),
        signed=signed == 1,
        padding=_read_padding(header, max(1, min(bits, 16)), signed=signed == 1),
        rescale_type=header.text(_RESCALE_TYPE),
        syntax=syntax,
        implicit=bool(dataset.original_encoding[0]),
        pixels_at=file.tell(),
        frames=frames,
        faults=tuple(header.report.faults),
        commas=header.report.commas,
    )


@dataclass
class _Report:
    """What is odd about the numbers of a header; see `Image`."""

    faults: dict[str, None] = field(default_factory=dict)
    commas: dict[str, str] = field(default_factory=dict)

    def fault(self, elements: "_Elements", tag: int, reason: str) -> None:
        """Keep that a value is stated and cannot be used; once, in however many frames it stands."""
        self.faults[f"{_name(tag)} is {elements.quoted(tag)}, {reason}"] = None


class _Elements:
    """The data elements of a data set, by tag, as text and numbers; items of its sequences share its report."""

    def __init__(self, dataset: Any, report: _Report | None = None) -> None:  # noqa: ANN401 - pydicom's data sets
        self._dataset = dataset
        self._order = "<" if dataset.original_encoding[1] else ">"
        self.report = report or _Report()

    def text(self, tag: int, longest: int = _LONGEST_TEXT) -> str:
        value = self._value(tag)[: 4 * longest]
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        return printable(text, longest)

    def shown(self, tag: int) -> str:
        """Return a value of any representation as text that can be shown."""
        value, kind = self._value(tag), self._representation(tag)
        size = struct.calcsize(_BINARY.get(kind, "B"))
        if kind in _BINARY and len(value) % size == 0:
            count = len(value) // size
            return "\\".join(f"{number:g}" for number in struct.unpack(f"{self._order}{count}{_BINARY[kind]}", value))
        text = self.text(tag) if kind not in _BYTES and value.isascii() else ""
        return text or value[:_LONGEST_BYTES].hex(" ")

    def quoted(self, tag: int) -> str:
        """Return a value in quotation marks, with its representation where that is not the one of text."""
        kind = self._representation(tag)
        return f'"{self.shown(tag)}"' + (f" in binary ({kind})" if kind in _BINARY or kind in _BYTES else "")

    def states(self, tag: int) -> bool:
        """Tell whether an element is there and has a value."""
        return bool(self._value(tag).strip(_BLANK)) or (
            len(self._value(tag)) > 0 and self._representation(tag) in _BINARY
        )

    def integer(self, tag: int, default: int) -> int:
        """Return one binary whole number, `default` where none is stated; what cannot be read is reported."""
        value = self._value(tag)
        if not value:
            return default
        kind = self._representation(tag)
        kind = "US" if kind == "OW" else kind  # some writers of padding, whose VR the standard leaves open, take it
        if kind not in {"US", "SS", "UL", "SL"} or len(value) != struct.calcsize(_BINARY[kind]):
            self.report.fault(self, tag, "not one binary whole number")
            return default
        return int(struct.unpack(f"{self._order}{_BINARY[kind]}", value)[0])

    def numbers(self, tag: int, count: int) -> NDArray[np.float64] | None:
        """Return `count` decimal numbers; None where none are stated, or where they cannot be read, which is reported.

        A decimal comma is read as a point, unless `1,024` may as well be 1024.
        """
        stated = self._value(tag)
        if not stated.strip(_BLANK):
            return None
        kind = self._representation(tag)
        texts = [text.strip() for text in stated.decode("latin-1").strip("\0 ").split("\\")]
        values: list[float] = []
        if kind not in _BINARY and kind not in _BYTES:
            values = [
                float(text.replace(",", ".")) for text in texts if _DECIMAL.fullmatch(text) or _COMMA.fullmatch(text)
            ]
        if len(values) != len(texts) or len(values) != count or not np.all(np.isfinite(values)):
            self.report.fault(self, tag, f"not {_COUNTS[count]}")
            return None
        if tag in {_INTERCEPT, _POSITION} and any(_THOUSANDS.fullmatch(text) for text in texts):
            self.report.fault(self, tag, "whose comma may stand for a decimal point or group thousands")
            return None
        if b"," in stated:
            self.report.commas.setdefault(_name(tag), self.shown(tag))
        return np.array(values)

    def items(self, tag: int) -> Sequence["_Elements"]:
        if tag not in self._dataset:
            return []
        return [_Elements(item, self.report) for item in self._dataset[tag].value]

    def _value(self, tag: int) -> bytes:
        if tag not in self._dataset:
            return b""
        value = self._dataset.get_item(tag).value
        return value if isinstance(value, bytes) else _NO_TEXT if value else b""

    def _representation(self, tag: int) -> str:
        """Return the VR of an element, that of the dictionary where the file names none."""
        from pydicom.datadict import dictionary_VR  # noqa: PLC0415 - who reads no DICOM need not wait for it

        kind = self._dataset.get_item(tag).VR
        kind = dictionary_VR(tag) if kind in {None, "UN"} else str(kind)
        return "US" if kind == "US or SS" else kind


def _name(tag: int) -> str:
    """Name a tag as in `RescaleSlope (0028,1053)`."""
    from pydicom.datadict import keyword_for_tag  # noqa: PLC0415 - who reads no DICOM need not wait for it

    return f"{keyword_for_tag(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _read_padding(header: _Elements, bits: int, *, signed: bool) -> tuple[int, int] | None:
    """Return the least and the greatest stored value that is padding, signed as voxels are, whatever its own VR is."""
    if not header.states(_PADDING):
        return None
    value = header.integer(_PADDING, 0)
    ends = sorted(_as_voxel(one, bits, signed=signed) for one in (value, header.integer(_PADDING_LIMIT, value)))
    return ends[0], ends[1]


def _as_voxel(value: int, bits: int, *, signed: bool) -> int:
    """Take the bits of a value, those of a voxel or 16, for signed or unsigned; what needs more is left as it is."""
    for span in (1 << bits, 1 << 16):
        sign = span >> 1
        if signed and sign <= value < span:
            value -= span
        elif not signed and -sign <= value < 0:
            value += span
    return value


def _read_frames(header: _Elements) -> tuple[Frame, ...]:
    groups = header.items(_FRAME_GROUPS)
    if groups:
        shared = header.items(_SHARED_GROUPS)[:1]
        return tuple(_read_frame([header, *shared, group], grouped=True) for group in groups)
    count = header.numbers(_FRAMES, 1)
    if count is not None and count[0] != 1:
        return ()  # several frames that do not state where they are
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
    traits = _read_traits(sources, grouped=grouped)
    return Frame(found.get(_POSITION), found.get(_ORIENTATION), found.get(_SPACING), slope, intercept, traits)


def _read_traits(sources: Sequence[_Elements], *, grouped: bool) -> dict[str, str]:
    traits: dict[str, str] = {}
    for source in sources:
        inner = [item for group in _TRAIT_GROUPS for item in source.items(group)] if grouped else []
        for holder in (source, *inner):
            for name, tags in TRAITS.items():
                for tag in tags:
                    if holder.states(tag):
                        traits[name] = holder.shown(tag)
    return traits
