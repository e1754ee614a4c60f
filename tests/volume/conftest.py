"""DICOM files with any header, one slice or series at a time."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_data_element
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

WriteSlice = Callable[..., Path]
LONG_KINDS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UT"}
"""Value representations whose length takes four bytes."""


def make_dataset(hu: np.ndarray, z_mm: float = 0.0, **changes: Any) -> Dataset:
    """Return a slice; `changes` are by the names of DICOM, and None removes what it names."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    series = changes.get("SeriesInstanceUID", "1.2.3")
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"{series}.{round(1000 * z_mm) + 10**6}.{changes.pop('copy', 0)}",
        "Modality": "CT",
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": series,
        "SeriesNumber": 7,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [-100.0, -120.0, z_mm],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [2.0, 2.5],
        "Rows": hu.shape[0],
        "Columns": hu.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": (hu + 1024).astype(np.uint16).tobytes(),
    }
    for name, value in (values | changes).items():
        if value is not None:
            setattr(dataset, name, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    return dataset


@pytest.fixture(scope="session")
def write_slice() -> WriteSlice:
    """A function that writes a slice: file, HU of shape (rows, columns), height in mm, changes by the names of DICOM.

    `raw` are elements as bytes, by tag, with their value representation; `copy` tells slices of one height apart.
    """

    def write(
        path: Path,
        hu: np.ndarray,
        z_mm: float = 0.0,
        raw: dict[int, tuple[str, bytes]] | None = None,
        **changes: Any,
    ) -> Path:
        dataset = make_dataset(hu, z_mm, **changes)
        implicit = dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        path.parent.mkdir(parents=True, exist_ok=True)
        head = Dataset()
        head.file_meta = dataset.file_meta
        head.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        head.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        with path.open("wb") as file:
            pydicom.dcmwrite(file, head, enforce_file_format=True)
            stream = DicomIO(file)
            stream.is_little_endian, stream.is_implicit_VR = True, implicit
            changed = raw or {}
            for tag in sorted({*dataset.keys(), *changed}):
                if tag in changed:
                    file.write(_pack(tag, *changed[tag], implicit=implicit))
                else:
                    write_data_element(stream, dataset[tag])
        return path

    return write


def _pack(tag: int, kind: str, value: bytes, *, implicit: bool) -> bytes:
    """Return an element as it lies in a file, its value padded to an even number of bytes."""
    value += b"\0" * (len(value) % 2) if kind in LONG_KINDS else b" " * (len(value) % 2)
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return start + struct.pack("<I", len(value)) + value
    if kind in LONG_KINDS:
        return start + kind.encode() + struct.pack("<HI", 0, len(value)) + value
    return start + kind.encode() + struct.pack("<H", len(value)) + value
