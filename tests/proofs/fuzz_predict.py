"""Changed scans and checkpoints, thousands of them: each is refused in one line, or predicted rightly. Linux only.

    python tests/proofs/fuzz_predict.py [--count 5000] [--seed 0] [--kind KIND ...] [--only NUMBER ...] [--keep FOLDER]

Valid small scans in NIfTI, NRRD, MHA and DICOM (a folder, an archive) and a checkpoint have bytes flipped, parts cut
out, doubled or lost, and numbers of their headers replaced by extreme ones. Each goes through `predict_cases` in
a process of its own that is forked from this one, so that a crash ends nothing else, its memory can be measured and a
hang ends. It is

- refused: a KitsattnError of one line that somebody foresaw,
- right: the label map lies on the grid that nibabel or SimpleITK reads from the changed file, and holds what the
  network says of the values that they read (voxel for voxel where nothing was resampled; DICOM we read ourselves), or
- wrong: another exception, another label map, a warning or any other output, a crash, more than 1 GB, or no end.

Inputs of the kind "cut" are scans whose values are clipped to a window, or hold 0 in place of air. They are right only
if that is logged as a warning, and whole ones among them only if it is not.

SimpleITK's reader of MetaImage prints lines of its own to stderr, which nobody can turn off. They are counted apart.

Inputs of the kind `study` are made instead of changed: DICOM studies with random pixel formats, unreadable numbers,
padding, several scans in one series, and captures beside it. What is right is known of each: the scan, voxel for voxel
and on its grid, or a refusal that names what is wrong. A right study that is refused is wrong too. They are read, not
predicted, since a network would add nothing: `--kind study --count 3000` takes some minutes.

Every tenth other input that is right is predicted again with post-processing, statistics, preview and probabilities.
What is wrong is printed with its number, which `--only` repeats and whose files `--keep` leaves. The exit code is 1 if
any is.
"""

import argparse
import gzip
import importlib
import io
import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
import torch
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from kitsattn.checkpoint.header import Header, Provenance
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS
from kitsattn.predict.case import DEFAULT_RULES, read_case
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import Ensemble, Member, load_ensemble
from kitsattn.predict.run import predict_cases
from kitsattn.predict.scan import predict_volume
from kitsattn.preprocess.case import prepare_scan
from kitsattn.preprocess.plan import Plan
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.padding import AIR_HU
from kitsattn.volume.volume import Volume

CHECKPOINT = Path(__file__).parents[1] / "checkpoint" / "golden.safetensors"
SPACING_MM = (5.0, 2.0, 2.0)
PLAN = Plan(spacing_mm=(2.0, 2.0), mean_hu=0.0, std_hu=100.0, patch_size=(64, 64))
LIMITS_HU = (100, 200)
"""Where the network's kidney begins, and its tumour."""

Grid = tuple[NDArray[Any], NDArray[Any]]
"""Voxels in the order of a file, and numbers that say where they lie."""

MOST_MB = 1000
_ADDRESSES = 4 << 30
"""What a process may ask for beyond what it holds: enough to see it take too much, too little to harm others."""
_PATIENCE = 10
"""How much longer than its time on the CPU an input may take by the clock: machines are busy."""
_EVERYTHING = 10
"""Every which right input is predicted again with all that can be written."""

_NUMBERS = (
    "0 -0 1 -1 2 3 4 8 16 255 256 512 32767 32768 -32768 65535 65536 16777216 2147483647 2147483648 4294967295 "
    "4294967296 9223372036854775807 18446744073709551616 1e-45 1e-30 1e-9 0.001 0.5 1e3 1e6 1e9 1e30 -1e30 1e38 1e300 "
    "1e999 nan NaN inf -inf Infinity"
)
_WORDS = (
    "char uchar short ushort int uint float double block raw gzip gz bzip2 ascii hex txt true false space domain "
    "MET_CHAR MET_SHORT MET_FLOAT MET_DOUBLE MET_ULONG_LONG MET_OTHER LOCAL LIST big little other.raw "
    '../../etc/hostname (1,0,0) (0,0,0) none null "" x'
)
_NIFTI_INTS = "0 1 -1 2 3 4 7 8 16 64 128 255 256 511 512 768 1024 1280 1792 2304 32767 -32768"
_NIFTI_FLOATS = (
    "0 -0.0 1 -1 1e-40 1e-30 1e-6 1e-3 0.5 3 351.9 352 353 1e3 1e5 1e6 1e9 1e19 1e30 3.4e38 -1e30 nan inf -inf"
)
_DICOM_TAGS = {
    "Rows": 0x00280010, "Columns": 0x00280011, "BitsAllocated": 0x00280100, "BitsStored": 0x00280101,
    "HighBit": 0x00280102, "PixelRepresentation": 0x00280103, "SamplesPerPixel": 0x00280002,
    "PixelSpacing": 0x00280030, "ImagePositionPatient": 0x00200032, "ImageOrientationPatient": 0x00200037,
    "RescaleSlope": 0x00281053, "RescaleIntercept": 0x00281052, "NumberOfFrames": 0x00280008,
    "SeriesInstanceUID": 0x0020000E, "SeriesNumber": 0x00200011, "Modality": 0x00080060, "ImageType": 0x00080008,
    "PhotometricInterpretation": 0x00280004, "TransferSyntaxUID": 0x00020010, "PixelData": 0x7FE00010,
}  # fmt: skip
_LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT")


class Bright(torch.nn.Module):
    """Takes what is brighter than 100 HU for kidney, and than 200 HU for tumour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x[:, 0]
        return 9 * torch.stack([torch.ones_like(value), value, 2 * value - 2], dim=1)


def make_ensemble() -> Ensemble:
    """Return a network whose answer is known."""
    made = Provenance(
        kitsattn="0", torch="0", dataset="d", synthetic=False, licence="l", citation="c", recipe="r", precision="fp32",
        fold=0, folds=5, seed=0, epoch=1, created="now",
    )  # fmt: skip
    header = Header(model="m", config={}, plan={}, labels=KITS19_LABELS, provenance=made)
    return Ensemble((Path("a"),), (header,), (Member(Bright(), 1, None),), PLAN, torch.device("cpu"), "fp32")


def make_scan() -> Volume:
    """Return a scan that is HU by all signs: air, fat, muscle, two kidneys, one with a tumour."""
    array = np.full((6, 32, 40), -1000, np.int16)
    array[:, 3:29, 3:37] = -95
    array[:, 6:26, 6:34] = 50
    array[1:5, 12:19, 8:15] = array[1:5, 12:19, 25:32] = 150
    array[2:4, 13:17, 9:13] = 250
    return Volume(array, Geometry.axial(array.shape, SPACING_MM, (3.0, -20.0, 7.0)))


def make_originals(folder: Path) -> dict[str, list[bytes]]:
    """Write the valid inputs and return their bytes by kind; DICOM is a list of slices, zipped or not."""
    scan = make_scan()
    found: dict[str, list[bytes]] = {"checkpoint": [CHECKPOINT.read_bytes()]}
    for kind in ("nii", "nii.gz"):
        write_nifti(folder / f"scan.{kind}", scan, axes="LAS")
        found[kind] = [(folder / f"scan.{kind}").read_bytes()]
    image = SimpleITK.GetImageFromArray(scan.array)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin((7.0, -20.0, 3.0))
    for kind in ("nrrd", "mha"):
        found[kind] = []
        for packed in (False, True):
            SimpleITK.WriteImage(image, folder / f"scan.{kind}", useCompression=packed)
            found[kind].append((folder / f"scan.{kind}").read_bytes())
    found["dicom"] = found["zip"] = [_make_slice(scan, number) for number in range(len(scan.array))]
    return found


def _make_slice(scan: Volume, number: int) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.{number + 1}"
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "CT", "1.2.3", 7
    dataset.ImageType, dataset.NumberOfFrames = ["ORIGINAL", "PRIMARY", "AXIAL"], 1
    dataset.ImagePositionPatient = [7.0, -20.0, 3.0 + SPACING_MM[0] * number]
    dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [2.0, 2.0]
    dataset.Rows, dataset.Columns = scan.array.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = (scan.array[number] + 1024).astype(np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip bits, or cut the end off, or lose, double or blank a part."""
    way = rng.choice(("flip", "flip", "flip", "cut", "lose", "double", "blank"))
    if way == "flip":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            # The bytes that say something of all the others come first.
            place = rng.randrange(min(1024, len(changed)) if rng.random() < 0.6 else len(changed))
            changed[place] = changed[place] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
        return bytes(changed)
    begin = rng.randrange(len(content))
    end = min(len(content), begin + rng.choice((1, 2, 7, 64, 1000)))
    part = {"cut": b"", "lose": content[end:], "double": content[begin:], "blank": bytes(end - begin) + content[end:]}
    return content[: end if way == "double" else begin] + part[way]


def change_nifti(rng: random.Random, content: bytes) -> bytes:
    """Replace numbers of the header."""
    size = nib.Nifti1Header.template_dtype.itemsize
    header = nib.Nifti1Header(content[:size], check=False)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice([name for name in header.template_dtype.names or () if header[name].dtype.kind in "if"])
        values = np.array(header[name])
        extreme = float(rng.choice((_NIFTI_FLOATS if values.dtype.kind == "f" else _NIFTI_INTS).split()))
        with np.errstate(all="ignore"):
            if values.ndim:
                values[rng.randrange(len(values))] = np.array(extreme).astype(values.dtype)
            else:
                values = np.array(extreme).astype(values.dtype)
        header[name] = values
    return bytes(header.binaryblock) + content[size:]


def change_text(rng: random.Random, content: bytes, end: int) -> bytes:
    """Replace words and numbers of a header that is text, up to `end`."""
    header, rest = content[:end], content[end:]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        numbers = rng.random() < 0.8
        found = list(re.finditer(rb"-?\d[\d.e+-]*" if numbers else rb"[A-Za-z_]+", header))
        if found:
            place = rng.choice(found)
            word = rng.choice((_NUMBERS if numbers or rng.random() < 0.3 else _WORDS).split()).encode()
            header = header[: place.start()] + word + header[place.end() :]
    return header + rest


def change_checkpoint(rng: random.Random, content: bytes) -> bytes:
    """Replace words and numbers of the JSON, whose length is set right again."""
    (length,) = struct.unpack("<Q", content[:8])
    changed = change_text(rng, content[8:], length)
    return struct.pack("<Q", length + len(changed) + 8 - len(content)) + changed


def change_element(rng: random.Random, slices: list[bytes]) -> list[bytes]:
    """Replace a value in the header of one slice, or of all."""
    tag = rng.choice(list(_DICOM_TAGS.values()))
    chosen = range(len(slices)) if rng.random() < 0.5 else [rng.randrange(len(slices))]
    number, texts = (
        rng.choice((0, 1, 2, 7, 8, 12, 15, 16, 17, 31, 32, 64, 255, 4096, 32767, 65535)),
        [rng.choice(_NUMBERS.split()) for _ in range(6)],
    )
    which, at = rng.randrange(6), rng.random()

    def put(content: bytes) -> bytes:
        start = content.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
        if start < 0:
            return content
        vr = content[start + 4 : start + 6]
        long = vr in _LONG_VRS
        begin = start + (12 if long else 8)
        (length,) = struct.unpack("<I" if long else "<H", content[begin - (4 if long else 2) : begin])
        value = content[begin : begin + length]
        if vr == b"US":
            value = struct.pack("<H", number)
        elif long:
            value = value[: int(at * length)]
        else:
            parts = value.decode("latin-1").strip("\0 ").split("\\")
            parts[which % len(parts)] = texts[which]
            value = "\\".join(parts[: max(1, int(at * 3 * len(parts)))]).encode()
        value += b" " * (len(value) % 2)
        size = struct.pack("<I" if long else "<H", len(value))
        return content[: begin - len(size)] + size + value + content[begin + length :]

    return [put(content) if number_ in chosen else content for number_, content in enumerate(slices)]


def make_archive(rng: random.Random, slices: list[bytes]) -> bytes:
    """Return slices as an archive, in which every second time a number that zip itself states is replaced."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for number, content in enumerate(slices):
            archive.writestr(f"{rng.choice(('', 'a/', '../', '/'))}{number}", content)
    changed = bytearray(stream.getvalue())
    if rng.random() < 0.5:
        places = [found.start() for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", changed)]
        begin = rng.choice(places) + 4 + 2 * rng.randrange(20)
        changed[begin : begin + 2] = struct.pack("<H", rng.choice((0, 1, 8, 9, 12, 14, 93, 99, 0xFF, 0x8000, 0xFFFF)))
    return bytes(changed)


def write_changed(kind: str, seed: int, number: int, originals: dict[str, list[bytes]], folder: Path) -> Path:
    """Write an input: the same bytes for the same kind, seed and number."""
    rng = random.Random(f"{kind} {seed} {number}")  # noqa: S311 - what is wanted is that it can be repeated
    bytewise = rng.random() < 0.5
    if kind in {"dicom", "zip"}:
        slices = list(originals[kind])
        if bytewise and (kind == "dicom" or rng.random() < 0.5):
            place = rng.randrange(len(slices))
            slices[place] = change_bytes(rng, slices[place])
        elif not bytewise:
            slices = change_element(rng, slices)
        if kind == "zip":
            content = make_archive(rng, slices)
            return _write(folder / "scan.zip", change_bytes(rng, content) if bytewise else content)
        for place, content in enumerate(slices):
            _write(folder / "scan" / f"{place}.dcm", content)
        return folder / "scan"
    content = rng.choice(originals[kind])
    ends = {"nrrd": b"\n\n", "mha": b"LOCAL\n"}
    if bytewise:
        content = change_bytes(rng, content)
    elif kind == "checkpoint":
        content = change_checkpoint(rng, content)
    elif kind == "nii":
        content = change_nifti(rng, content)
    elif kind == "nii.gz":
        content = gzip.compress(change_nifti(rng, gzip.decompress(content)), 1, mtime=0)
    else:
        content = change_text(rng, content, content.index(ends[kind]) + len(ends[kind]))
    return _write(folder / f"scan.{kind}", content)


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_cut(seed: int, number: int, folder: Path) -> Path:
    """Write a scan with noise; it is called cut if it was cut for display, else whole."""
    rng = random.Random(f"cut {seed} {number}")  # noqa: S311 - as above
    scan = make_scan()
    hu = scan.array + np.random.default_rng(rng.randrange(1000)).normal(0, 10, scan.array.shape)
    low, high = rng.choice((-2000, -500, -200, -160, -120)), rng.choice((140, 180, 3000))
    zero = rng.random() < 0.3
    cut = np.where(hu < -500, 0, hu) if zero else np.clip(hu, low, high)
    path = folder / ("cut.nii" if zero or (low, high) != (-2000, 3000) else "whole.nii")
    write_nifti(path, scan.with_array(np.rint(cut).astype(np.int16)))
    return path


KINDS = ("nii", "nii.gz", "nrrd", "mha", "dicom", "zip", "checkpoint", "cut", "study")


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        verdict: refused, right, or wrong.
        told: The error's line, or what is wrong, perhaps in several lines.
        memory_mb: How far memory rose above what the process began with.
        printed: Whether SimpleITK wrote to stderr.
    """

    verdict: str
    told: str
    memory_mb: float = 0.0
    printed: bool = False


@dataclass(frozen=True)
class Study:
    """A DICOM study that was made, and what is right of it.

    Attributes:
        source: Its folder or archive.
        series: What `--series` names; None leaves it out.
        hu: The scan, (z, y, x); None where it must be refused.
        refusal: What a refusal must name, a regular expression.
    """

    source: Path
    series: str | None
    hu: NDArray[Any] | None
    refusal: str


Elements = dict[int, tuple[str, bytes]]
"""The header of a file: value representation and value by tag."""

_BORDER = 3
"""Voxels around the body of `make_scan`, where padding can lie."""

_STUDY_NUMBERS = {0x00281053: 1, 0x00281052: 1, 0x00280030: 2, 0x00200032: 3, 0x00200037: 6}
"""Slope, intercept, spacing, position and orientation, with how many numbers each has."""

_STUDY_TRAITS = {
    "acquisition": (0x00200012, "IS", (b"1", b"2")),
    "temporal": (0x00200100, "IS", (b"1", b"2")),
    "echo": (0x00180086, "IS", (b"1", b"2")),
    "cardiac": (0x00209241, "FL", (struct.pack("<f", 1), struct.pack("<f", 2))),
    "trigger": (0x00181060, "DS", (b"1.0", b"2.00")),
    "kernel": (0x00181210, "SH", (b"1", b"2")),
    "description": (0x0008103E, "LO", (b"1", b"2")),
}
_STUDY_OTHERS: tuple[Elements, ...] = (
    {0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.7"), 0x00200032: ("DS", b"")},
    {0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.7")},
    {0x00280002: ("US", b"\3\0"), 0x00280004: ("CS", b"RGB")},
    {0x00080008: ("CS", b"ORIGINAL\\PRIMARY\\LOCALIZER")},
    {0x00080008: ("CS", b"DERIVED\\SECONDARY\\MIP")},
    {0x00200037: ("DS", b"1\\0\\0\\0\\0\\-1")},
    {0x00200032: ("DS", b"0\\0\\0")},
    {0x00280101: ("US", b"\x08\0"), 0x00280102: ("US", b"\x07\0")},
    {0x00080060: ("CS", b"MR")},
)
"""What more series have that are no scans: captures, colours, localizers, projections, reformats, one place, MR."""


def write_study(rng: random.Random, folder: Path) -> Study:
    """Write a study at random, with what is right of it."""
    hu = make_scan().array.astype(np.int64)
    several = rng.random() < 0.4
    scans = [hu, np.where(hu > 0, hu - 70, hu)] if several else [hu]
    trait = rng.choice([*_STUDY_TRAITS, None]) if several else None
    same_place = several and trait is not None and rng.random() < 0.5
    encode = _pixel_format(rng)
    files: list[Elements] = []
    for number, scan in enumerate(scans):
        for place, one in enumerate(scan):
            header = encode(one)
            z = SPACING_MM[0] * place + (0 if same_place else number * SPACING_MM[0] / 2)
            header[0x00200032] = ("DS", f"7.0\\-20.0\\{3 + z}".encode())
            header[0x00080018] = ("UI", f"1.2.3.{number}.{place}".encode())
            if trait is not None:
                tag, kind, values = _STUDY_TRAITS[trait]
                header[tag] = (kind, values[number])
            files.append(header)
    series, refusal = rng.choice((None, "7")), r"several scans in series 7|takes turns" if several else ""
    if several and rng.random() < 0.5:
        chosen = rng.randrange(2)
        part = f"slices={chosen + 1}of2" if trait is None else f"{trait}={chosen + 1}"
        series, refusal, scans = f"7:{part}", "", scans[chosen : chosen + 1]
    if rng.random() < 0.5:
        refusal = _change_number(rng, files) or refusal
    truth = scans[0].copy()
    if 0x00280120 in files[0]:
        truth[:, _border(hu.shape[1:])] = AIR_HU
    if rng.random() < 0.5:
        files += _other_series(rng, encode(hu[0]))
    rng.shuffle(files)
    source = _write_files(files, folder, implicit=rng.random() < 0.3, packed=rng.random() < 0.3)
    return Study(source, series, None if refusal else truth, refusal)


def _write_files(files: list[Elements], folder: Path, *, implicit: bool, packed: bool) -> Path:
    contents = [_dicom_file(header, implicit=implicit) for header in files]
    if packed:
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "study.zip", "w") as archive:
            for number, content in enumerate(contents):
                archive.writestr(str(number), content)
        return folder / "study.zip"
    for number, content in enumerate(contents):
        _write(folder / "study" / str(number), content)
    return folder / "study"


def _border(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the voxels of a slice where padding lies."""
    border = np.ones(shape, bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    return border


def _pixel_format(rng: random.Random) -> Callable[[NDArray[Any]], Elements]:
    """Return what makes the header of a slice of HU, in a pixel format that is drawn, and perhaps with padding."""
    allocated, bits = rng.choice(((16, 16), (16, 12), (16, 13), (32, 32)))
    signed = rng.random() < 0.5
    slope, intercept = rng.choice((1.0, 1.0, 0.5, 2.0)), rng.choice((0, -1024)) if signed else -1024
    bits = max(bits, 13) if slope < 1 else bits
    word = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    least = -(1 << (bits - 1)) if signed else 0
    pads = [least, least + (1 << bits) - 1, -2000, 63536, -32768, 4095]
    padding = rng.choice((None, rng.choice(pads)))
    if padding is not None:
        padding = padding % (1 << 16) if not signed else (padding + (1 << 15)) % (1 << 16) - (1 << 15)
    limit = rng.random() < 0.3 and padding is not None and least <= padding < least + (1 << bits)

    def encode(hu: NDArray[Any]) -> Elements:
        stored = np.round((hu - intercept) / slope).astype(np.int64)
        header: Elements = {
            0x00080008: ("CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
            0x00080016: ("UI", CTImageStorage.encode()),
            0x00080060: ("CS", b"CT"),
            0x0020000D: ("UI", b"1.2"),
            0x0020000E: ("UI", b"1.2.3"),
            0x00200011: ("IS", b"7"),
            0x00200037: ("DS", b"1.0\\0.0\\0.0\\0.0\\1.0\\0.0"),
            0x00280030: ("DS", b"2.0\\2.0"),
            0x00281052: ("DS", f"{intercept}.0".encode()),
            0x00281053: ("DS", str(slope).encode()),
            0x00280004: ("CS", b"MONOCHROME2"),
        }
        numbers = {0x00280002: 1, 0x00280010: hu.shape[0], 0x00280011: hu.shape[1], 0x00280100: allocated}
        numbers |= {0x00280101: bits, 0x00280102: bits - 1, 0x00280103: int(signed)}
        if padding is not None:
            stored[_border(hu.shape)] = padding
            numbers[0x00280120] = padding % (1 << 16)
            if limit:
                numbers[0x00280121] = numbers[0x00280120]
        header |= {tag: ("US", struct.pack("<H", number)) for tag, number in numbers.items()}
        header[0x7FE00010] = ("OW", stored.astype(word).tobytes())
        return header

    return encode


def _change_number(rng: random.Random, files: list[Elements]) -> str:
    """Write a number with a decimal comma, or so that it cannot be read; return what its refusal must name then."""
    tag = rng.choice(list(_STUDY_NUMBERS))
    way = rng.choice(("comma", "comma", "unit", "twice", "binary", "letters", "empty part"))
    for header in files if rng.random() < 0.5 or tag in {0x00200037, 0x00280030} else [rng.choice(files)]:
        kind, value = header[tag]
        first, *more = value.split(b"\\")
        if way == "comma":
            header[tag] = (rng.choice(("DS", "LO", "UT")), value.replace(b".", b","))
        elif way == "binary":
            header[tag] = ("FD", struct.pack("<d", float(first)) * _STUDY_NUMBERS[tag])
        else:
            wrong = {"unit": first + b" mm", "twice": first + b"\\" + first, "letters": b"1_0", "empty part": b"\\"}
            header[tag] = (kind, b"\\".join([wrong[way], *more]))
    return "" if way == "comma" else rf"\({tag >> 16:04X},{tag & 0xFFFF:04X}\)"


def _other_series(rng: random.Random, like: Elements) -> list[Elements]:
    """Return a larger series that is no scan; its numbers may be unreadable, which stops nobody."""
    changes = rng.choice(_STUDY_OTHERS)
    broken: Elements = {0x00281053: ("DS", b"one")} if rng.random() < 0.3 else {}
    files = []
    for number in range(rng.randrange(1, 30)):
        header = like | {0x0020000E: ("UI", b"1.2.9"), 0x00200011: ("IS", b"9")}
        header[0x00200032] = ("DS", f"0\\{number}\\{number}".encode())
        header[0x00080018] = ("UI", f"1.2.9.{number}".encode())
        files.append(header | changes | broken)
    return files


def _dicom_file(header: Elements, *, implicit: bool) -> bytes:
    """Return a file, with or without the representations of its values."""
    syntax = b"1.2.840.10008.1.2" if implicit else b"1.2.840.10008.1.2.1"
    elements = [_element(0x00020010, "UI", syntax, implicit=False)]
    elements += [_element(tag, kind, value, implicit=implicit) for tag, (kind, value) in sorted(header.items())]
    return bytes(128) + b"DICM" + b"".join(elements)


def _element(tag: int, kind: str, value: bytes, *, implicit: bool) -> bytes:
    value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return start + struct.pack("<I", len(value)) + value
    long = kind.encode() in _LONG_VRS
    return start + kind.encode() + struct.pack("<HI" if long else "<H", *([0] if long else []), len(value)) + value


def read_study(study: Study) -> Outcome:
    """Read a study and judge what comes of it."""
    before, output = _memory_mb("VmRSS"), study.source.with_name("output")
    fault, told = "", ""
    with _output_kept(output):
        try:
            scan = read_scan(study.source, study.series)
        except KitsattnError as error:
            told = str(error)
        except Exception:  # noqa: BLE001 - any is what is looked for
            fault = f"exception: {traceback.format_exc()}"
    memory, printed = _memory_mb("VmHWM") - before, output.read_text(errors="replace")
    if printed:
        fault = f"printed: {printed.strip()}"
    elif told and study.hu is not None:
        fault = f"right, but refused: {told}"
    elif told and (not told.isprintable() or not re.search(study.refusal, told)):
        fault = f"refused without naming {study.refusal}: {told!r}"
    elif not told and not fault:
        fault = compare_study(scan, study)
    return Outcome("wrong" if fault else "refused" if told else "right", fault or told, memory)


def compare_study(scan: Volume, study: Study) -> str:
    """Return what is wrong with a study that was read; empty if nothing is."""
    if study.hu is None:
        return f"read, although {study.refusal} is wrong"
    if scan.array.shape != study.hu.shape:
        return f"shape {scan.array.shape} instead of {study.hu.shape}"
    if not np.allclose(scan.geometry.spacing_mm, SPACING_MM):
        return f"spacing {scan.geometry.spacing_mm}"
    wrong = np.abs(scan.array - study.hu) > 1  # slopes of 2 round
    return f"{np.count_nonzero(wrong)} wrong voxels" if wrong.any() else ""


class _Log(logging.Handler):
    """Keeps tracebacks that are logged where an error was not foreseen, and whether a cut scan was reported."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: list[str] = []
        self.cut = False

    def emit(self, record: logging.LogRecord) -> None:
        self.cut |= any(words in record.getMessage() for words in ("cut off at", "stands for air"))
        if record.exc_info and record.exc_info[1]:
            self.traces.append("".join(traceback.format_exception(record.exc_info[1])))


def predict_changed(kind: str, source: Path, ensemble: Ensemble, *, everything: bool) -> Outcome:
    """Predict an input and judge what comes of it."""
    log = _Log()
    logger = logging.getLogger("kitsattn")
    logger.handlers, logger.propagate = [log], False
    logger.setLevel(logging.DEBUG)
    suffix = f".{kind}" if kind in {"nii", "nii.gz", "nrrd", "mha"} else ".nii.gz"
    scan = source.with_name("whole.nii.gz") if kind == "checkpoint" else source
    case = PredictionCase(name="case", source=scan, target=source.with_name(f"labels{suffix}"))
    before, output = _memory_mb("VmRSS"), source.with_name("output")
    result: object
    with _output_kept(output):
        try:
            if kind == "checkpoint":
                write_nifti(scan, make_scan())
                ensemble = load_ensemble([source], torch.device("cpu"), "fp32")
            (result,) = predict_cases(ensemble, [case], rules=None)
            if everything and not isinstance(result, KitsattnError):
                (result,) = predict_cases(ensemble, [_with_everything(case)], rules=DEFAULT_RULES)
        except Exception as error:  # noqa: BLE001 - any is what is looked for
            result = error
            if not isinstance(error, KitsattnError):
                log.traces.append(traceback.format_exc())
    memory, printed = _memory_mb("VmHWM") - before, output.read_text(errors="replace")
    told = str(result) if isinstance(result, KitsattnError) else ""
    noise = kind in {"nrrd", "mha"} and "Warning:" not in printed and bool(printed)
    if memory > MOST_MB or "memory" in told.lower():
        fault = f"memory: {told}"
    elif log.traces:
        fault = f"exception: {log.traces[0]}"
    elif printed and not noise:
        fault = f"printed: {printed.strip()}"
    elif kind == "cut" and log.cut != (source.stem == "cut"):
        fault = f"a {source.stem} scan, and {'a' if log.cut else 'no'} warning that it was cut"
    elif told:
        fault = "" if told.isprintable() else f"several lines: {told!r}"
    else:
        with _output_kept(source.with_name("output of others")):
            fault = _find_fault_if_read(kind, case, ensemble)
    return Outcome("wrong" if fault else "refused" if told else "right", fault or told, memory, noise)


def _find_fault_if_read(kind: str, case: PredictionCase, ensemble: Ensemble) -> str:
    try:
        return find_fault(kind, case, ensemble)
    except Exception:  # noqa: BLE001 - of another reader
        return f"cannot be read by others: {traceback.format_exc()}"


def _with_everything(case: PredictionCase) -> PredictionCase:
    folder = case.target.parent / "everything"
    files = {"statistics": "s.json", "preview": "p.png", "probabilities": "p.nii.gz"}
    written: dict[str, Any] = {name: folder / file for name, file in files.items()}
    return replace(case, target=folder / case.target.name, pictured=True, **written)


def find_fault(kind: str, case: PredictionCase, ensemble: Ensemble) -> str:
    """Return what is wrong with a label map, by other readers; empty if nothing is."""
    scan = read_case(replace(case, target=case.target.with_name("none.nii.gz")), overwrite=False)
    y0, y1, x0, x1 = (placement := prepare_scan(scan, ensemble.plan.target).placement).box
    inside = np.zeros(scan.array.shape, bool)
    inside[:, y0:y1, x0:x1] = True
    if kind in _READ_BY_OTHERS:
        (values, grid), (labels, own) = (_READ_BY_OTHERS[kind](path) for path in (case.source, case.target))
        same = grid.shape == own.shape and np.allclose(grid, own, rtol=1e-6, equal_nan=True)
    else:
        found = read_labels(case.target)
        values, labels, same = scan.array, found.array, found.geometry.difference(scan.geometry, 1e-3) is None
    if not same:
        return "another grid"
    if labels.shape != values.shape or labels.max() >= ensemble.classes:
        return f"labels of shape {labels.shape} up to {labels.max()} where the scan has {values.shape}"
    if kind == "checkpoint" or placement.prepared_shape != placement.box_shape:
        return ""
    if kind not in {"dicom", "zip"}:
        assert scan.source is not None
        inside = scan.source.to_file(inside)
        if any("offset of 1024" in note for note in scan.notes):
            values = np.maximum(values, 0) - 1024
    values = values.astype(np.float64)
    unsure = np.any([np.abs(values - limit) < 0.01 for limit in LIMITS_HU], axis=0)
    wrong = (labels != np.where(inside, np.digitize(values, LIMITS_HU), 0)) & ~unsure
    return f"{wrong.sum()} wrong voxels" if wrong.any() else ""


def _read_nifti(path: Path) -> Grid:
    image: Any = nib.load(path)
    proxy = image.dataobj
    # nibabel takes the header for voxels where it says that they begin at 0.
    offset = max(proxy.offset, nib.Nifti1Header.single_vox_offset)
    proxy = ArrayProxy(str(path), (proxy.shape, proxy.dtype, offset, proxy.slope, proxy.inter))
    singular = not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine) < len(image.affine)
    return np.asanyarray(proxy).reshape(proxy.shape[:3]), image.get_qform() if singular else image.affine


def _read_itk(path: Path) -> Grid:
    image = SimpleITK.ReadImage(path)
    grid = [*image.GetSize(), *image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()]
    return SimpleITK.GetArrayFromImage(image).T, np.array(grid)


_READ_BY_OTHERS = {"cut": _read_nifti, "nii": _read_nifti, "nii.gz": _read_nifti, "nrrd": _read_itk, "mha": _read_itk}


def _memory_mb(field: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1000


@contextmanager
def _output_kept(path: Path) -> Iterator[None]:
    """Send stdout and stderr, those of C too, to a file."""
    with path.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        yield
        sys.stdout.flush()
        sys.stderr.flush()


def _run_child(sender: Connection, work: Callable[[], Outcome], seconds: int) -> None:
    held = int(_memory_mb("VmSize") * 1000 * 1024)
    resource.setrlimit(resource.RLIMIT_AS, (held + _ADDRESSES, held + _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    sender.send(work())


def try_apart(work: Callable[[], Outcome], seconds: int) -> Outcome:
    """Judge an input in a process of its own, which ends when its time on the CPU is up or ten times that is over."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_child, args=(sender, work, seconds))
    process.start()
    sender.close()
    hang = Outcome("wrong", f"hang: no end after {seconds} s of CPU or {_PATIENCE * seconds} s of a clock")
    try:
        outcome = receiver.recv() if receiver.poll(_PATIENCE * seconds) else hang
    except EOFError:
        process.join()
        ended_by_limit = process.exitcode in {-signal.SIGXCPU, -signal.SIGKILL}
        outcome = hang if ended_by_limit else Outcome("wrong", f"crash: exit code {process.exitcode}")
    process.kill()
    process.join()
    return outcome


def fuzz(
    numbers: list[int], seed: int, seconds: int, keep: Path | None, kinds: Sequence[str] = KINDS
) -> dict[int, tuple[str, Outcome]]:
    """Try inputs of some kinds in turn until the last or Ctrl-C; what is wrong is printed at once."""
    torch.set_num_threads(1)
    # What is imported when it is first used is imported once, and not in every process.
    importlib.import_module("kitsattn.figures.overlay")
    predict_volume(load_ensemble([CHECKPOINT], torch.device("cpu"), "fp32"), make_scan())
    ensemble = make_ensemble()
    outcomes: dict[int, tuple[str, Outcome]] = {}
    with tempfile.TemporaryDirectory() as name, suppress(KeyboardInterrupt):
        originals = make_originals(Path(name))
        for number in numbers:
            folder = Path(name) / str(number)
            folder.mkdir()
            kind = kinds[number % len(kinds)]
            if kind == "study":
                study = write_study(random.Random(f"{kind} {seed} {number}"), folder)  # noqa: S311 - see write_changed
                work = partial(read_study, study)
            else:
                cut = kind == "cut"
                source = (
                    write_cut(seed, number, folder) if cut else write_changed(kind, seed, number, originals, folder)
                )
                everything = number // len(kinds) % _EVERYTHING == 0
                work = partial(predict_changed, kind, source, ensemble, everything=everything)
            outcome = try_apart(work, seconds)
            outcomes[number] = kind, outcome
            if outcome.verdict == "wrong":
                chosen = "" if kinds == KINDS else f" --kind {' '.join(kinds)}"
                print(f"--only {number} --seed {seed}{chosen} ({kind}): {outcome.told}", flush=True)
            if keep is not None:
                shutil.copytree(folder, keep / str(number), dirs_exist_ok=True)
            shutil.rmtree(folder)
    return outcomes


def print_table(outcomes: dict[int, tuple[str, Outcome]], seconds: float) -> None:
    """Print how many inputs of each kind were refused, right and wrong."""
    columns = ("refused", "right", "wrong", "SimpleITK printed")
    print(f"{'input':<12}" + "".join(f"{column:>{len(column) + 4}}" for column in columns))
    for kind in (*KINDS, "all"):
        chosen = [outcome for of, outcome in outcomes.values() if kind in {of, "all"}]
        counts = Counter(outcome.verdict for outcome in chosen)
        counts["SimpleITK printed"] = sum(outcome.printed for outcome in chosen)
        print(f"{kind:<12}" + "".join(f"{counts[column]:>{len(column) + 4}}" for column in columns))
    most = max(outcome.memory_mb for _, outcome in outcomes.values())
    print(f"{len(outcomes)} inputs in {seconds:.0f} s; memory rose by {most:.0f} MB at most")


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="inputs")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS, help="kinds of inputs")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of inputs")
    parser.add_argument("--seconds", type=int, default=20, help="of CPU that one input may take")
    parser.add_argument("--keep", type=Path, help="folder in which the inputs and what was written are left")
    options = parser.parse_args()
    start = time.monotonic()
    numbers = options.only or list(range(options.count))
    outcomes = fuzz(numbers, options.seed, options.seconds, options.keep, tuple(options.kind))
    print_table(outcomes, time.monotonic() - start)
    return int(any(outcome.verdict == "wrong" for _, outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
