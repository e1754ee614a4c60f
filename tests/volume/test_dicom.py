import tracemalloc
import zipfile
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from kitsattn.errors import KitsattnError
from kitsattn.volume.archive import members
from kitsattn.volume.dicom import series
from kitsattn.volume.dicom.decoder import open_decoder
from kitsattn.volume.dicom.headers import read_headers
from kitsattn.volume.dicom.series import list_series, read_dicom
from kitsattn.volume.formats import read_scan, write_labels
from kitsattn.volume.geometry import Geometry

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PATIENT = "Doe^Jane"
HU = np.random.default_rng(0).integers(-1000, 1500, (4, 5, 6)).astype(np.int16)
"""A scan of 4 slices, 5 rows and 6 columns: as a series it has 5 x 0.7 x 0.9 mm and begins at (1.5, -2.5, 3.5)."""


def make_slice(number: int = 0, **changes: Any) -> Dataset:
    """Return slice `number` of the series; `changes` are by the names of DICOM, and None removes what it names."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.3.{number + 1}",
        "Modality": "CT",
        "PatientName": PATIENT,
        "PatientID": PATIENT,
        "SeriesInstanceUID": "1.2.3",
        "SeriesNumber": 7,
        "SeriesDescription": "venous",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [1.5, -2.5, 3.5 + 5 * number],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.7, 0.9],
        "Rows": HU.shape[1],
        "Columns": HU.shape[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": (HU[number % len(HU)] + 1024).astype(np.uint16).tobytes(),
    }
    for name, value in (values | changes).items():
        if value is not None:
            setattr(dataset, name, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if dataset.file_meta.TransferSyntaxUID.is_compressed else "OW"
    return dataset


def save(path: Path, dataset: Dataset) -> None:
    """Write a data set as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def make_series(folder: Path, count: int = len(HU), **changes: Any) -> Path:
    """Write the slices of a series; the names of the files run against their order."""
    for number in range(count):
        save(folder / f"IM{count - number:04d}", make_slice(number, **changes))
    return folder


def read_itk(folder: Path, files: Path) -> Any:
    """Read a series as SimpleITK does, by way of a file in another format."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files)))
    SimpleITK.WriteImage(reader.Execute(), folder / "itk.nrrd")
    return read_scan(folder / "itk.nrrd")


def test_series_is_read_in_hu_in_its_place(tmp_path: Path) -> None:
    """Slices are sorted by place, whatever their names, and rescaled; the geometry is that of their headers."""
    scan = read_dicom(make_series(tmp_path / "dicom"))

    assert scan.array.dtype == np.int16
    assert np.array_equal(scan.array, HU)
    assert scan.geometry.difference(Geometry.axial((4, 5, 6), (5.0, 0.7, 0.9), (3.5, -2.5, 1.5)), 1e-9) is None
    assert scan.notes == ('Read series 7 "venous" (4 slices of CT, UID 1.2.3).',)


def right_handed_axes() -> list[tuple[tuple[float, ...], ...]]:
    """List unit vectors along a row, a column and the normal, towards Left, Posterior, Superior."""
    signed = [np.diag(signs)[list(order)] for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
    return [tuple(map(tuple, matrix.tolist())) for matrix in signed if np.linalg.det(matrix) > 0]


@pytest.mark.parametrize("axes", right_handed_axes(), ids=str)
def test_series_of_any_orientation_lies_where_simpleitk_puts_it(
    tmp_path: Path, axes: tuple[tuple[float, ...], ...]
) -> None:
    """In each of the 24 right-handed axis orders voxels and grid are those that SimpleITK's own reader gives."""
    row, column, normal = np.array(axes)
    for number in range(len(HU)):
        place = np.array([1.5, -2.5, 3.5]) + 5 * number * normal
        changes = {"ImageOrientationPatient": [*row, *column], "ImagePositionPatient": place.tolist()}
        save(tmp_path / "dicom" / f"{number}.dcm", make_slice(number, **changes))

    scan, peer = read_dicom(tmp_path / "dicom"), read_itk(tmp_path, tmp_path / "dicom")

    assert np.array_equal(scan.array, peer.array)
    assert scan.geometry.difference(peer.geometry, 1e-4) is None


def test_oblique_series_lies_where_simpleitk_puts_it(tmp_path: Path) -> None:
    """A series turned by 20 degrees keeps its direction."""
    angle = np.radians(20)
    row, column = np.array([1, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
    for number in range(len(HU)):
        place = np.array([1.5, -2.5, 3.5]) + 5 * number * np.cross(row, column)
        orientation = [float(f"{value:.8f}") for value in (*row, *column)]
        changes = {"ImageOrientationPatient": orientation, "ImagePositionPatient": place.round(6).tolist()}
        save(tmp_path / "dicom" / f"{number}.dcm", make_slice(number, **changes))

    scan, peer = read_dicom(tmp_path / "dicom"), read_itk(tmp_path, tmp_path / "dicom")

    assert np.array_equal(scan.array, peer.array)
    assert scan.geometry.difference(peer.geometry, 1e-4) is None


@pytest.mark.parametrize("name", ["cptac-c3l-00189", "c4kc-kits-00072-top18"])
def test_real_series_is_what_simpleitk_reads(tmp_path: Path, test_data: Path, name: str) -> None:
    """A real archive gives the voxels and the grid that SimpleITK reads from its unpacked folder."""
    with zipfile.ZipFile(test_data / "dicom" / f"{name}.zip") as archive:
        archive.extractall(tmp_path / "dicom")
    (folder,) = (tmp_path / "dicom").iterdir()

    scan, peer = read_dicom(test_data / "dicom" / f"{name}.zip"), read_itk(tmp_path, folder)

    assert np.array_equal(scan.array, peer.array)
    assert scan.geometry.difference(peer.geometry, 1e-3) is None
    assert np.array_equal(read_dicom(folder).array, scan.array)


def test_archive_reads_as_its_folder(tmp_path: Path) -> None:
    """A .zip of a series, with other files and an archive in it, gives the same volume."""
    folder = make_series(tmp_path / "dicom")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"deep/{file.name}")
        archive.writestr("readme.txt", "text")
        archive.writestr("more.zip", b"PK\x03\x04")

    scan = read_dicom(tmp_path / "scan.zip")

    assert np.array_equal(scan.array, HU)
    assert scan.geometry == read_dicom(folder).geometry
    assert "Ignored 2 files of other kinds." in scan.notes


def test_label_map_of_a_series_is_written_on_its_grid(tmp_path: Path) -> None:
    """NRRD and NIfTI of the labels have the voxels where the scan has them."""
    scan = read_dicom(make_series(tmp_path / "dicom"))
    for name in ("labels.nrrd", "labels.nii.gz"):
        write_labels(tmp_path / name, scan.with_array((scan.array > 0).astype(np.uint8)))

        labels = read_scan(tmp_path / name)

        assert np.array_equal(labels.array, scan.array > 0)
        assert labels.geometry.difference(scan.geometry) is None


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_plain_transfer_syntaxes_are_read(tmp_path: Path, syntax: UID) -> None:
    """With and without the types of elements the voxels are the same."""
    assert np.array_equal(read_dicom(make_series(tmp_path, syntax=syntax)).array, HU)


def test_big_endian_series_is_read(tmp_path: Path) -> None:
    """Numbers whose highest byte comes first are turned."""
    for number in range(len(HU)):
        values = (HU[number] + 1024).astype(">u2").tobytes()
        save(tmp_path / str(number), make_slice(number, syntax=ExplicitVRBigEndian, PixelData=values))

    assert np.array_equal(read_dicom(tmp_path).array, HU)


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    """Old writers begin with the first data element."""
    for number in range(len(HU)):
        dataset = make_slice(number)
        del dataset.file_meta
        pydicom.dcmwrite(tmp_path / str(number), dataset, implicit_vr=True, little_endian=True)

    assert np.array_equal(read_dicom(tmp_path).array, HU)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_series_is_decoded_without_loss(tmp_path: Path, compressor: str, signed: bool) -> None:  # noqa: FBT001
    """Lossless JPEG and JPEG 2000 of signed and unsigned values give the HU that were encoded."""
    hu = np.random.default_rng(1).integers(-1000, 1500, (3, 64, 72)).astype(np.int16)
    for number, values in enumerate(hu):
        writer = SimpleITK.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(tmp_path / "encoded.dcm")
        writer.Execute(SimpleITK.GetImageFromArray(values if signed else (values + 1024).astype(np.uint16)))
        encoded = pydicom.dcmread(tmp_path / "encoded.dcm")
        changes = {
            "Rows": 64,
            "Columns": 72,
            "PixelRepresentation": int(signed),
            "RescaleIntercept": 0 if signed else -1024,
            "PixelData": encapsulate([next(generate_frames(encoded.PixelData, number_of_frames=1))]),
        }
        dataset = make_slice(number, syntax=encoded.file_meta.TransferSyntaxUID, **changes)
        save(tmp_path / "dicom" / str(number), dataset)

    assert np.array_equal(read_dicom(tmp_path / "dicom").array, hu)


def test_run_length_encoded_series_is_decoded(tmp_path: Path) -> None:
    """RLE gives the HU that were encoded."""
    hu = np.random.default_rng(1).integers(-1000, 1500, (3, 33, 35)).astype(np.int16)
    for number, values in enumerate(hu):
        stored = (values + 1024).astype(np.uint16)
        dataset = make_slice(number, Rows=33, Columns=35, PixelData=stored.tobytes())
        dataset.compress(RLELossless, generate_instance_uid=False)
        save(tmp_path / str(number), dataset)

    assert np.array_equal(read_dicom(tmp_path).array, hu)


def test_damaged_compressed_slice_is_named(tmp_path: Path) -> None:
    """What the decoder refuses is an error of one line with the file and the transfer syntax."""
    make_series(tmp_path)
    broken = make_slice(3, syntax=JPEGLosslessSV1, PixelData=encapsulate([b"no JPEG."]))
    save(tmp_path / "IM0001", broken)

    with pytest.raises(KitsattnError, match=r"IM0001 in .* is damaged, or compressed in a way that is not read"):
        read_dicom(tmp_path)


def test_compressed_slice_that_announces_another_size_is_refused(tmp_path: Path) -> None:
    """JPEG data of 20000 x 20000 voxels in a slice of 5 x 6 is an error; the memory for it is limited."""
    start_of_frame = b"\xff\xc3\x00\x0b\x10" + (20000).to_bytes(2, "big") * 2 + b"\x01\x01\x11\x00"
    encoded = b"\xff\xd8" + start_of_frame + b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00" + bytes(40) + b"\xff\xd9"
    save(tmp_path / "slice", make_slice(syntax=JPEGLosslessSV1, PixelData=encapsulate([encoded])))

    with members(tmp_path) as files, open_decoder() as decoder:
        (image,) = read_headers(files).images
        with pytest.raises(ValueError, match="the bytes are no"):
            decoder.decode(encoded, image)

        assert decoder._process is not None
        if hasattr(psutil, "RLIMIT_AS"):
            assert psutil.Process(decoder._process.pid).rlimit(psutil.RLIMIT_AS)[0] != psutil.RLIM_INFINITY


def test_decoder_that_crashes_is_an_error_and_starts_again(tmp_path: Path) -> None:
    """The helper process may end at any slice; the next one is decoded by another."""
    dataset = make_slice(Rows=33, Columns=35, PixelData=np.arange(33 * 35, dtype=np.uint16).tobytes())
    dataset.compress(RLELossless, generate_instance_uid=False)
    save(tmp_path / "slice", dataset)
    encoded = next(generate_frames(dataset.PixelData, number_of_frames=1))
    with members(tmp_path) as files, open_decoder() as decoder:
        (image,) = read_headers(files).images
        decoder.decode(encoded, image)
        assert decoder._process is not None
        decoder._process.kill()

        with pytest.raises(ValueError, match="the bytes are no"):
            decoder.decode(encoded, image)
        decoded = decoder.decode(encoded, image)

    assert np.array_equal(decoded.ravel(), np.arange(33 * 35))
    assert not decoder._folder.exists()


def test_slices_have_their_own_slope_and_intercept(tmp_path: Path) -> None:
    """Each slice is rescaled by its own header; a fractional slope makes the scan float32."""
    make_series(tmp_path)
    save(tmp_path / "IM0004", make_slice(0, RescaleSlope=0.5, RescaleIntercept=-512))

    scan = read_dicom(tmp_path)

    assert scan.array.dtype == np.float32
    assert np.array_equal(scan.array[0], HU[0] / 2)
    assert np.array_equal(scan.array[1:], HU[1:])


def test_values_that_int16_cannot_hold_make_the_scan_float32(tmp_path: Path) -> None:
    """A metal implant of 40000 HU is kept."""
    make_series(tmp_path)
    values = np.full(HU.shape[1:], 41024, np.uint16)
    save(tmp_path / "IM0001", make_slice(3, PixelData=values.tobytes()))

    scan = read_dicom(tmp_path)

    assert scan.array.dtype == np.float32
    assert np.all(scan.array[3] == 40000)
    assert np.array_equal(scan.array[:3], HU[:3])


def test_bits_beside_the_value_are_cleared(tmp_path: Path) -> None:
    """Of 12 bits stored in 16 the sign is spread, and what lies above, such as an overlay, is dropped."""
    for number in range(len(HU)):
        stored = (HU[number].astype(np.uint16) & 0x0FFF) | 0x5000
        changes = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "RescaleIntercept": 0}
        save(tmp_path / str(number), make_slice(number, PixelData=stored.tobytes(), **changes))

    assert np.array_equal(read_dicom(tmp_path).array, HU)


def test_missing_intercept_is_read_only_where_values_are_signed(tmp_path: Path) -> None:
    """Signed values can be HU as they are, which is noted; unsigned ones cannot."""
    for number in range(len(HU)):
        changes = {"PixelRepresentation": 1, "RescaleIntercept": None, "PixelData": HU[number].tobytes()}
        save(tmp_path / "signed" / str(number), make_slice(number, **changes))
    scan = read_dicom(tmp_path / "signed")
    assert np.array_equal(scan.array, HU)
    assert any("no rescale intercept" in note for note in scan.notes)

    with pytest.raises(KitsattnError, match="states no rescale intercept"):
        read_dicom(make_series(tmp_path / "unsigned", RescaleIntercept=None))


def make_enhanced(hu: np.ndarray) -> Dataset:
    """Return `hu` as one file of several frames, which lie against their order in the patient."""
    elsewhere = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept")
    changes: dict[str, Any] = dict.fromkeys(elsewhere)
    dataset = make_slice(
        Rows=hu.shape[1],
        Columns=hu.shape[2],
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=len(hu),
        PixelData=(hu[::-1] + 1024).astype(np.uint16).tobytes(),
        **changes,
    )
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing = [0.7, 0.9]
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for number in reversed(range(len(hu))):
        group, position, rescale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [1.5, -2.5, 3.5 + 5 * number]
        rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1024
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([rescale])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


@pytest.mark.parametrize("compressed", [False, True])
def test_enhanced_multi_frame_file_is_read(tmp_path: Path, compressed: bool) -> None:  # noqa: FBT001
    """A series in one file, given itself, has the place and HU that its functional groups state for each frame."""
    hu = np.random.default_rng(1).integers(-1000, 1500, (4, 33, 35)).astype(np.int16)
    dataset = make_enhanced(hu)
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    save(tmp_path / "enhanced.dcm", dataset)

    scan = read_dicom(tmp_path / "enhanced.dcm")

    assert np.array_equal(scan.array, hu)
    assert scan.geometry == Geometry.axial(hu.shape, (5.0, 0.7, 0.9), (3.5, -2.5, 1.5))


def test_largest_ct_series_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    """An MR series with more slices is passed over, and the notes name what else is there."""
    make_series(tmp_path / "ct")
    make_series(tmp_path / "less", 2, SeriesInstanceUID="1.2.4", SeriesNumber=8, SeriesDescription="native")
    make_series(tmp_path / "mr", 6, SOPClassUID=MRImageStorage, Modality="MR", SeriesInstanceUID="1.2.5")

    scan = read_dicom(tmp_path)

    assert np.array_equal(scan.array, HU)
    assert " ".join(scan.notes) == (
        'Read series 7 "venous" (4 slices of CT, UID 1.2.3). The input also holds series 7 "venous" (6 images of MR, '
        'UID 1.2.5), series 8 "native" (2 slices of CT, UID 1.2.4).'
    )
    assert [series.uid for series in list_series(tmp_path)] == ["1.2.5", "1.2.3", "1.2.4"]


def test_several_studies_are_refused_unless_a_series_is_chosen(tmp_path: Path) -> None:
    """They may be of several patients; what is no CT does not count."""
    make_series(tmp_path / "one", StudyInstanceUID="1.2")
    make_series(tmp_path / "mr", SOPClassUID=MRImageStorage, Modality="MR", SeriesInstanceUID="1.2.5")
    assert np.array_equal(read_dicom(tmp_path).array, HU)
    make_series(tmp_path / "other", 2, StudyInstanceUID="1.3", SeriesInstanceUID="1.2.4", SeriesNumber=8)

    with pytest.raises(KitsattnError, match=r"holds CT series of 2 studies, series 7 .*: name the folder of one study"):
        read_dicom(tmp_path)
    assert read_dicom(tmp_path, "8").array.shape == (2, 5, 6)


def test_series_is_chosen_by_uid_or_number(tmp_path: Path) -> None:
    """Both lead to the series; what is not there, ambiguous or no CT is refused with what there is."""
    make_series(tmp_path / "ct")
    make_series(tmp_path / "less", 2, SeriesInstanceUID="1.2.4", SeriesNumber=8)
    make_series(tmp_path / "mr", 2, SOPClassUID=MRImageStorage, Modality="MR", SeriesInstanceUID="1.2.5")

    assert read_dicom(tmp_path, "1.2.4").array.shape == (2, 5, 6)
    assert read_dicom(tmp_path, "8").array.shape == (2, 5, 6)
    with pytest.raises(KitsattnError, match=r"holds no series 9, but series 7 .*UID 1.2.3"):
        read_dicom(tmp_path, "9")
    with pytest.raises(KitsattnError, match=r"holds several series 7, .* choose one by its UID"):
        read_dicom(tmp_path, "7")
    with pytest.raises(KitsattnError, match=r"images of MR, UID 1.2.5\), which is not a CT"):
        read_dicom(tmp_path, "1.2.5")


def test_other_objects_of_a_study_are_ignored(tmp_path: Path) -> None:
    """A segmentation of its own series is named, and a screen capture within the series is left out and counted."""
    make_series(tmp_path)
    seg: dict[str, Any] = {
        "SOPClassUID": SegmentationStorage,
        "Modality": "SEG",
        "SeriesInstanceUID": "1.2.9",
        "SeriesNumber": None,
    }
    save(tmp_path / "seg", make_slice(0, **seg, SeriesDescription="kidneys"))
    save(tmp_path / "shot", make_slice(0, SOPClassUID=SecondaryCaptureImageStorage, ImagePositionPatient=None))

    scan = read_dicom(tmp_path)

    assert np.array_equal(scan.array, HU)
    assert 'a series without number "kidneys" (1 image of SEG, UID 1.2.9)' in scan.notes[0]
    assert "Left out 1 object of the series" in scan.notes[1]


def test_directory_of_a_medium_is_one_of_the_other_files(tmp_path: Path) -> None:
    """A DICOMDIR names no series of its own; a DICOM object that should and does not is damaged."""
    make_series(tmp_path)
    directory = make_slice(0, SeriesInstanceUID=None, SOPClassUID=MediaStorageDirectoryStorage)
    save(tmp_path / "DICOMDIR", directory)
    assert "Ignored 1 file of other kinds." in read_dicom(tmp_path).notes

    save(tmp_path / "lost", make_slice(0, SeriesInstanceUID=None))
    with pytest.raises(KitsattnError, match="1 DICOM file with a header that is damaged or cannot be read, lost"):
        read_dicom(tmp_path)


def test_folder_without_ct_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    """MR is named as such, and a folder without DICOM says so."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")

    with pytest.raises(KitsattnError, match="text holds no DICOM images"):
        read_dicom(tmp_path / "text")
    with pytest.raises(KitsattnError, match=r"holds no CT series, but series 7 .*4 images of MR"):
        read_dicom(make_series(tmp_path / "mr", SOPClassUID=MRImageStorage, Modality="MR"))


def test_missing_slice_is_refused_with_its_neighbours(tmp_path: Path) -> None:
    """A gap of two slice distances names the files around it."""
    make_series(tmp_path, 6)
    (tmp_path / "IM0003").unlink()

    with pytest.raises(
        KitsattnError, match=r"5 mm apart, but 10 mm between IM0004 and IM0002, as if 1 slice were miss"
    ):
        read_dicom(tmp_path)


def test_repeated_slice_is_left_out_where_it_is_the_same(tmp_path: Path) -> None:
    """The copy of a slice is dropped with a note."""
    make_series(tmp_path)
    save(tmp_path / "copy" / "IM0002", make_slice(2))

    scan = read_dicom(tmp_path)

    assert np.array_equal(scan.array, HU)
    assert "Left out 1 slice that the series holds more than once." in scan.notes


def test_different_slices_at_one_place_are_refused(tmp_path: Path) -> None:
    """A slice of another scan at a place that is taken is named; where headers tell it apart, the rest is offered."""
    make_series(tmp_path / "unknown")
    save(tmp_path / "unknown" / "other", make_slice(2, PixelData=make_slice(1).PixelData))
    with pytest.raises(KitsattnError, match=r"different slices at one place .*IM0002 and other"):
        read_dicom(tmp_path / "unknown")

    make_series(tmp_path / "stated", AcquisitionNumber=1)
    save(tmp_path / "stated" / "other", make_slice(2, AcquisitionNumber=2, PixelData=make_slice(1).PixelData))
    with pytest.raises(KitsattnError, match=r"several scans in series 7, .*: choose --series 7:acquisition=1$"):
        read_dicom(tmp_path / "stated")
    assert np.array_equal(read_dicom(tmp_path / "stated", "7:acquisition=1").array, HU)


@pytest.mark.parametrize(
    ("shift_mm", "what"), [(0.04, None), (0.4, "noted"), (0.6, "refused")], ids=["rounded", "noted", "refused"]
)
def test_slice_off_its_place_is_accepted_up_to_a_tenth(tmp_path: Path, shift_mm: float, what: str | None) -> None:
    """Of 5 mm, a hundredth is nothing, up to a tenth is noted, and more is refused."""
    make_series(tmp_path)
    save(tmp_path / "IM0003", make_slice(1, ImagePositionPatient=[1.5, -2.5, 8.5 + shift_mm]))

    if what == "refused":
        with pytest.raises(KitsattnError, match=r"no regular stack, .* IM0003 is 0.6 mm off its place"):
            read_dicom(tmp_path)
        return
    notes = read_dicom(tmp_path).notes
    assert any("0.4 mm off a regular stack" in note for note in notes) == (what == "noted")


def test_slice_that_is_shifted_sideways_is_refused(tmp_path: Path) -> None:
    """Slices of another field of view do not stack."""
    make_series(tmp_path)
    save(tmp_path / "IM0003", make_slice(1, ImagePositionPatient=[2.5, -2.5, 8.5]))

    with pytest.raises(KitsattnError, match="IM0003 is 1 mm off its place"):
        read_dicom(tmp_path)


def test_tilted_gantry_is_refused(tmp_path: Path) -> None:
    """Slices that shift by 0.5 mm for 5 mm are tilted by 5.7 degrees."""
    for number in range(len(HU)):
        place = [1.5, -2.5 + 0.5 * number, 3.5 + 5 * number]
        save(tmp_path / str(number), make_slice(number, ImagePositionPatient=place))

    with pytest.raises(KitsattnError, match=r"tilted by 5.7 degrees against their stack \(gantry tilt\)"):
        read_dicom(tmp_path)


def test_localizer_in_the_series_is_left_out(tmp_path: Path) -> None:
    """A scout view of another plane is dropped with a note."""
    make_series(tmp_path)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    save(tmp_path / "scout", make_slice(0, **scout))

    scan = read_dicom(tmp_path)

    assert np.array_equal(scan.array, HU)
    assert "Left out 1 localizer of the series." in scan.notes


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "different orientations in one series"),
    ({"PixelSpacing": [0.8, 0.9]}, "different pixel spacings in one series"),
    ({"Rows": 6, "Columns": 5}, "different sizes in one series"),
    ({"ImagePositionPatient": None}, "does not state where its slices are"),
    ({"Rows": 0}, "does not state where its slices are"),
    ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "different orientations"),
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is a colour picture"),
    ({"BitsAllocated": 64}, "8, 16 or 32 bits"),
    ({"BitsStored": 20}, "8, 16 or 32 bits"),
    ({"RescaleType": "MGML"}, "holds values in MGML, not in HU"),
    ({"RescaleSlope": 0}, "rescale slope 0"),
    ({"PixelData": b"\0\0"}, "is truncated or damaged"),
    ({"PixelData": b"\0" * 200}, "is truncated or damaged"),
    ({"PixelData": None}, "is truncated or damaged"),
    ({"PixelData": None, "syntax": RLELossless}, "is truncated or damaged"),
    ({"syntax": DeflatedExplicitVRLittleEndian}, "header that is damaged or cannot be read, IM0003"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_slice_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """One line says what is wrong with it, and no name of a patient."""
    make_series(tmp_path)
    save(tmp_path / "IM0003", make_slice(1, **changes))

    with pytest.raises(KitsattnError, match=message) as caught:
        read_dicom(tmp_path)

    assert "\n" not in str(caught.value)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "an orientation that is not a rotation"),
        ({"PixelSpacing": [0, 0.9]}, "a pixel spacing of 0 x 0.9 mm"),
    ],
)
def test_series_without_a_usable_grid_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """An orientation or spacing that no grid can have is named."""
    with pytest.raises(KitsattnError, match=message):
        read_dicom(make_series(tmp_path, **changes))


def test_one_slice_alone_is_refused(tmp_path: Path) -> None:
    """A single file of a series leads to the folder."""
    make_series(tmp_path)

    with pytest.raises(KitsattnError, match=r"IM0001 holds one slice of its series, .* name the folder"):
        read_dicom(tmp_path / "IM0001")


def test_series_of_captures_is_refused(tmp_path: Path) -> None:
    """CT images that state no place form no volume."""
    capture: dict[str, Any] = {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}

    with pytest.raises(KitsattnError, match="none of which states its place in the patient"):
        read_dicom(make_series(tmp_path, **capture))


def test_inverted_display_changes_no_hu(tmp_path: Path) -> None:
    """MONOCHROME1 says how to display, so the HU are kept, with a note."""
    scan = read_dicom(make_series(tmp_path, PhotometricInterpretation="MONOCHROME1"))

    assert np.array_equal(scan.array, HU)
    assert any("MONOCHROME1" in note for note in scan.notes)


def test_truncated_slice_is_refused(tmp_path: Path) -> None:
    """A file cut within its voxels, and one cut within its header, are named."""
    make_series(tmp_path)
    content = (tmp_path / "IM0002").read_bytes()
    for kept in (len(content) - 10, 300):
        (tmp_path / "IM0002").write_bytes(content[:kept])
        with pytest.raises(KitsattnError, match=r"IM0002.*damaged|damaged.*IM0002"):
            read_dicom(tmp_path)


def test_announced_size_is_checked_before_memory_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed slices of 65535 x 65535 voxels are refused where memory is short, and plain ones by their files."""
    make_series(tmp_path / "plain", Rows=65535, Columns=65535)
    compressed: dict[str, Any] = {"syntax": RLELossless, "PixelData": encapsulate([b"xx"])}
    make_series(tmp_path / "packed", Rows=65535, Columns=65535, **compressed)
    monkeypatch.setattr(series, "available_memory", lambda: 1 << 30)
    tracemalloc.start()

    with pytest.raises(KitsattnError, match="is truncated or damaged"):
        read_dicom(tmp_path / "plain")
    with pytest.raises(KitsattnError, match=r"4 x 65535 x 65535 voxels, which need 32.0 GiB of memory, and 1.0 GiB"):
        read_dicom(tmp_path / "packed")

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


def test_text_of_a_file_is_shown_safely(tmp_path: Path) -> None:
    """A description with escapes comes without them, in whatever encoding; patients are never named."""
    make_series(tmp_path, SeriesDescription="d" * 64)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"d" * 64, b"\x1b[31m<b>\n" + b"\xff" * 20 + b"e" * 35))

    (note,) = read_dicom(tmp_path).notes

    assert f'"[31m<b> {"ÿ" * 20}{"e" * 35}"' in note
    assert "Doe" not in note


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 10**6))
def test_changed_and_cut_files_give_an_error_of_one_line_or_a_volume(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    """Bytes changed anywhere in one slice, or its end lost, lead to nothing but a KitsattnError or a scan."""
    folder = tmp_path / "dicom"
    if not folder.exists():
        make_series(folder)
    save(folder / "IM0002", make_slice(2))
    content = bytearray((folder / "IM0002").read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (folder / "IM0002").write_bytes(content[: cut % (2 * len(content))])

    outcome: Any = None
    try:
        outcome = read_dicom(folder).array.shape[1:]
    except KitsattnError as error:
        outcome = str(error).splitlines()

    assert outcome == HU.shape[1:] or len(outcome) == 1
