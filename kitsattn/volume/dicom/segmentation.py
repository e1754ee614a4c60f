"""Label maps of DICOM series as DICOM Segmentation objects, which viewers lay over the series.

highdicom (extra `dicom`) builds the object. It is binary, is on the slices of the series as they are, not on a grid
of its own, and refers to each of them. As the standard demands, it belongs to the same patient and study: it holds
their names, IDs and dates as the series states them, and the scanner. So it is as confidential as the series is.

A frame is one class in one slice. Frames without a voxel are left out, as viewers expect; a class without any voxel
is described all the same, so that "no tumour found" differs from "no tumour looked for". A file needs a frame, so an
empty label map keeps the first slice, blank, of each class: a few kilobytes instead of every slice of every class.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path
from kitsattn.labels import BACKGROUND, check_labels
from kitsattn.version import __version__
from kitsattn.volume.archive import Member, members
from kitsattn.volume.dicom.decoder import open_decoder
from kitsattn.volume.dicom.series import find_stack
from kitsattn.volume.dicom.stack import Stack, position_of
from kitsattn.volume.orientation import RAS_FROM_LPS, canonical_grid
from kitsattn.volume.volume import Volume

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.dataset import Dataset

_CONCEPTS = {
    "kidney": ("AnatomicalStructure", "Kidney"),
    "tumour": ("MorphologicallyAbnormalStructure", "Neoplasm"),
    "cyst": ("MorphologicallyAbnormalStructure", "Cyst"),
}
"""Class name -> category (CID 7150) and type (CID 7151) among pydicom's names of SNOMED CT codes."""

_OTHER_CONCEPT = ("Tissue", "Tissue")
_ABNORMAL = "MorphologicallyAbnormalStructure"

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
"""What must be stated of each slice for a segmentation to refer to it."""

_SHARED = ("StudyInstanceUID", "FrameOfReferenceUID")
"""What must be the same for all slices."""

_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
"""What must be there, with or without a value."""

_OF_EACH_SLICE = [
    *(*_IDENTITY, "SeriesInstanceUID", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
]
_FRAMES = "PerFrameFunctionalGroupsSequence"
_SEXES = ("M", "F", "O")
_SERIES_NUMBER = 300
"""Where viewers list the segmentation among the series of the study; any number above 0 is allowed."""

_LABEL_VALUES = 256


@dataclass(frozen=True, eq=False)
class _Source:
    """The series that a label map belongs to.

    Attributes:
        stack: Its slices in their order.
        headers: Those of their files, as highdicom takes them: one for each slice, or the one of a multi-frame file.
    """

    stack: Stack
    headers: "list[Dataset]"


def check_source(source: Path, series: str | None = None) -> None:
    """Refuse a scan that no DICOM Segmentation can refer to; reads headers only.

    Args:
        source: What the scan was read from: a DICOM folder, .zip archive or multi-frame file.
        series: Which series, as in `read_dicom`.

    Raises:
        KitsattnError: If highdicom is not installed, the scan is no DICOM series or the headers of its series do not
            state what a segmentation must refer to.
    """
    _require_highdicom()
    _read_source(source, series)


def write_segmentation(
    path: Path,
    labels: Volume,
    source: Path,
    series: str | None = None,
    *,
    classes: Mapping[str, int],
    model: str,
    note: str,
    overwrite: bool = False,
) -> None:
    """Write the label map of a DICOM series as a DICOM Segmentation.

    Names, IDs and dates of the patient and the study are copied from the series, as the standard demands.

    Args:
        path: The file to write, .dcm by custom.
        labels: (z, y, x), uint8, on the grid of the series as `read_dicom` gives it.
        source: What the scan was read from: a DICOM folder, .zip archive or multi-frame file.
        series: Which series, as in `read_dicom`.
        classes: Class name to value, background included; each other one becomes a segment, in the order of the values.
        model: Name of the network.
        note: Where the labels come from; kept as the image's comment.
        overwrite: Whether an existing file may be replaced.

    Raises:
        KitsattnError: If highdicom is not installed, the scan is no DICOM series or does not state what a segmentation
            must refer to, the labels are on another grid or hold unknown values, or the file exists and may not be
            replaced, or cannot be written.
    """
    _require_highdicom()
    found = _read_source(source, series)
    masks = _stored_order(labels, found, classes, source)
    with _header_errors(source):
        dataset = _build(masks, found, classes, model, note)
    with atomic_path(path, overwrite=overwrite) as temporary, _header_errors(source):
        dataset.save_as(temporary, enforce_file_format=True)


def _require_highdicom() -> None:
    try:
        import highdicom  # noqa: F401, PLC0415 - the package may be missing
    except ImportError as error:
        msg = "DICOM Segmentations need the package highdicom: pip install 'kitsattn[dicom]'"
        raise KitsattnError(msg) from error


@contextmanager
def _header_errors(source: Path) -> Iterator[None]:
    """Turn what highdicom and pydicom raise of odd headers into one line, without the values, which name patients."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (KitsattnError, OSError):
        raise
    except Exception as error:
        msg = (
            f"{source} has headers that no DICOM Segmentation can be made from ({type(error).__name__}): "
            "export the series again, or write another format"
        )
        raise KitsattnError(msg) from error


def _read_source(source: Path, series: str | None) -> _Source:
    with members(source) as files, open_decoder() as decoder:
        stack = find_stack(files, series, decoder, source)
        images = list(dict.fromkeys(item.image for item in stack.slices))
        with _header_errors(source):
            # Headers may be long, with tables of the maker's: one is kept whole, for patient and study.
            headers = [
                _read_header(images[0].member),
                *(_read_header(one.member, _OF_EACH_SLICE) for one in images[1:]),
            ]
            _check_identity(headers, [f"{image.member.name} in {source}" for image in images])
            _complete(headers[0])
            if _FRAMES in headers[0] and len(headers) > 1:
                msg = (
                    f"{source} holds its series in {len(headers)} multi-frame files, and a DICOM Segmentation can "
                    "refer to one: export the series as single slices, or write another format"
                )
                raise KitsattnError(msg)
            _set_grid(headers, stack)
    return _Source(stack, headers)


def _read_header(member: Member, keywords: list[str] | None = None) -> "Dataset":
    from pydicom import dcmread  # noqa: PLC0415 - who writes no DICOM need not wait for it

    with member.open() as file:
        return dcmread(file, stop_before_pixels=True, force=True, specific_tags=keywords)


def _check_identity(headers: "list[Dataset]", names: list[str]) -> None:
    met: set[str] = set()
    for header, name in zip(headers, names, strict=True):
        wrong = [f"no {keyword}" for keyword in _IDENTITY if not header.get(keyword)]
        wrong += [
            f"another {keyword} than other slices"
            for keyword in _SHARED
            if header.get(keyword) != headers[0].get(keyword)
        ]
        wrong += ["the SOPInstanceUID of another slice"] if header.get("SOPInstanceUID") in met else []
        if wrong:
            msg = (
                f"{name} states {wrong[0]}, so that no DICOM Segmentation can refer to it: "
                "export the series again, or write another format"
            )
            raise KitsattnError(msg)
        met.add(header.SOPInstanceUID)


def _complete(header: "Dataset") -> None:
    """Add attributes that anonymisers remove although the standard requires them, and empty invalid values."""
    from pydicom.valuerep import DA, TM  # noqa: PLC0415 - who writes no DICOM need not wait for it

    kinds = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
    for keyword in _MAY_BE_EMPTY:
        value = header.get(keyword)
        try:
            kinds.get(keyword, str)(value)
        except ValueError:
            value = None
        if value is None or (keyword == "PatientSex" and value not in _SEXES):
            setattr(header, keyword, None)


def _set_grid(headers: "list[Dataset]", stack: Stack) -> None:
    """Let the headers state one orientation and the true slice distance.

    Orientations may differ in their last digits, and GE's spacing between slices is negative where slices run down.
    """
    spacing_mm = f"{np.linalg.norm(stack.affine[:3, 2]):.9g}"
    first = headers[0]
    measures = first
    if _FRAMES in first:
        shared, frame = first.SharedFunctionalGroupsSequence[0], first.PerFrameFunctionalGroupsSequence[0]
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            if keyword not in shared:
                setattr(shared, keyword, frame[keyword].value)
        measures = shared.PixelMeasuresSequence[0]
    for header in headers[1:]:
        header.ImageOrientationPatient = first.ImageOrientationPatient
    measures.SpacingBetweenSlices = spacing_mm
    if not measures.get("SliceThickness"):
        measures.SliceThickness = spacing_mm


def _stored_order(labels: Volume, found: _Source, classes: Mapping[str, int], source: Path) -> NDArray[np.uint8]:
    """Turn a label map into segment numbers, (slice, row, column), in the order of the stack."""
    grid, geometry = canonical_grid(found.stack.shape[::-1], RAS_FROM_LPS @ found.stack.affine, source, None)
    difference = labels.geometry.difference(geometry)
    if difference is not None:
        msg = f"the label map is not on the series of {source} ({difference}): name the scan it was made from"
        raise KitsattnError(msg)
    number = np.zeros(_LABEL_VALUES, np.uint8)
    for place, value in enumerate(_segments(classes).values(), 1):
        number[value] = place
    stored = grid.to_file(labels.array).T
    masks = np.empty(stored.shape, np.uint8)
    held = np.zeros(_LABEL_VALUES, bool)
    for mask, values in zip(masks, stored, strict=True):
        held[values] = True
        mask[:] = number[values]
    check_labels(np.flatnonzero(held).tolist(), classes, "the label map")
    return masks


def _segments(classes: Mapping[str, int]) -> dict[str, int]:
    """Return the classes but the background, in the order of their values."""
    values = {name: value for name, value in classes.items() if value != BACKGROUND}
    return dict(sorted(values.items(), key=lambda item: item[1]))


def _build(
    masks: NDArray[np.uint8], found: _Source, classes: Mapping[str, int], model: str, note: str
) -> "Segmentation":
    from highdicom import UID, PlanePositionSequence  # noqa: PLC0415 - who writes no DICOM need not wait for it
    from highdicom.seg import Segmentation  # noqa: PLC0415

    empty = not masks.any()
    kept = slice(1 if empty else None)
    # highdicom finds the slice at each position, and takes the position as that slice states it.
    positions = [PlanePositionSequence("PATIENT", position_of(item).tolist()) for item in found.stack.slices[kept]]
    dataset = Segmentation(
        source_images=found.headers,
        pixel_array=masks[kept],
        plane_positions=positions,
        omit_empty_frames=not empty,
        segmentation_type="BINARY",
        segment_descriptions=[_describe(number, name, model) for number, name in enumerate(_segments(classes), 1)],
        series_instance_uid=UID(),
        series_number=_SERIES_NUMBER,
        series_description="kitsattn segmentation",
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="kitsattn",
        manufacturer_model_name=model,
        software_versions=__version__,
        device_serial_number="none",  # software has none, and it may not be empty
        content_label="KITSATTN",
        content_description=f"kitsattn {__version__}, {model}",
        specific_character_set="ISO_IR 192",  # UTF-8 holds whatever the series' own holds
    )
    dataset.ImageComments = note
    return dataset


def _describe(number: int, name: str, model: str) -> "SegmentDescription":
    from highdicom import UID, AlgorithmIdentificationSequence  # noqa: PLC0415 - who writes no DICOM need not wait
    from highdicom.seg import SegmentDescription  # noqa: PLC0415
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    category, kind = _CONCEPTS.get(name, _OTHER_CONCEPT)
    algorithm = AlgorithmIdentificationSequence(
        "kitsattn", codes.DCM.ArtificialIntelligence, __version__, parameters={"model": model}
    )
    return SegmentDescription(
        number,
        name,
        getattr(codes.SCT, category),
        getattr(codes.SCT, kind),
        "AUTOMATIC",
        algorithm,
        tracking_uid=UID(),
        tracking_id=f"kitsattn {name}",
        anatomic_regions=[codes.SCT.Kidney] if category == _ABNORMAL else None,
    )
