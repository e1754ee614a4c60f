import sys
import tracemalloc
import zipfile
from itertools import permutations, product
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, SegmentationStorage

from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS
from kitsattn.version import __version__
from kitsattn.volume.dicom.segmentation import check_source, write_segmentation
from kitsattn.volume.dicom.series import read_dicom
from kitsattn.volume.formats import write_labels
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ORIGIN = np.array([1.5, -2.5, 3.5])
SHAPE = (4, 5, 6)
PATIENT = "Doe^Jane"


def make_slice(number: int = 0, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> Dataset:
    """Return slice `number` of a series; `changes` are by the names of DICOM, and None removes what it names."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.3.4.{number + 1}",
        "Modality": "CT",
        "Manufacturer": "maker",
        "PatientName": PATIENT,
        "PatientID": "4711",
        "PatientBirthDate": "19700203",
        "PatientSex": "F",
        "PatientAge": "050Y",
        "AccessionNumber": "12",
        "StudyInstanceUID": "1.2.3",
        "StudyID": "34",
        "StudyDate": "20200304",
        "StudyTime": "101112",
        "StudyDescription": "abdomen",
        "FrameOfReferenceUID": "1.2.3.5",
        "SeriesInstanceUID": "1.2.3.4",
        "SeriesNumber": 7,
        "ImagePositionPatient": (ORIGIN + np.array([0, 0, 5 * number])).tolist(),
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.7, 0.9],
        "SliceThickness": 5,
        "Rows": shape[1],
        "Columns": shape[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": np.full(shape[1:], 1000 + number, np.uint16).tobytes(),
    }
    for name, value in (values | changes).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset["PixelData"].VR = "OW"
    return dataset


def save(path: Path, dataset: Dataset) -> None:
    """Write a data set as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def make_series(folder: Path, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> Path:
    """Write the slices of a series; the names of the files run against their order."""
    for number in range(shape[0]):
        save(folder / f"IM{shape[0] - number:04d}", make_slice(number, shape, **changes))
    return folder


def make_enhanced(shape: tuple[int, int, int] = SHAPE) -> Dataset:
    """Return one file of several frames, which lie against their order in the patient and state their plane each."""
    changes: dict[str, Any] = dict.fromkeys(
        ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    )
    pixels = np.full(shape, 1000, np.uint16).tobytes()
    changes |= {"SOPClassUID": EnhancedCTImageStorage, "NumberOfFrames": shape[0], "PixelData": pixels}
    dataset = make_slice(shape=shape, **changes)
    dataset.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([])
    for number in reversed(range(shape[0])):
        group, position, orientation, measures = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = (ORIGIN + np.array([0, 0, 5 * number])).tolist()
        orientation.ImageOrientationPatient = list(AXIAL)
        measures.PixelSpacing = [0.7, 0.9]
        group.PlanePositionSequence = Sequence([position])
        group.PlaneOrientationSequence = Sequence([orientation])
        group.PixelMeasuresSequence = Sequence([measures])
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    return dataset


def make_labels(scan: Volume) -> Volume:
    """Return labels from 0 to 2 at random, on the scan's grid; the first slice along z has none."""
    array = np.random.default_rng(0).integers(0, 3, scan.array.shape).astype(np.uint8)
    array[0] = 0
    return scan.with_array(array)


def write(path: Path, labels: Volume, source: Path, series: str | None = None, **changes: Any) -> Dataset:
    """Write a segmentation, and return what the file holds."""
    options: dict[str, Any] = {"classes": KITS19_LABELS, "model": "r50", "note": "{}"}
    write_segmentation(path, labels, source, series, **(options | changes))
    return pydicom.dcmread(path)


def sorted_places(places: NDArray[Any]) -> NDArray[Any]:
    """Sort rows of mm, to hundredths."""
    rounded = np.asarray(places, np.float64).reshape(-1, 3).round(2) + 0.0
    return rounded[np.lexsort(rounded.T)]


def places_of_labels(labels: Volume, value: int) -> NDArray[Any]:
    """Return where in the patient the voxels of a class lie, in mm towards Left, Posterior, Superior, sorted."""
    return sorted_places(world(np.argwhere(labels.array == value), labels.geometry.to_ras()) * [-1, -1, 1])


def world(indices: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
    """Map indices to mm."""
    return np.asarray(indices @ affine[:3, :3].T + affine[:3, 3])


def places_of_frames(dataset: Dataset, segment: int) -> NDArray[Any]:
    """Return the same of a segment, from what each frame states of itself."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    places = [np.empty((0, 3))]
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for group, mask in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            rows, columns = np.nonzero(mask)
            first = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            places.append(
                first + np.outer(columns * spacing[1], cosines[:3]) + np.outer(rows * spacing[0], cosines[3:])
            )
    return sorted_places(np.concatenate(places))


def places_of_volume(path: Path, segment: int) -> NDArray[Any]:
    """Return the same of a segment, as highdicom makes a volume of the file."""
    volume = highdicom.seg.segread(path).get_volume(segment_numbers=[segment])
    return sorted_places(world(np.argwhere(volume.array[..., 0]), volume.affine))


def assert_lies_on(path: Path, labels: Volume) -> None:
    """Compare both readings with the label map, voxel by voxel."""
    dataset = pydicom.dcmread(path)
    for value in (1, 2):
        expected = places_of_labels(labels, value)
        assert len(expected)
        assert np.array_equal(places_of_frames(dataset, value), expected)
        assert np.array_equal(places_of_volume(path, value), expected)


def right_handed_axes() -> list[tuple[tuple[float, ...], ...]]:
    """List unit vectors along a row, a column and the normal, towards Left, Posterior, Superior."""
    signed = [np.diag(signs)[list(order)] for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
    return [tuple(map(tuple, matrix.tolist())) for matrix in signed if np.linalg.det(matrix) > 0]


@pytest.mark.parametrize("axes", right_handed_axes(), ids=str)
def test_segments_lie_where_the_labels_lie(tmp_path: Path, axes: tuple[tuple[float, ...], ...]) -> None:
    """In each of the 24 right-handed axis orders every voxel is at its place, to pydicom, highdicom and SimpleITK."""
    row, column, normal = np.array(axes)
    for number in range(SHAPE[0]):
        changes = {
            "ImageOrientationPatient": [*row, *column],
            "ImagePositionPatient": (ORIGIN + 5 * number * normal).tolist(),
        }
        save(tmp_path / "dicom" / f"{number}.dcm", make_slice(number, **changes))
    scan = read_dicom(tmp_path / "dicom")
    labels = make_labels(scan)

    write(tmp_path / "seg.dcm", labels, tmp_path / "dicom")
    assert_lies_on(tmp_path / "seg.dcm", labels)

    # SimpleITK stacks frames, whatever they state: it reads one class that is in every slice.
    kidney = scan.with_array(np.random.default_rng(1).integers(0, 2, scan.array.shape).astype(np.uint8))
    write(tmp_path / "kidney.dcm", kidney, tmp_path / "dicom", classes={"background": 0, "kidney": 1})
    image = SimpleITK.ReadImage(tmp_path / "kidney.dcm")
    indices = np.argwhere(SimpleITK.GetArrayFromImage(image))[:, ::-1].tolist()
    places = [image.TransformIndexToPhysicalPoint(index) for index in indices]
    assert np.array_equal(sorted_places(np.array(places)), places_of_labels(kidney, 1))


def test_oblique_series_with_rounded_headers_is_segmented(tmp_path: Path) -> None:
    """Slices may state their common orientation with different last digits, and lie a little off their places."""
    angle = np.radians(20)
    row, column = np.array([1, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
    for number in range(SHAPE[0]):
        place = ORIGIN + 5 * number * np.cross(row, column) + [0, 0, 0.02 * (number == 2)]
        orientation = [float(f"{value:.{8 - number}f}") for value in (*row, *column)]
        changes = {"ImageOrientationPatient": orientation, "ImagePositionPatient": place.round(6).tolist()}
        save(tmp_path / "dicom" / f"{number}.dcm", make_slice(number, **changes))
    labels = make_labels(read_dicom(tmp_path / "dicom"))

    dataset = write(tmp_path / "seg.dcm", labels, tmp_path / "dicom")

    for value in (1, 2):
        found, expected = places_of_frames(dataset, value), places_of_labels(labels, value)
        assert len(found) == len(expected)
        distance = np.linalg.norm(found[:, None] - expected[None], axis=2)
        assert distance.min(axis=1).max() < 0.05  # a tenth of the smallest distance of two voxels
        assert sorted(distance.argmin(axis=1)) == list(range(len(expected)))
    assert places_of_volume(tmp_path / "seg.dcm", 1).shape == places_of_labels(labels, 1).shape


def test_multi_frame_file_is_segmented(tmp_path: Path) -> None:
    """Frames of an enhanced image are referred to by their numbers, also where one is stored twice."""
    dataset = make_enhanced()
    dataset.PerFrameFunctionalGroupsSequence.append(dataset.PerFrameFunctionalGroupsSequence[0])
    dataset.NumberOfFrames = SHAPE[0] + 1
    dataset.PixelData += dataset.PixelData[: len(dataset.PixelData) // SHAPE[0]]
    save(tmp_path / "enhanced.dcm", dataset)
    labels = make_labels(read_dicom(tmp_path / "enhanced.dcm"))

    written = write(tmp_path / "seg.dcm", labels, tmp_path / "enhanced.dcm")

    assert_lies_on(tmp_path / "seg.dcm", labels)
    for group in written.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame = dataset.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        assert source.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
        assert (
            group.PlanePositionSequence[0].ImagePositionPatient == frame.PlanePositionSequence[0].ImagePositionPatient
        )


def test_series_of_an_archive_is_chosen_as_it_is_read(tmp_path: Path) -> None:
    """The smaller of two series in a .zip archive, by number, beside files of other kinds."""
    other = {"SeriesInstanceUID": "1.2.3.6", "SeriesNumber": 8}
    make_series(tmp_path / "dicom" / "a")
    for number in range(3):
        changes: dict[str, Any] = {**other, "SOPInstanceUID": f"1.2.3.6.{number + 1}"}
        save(tmp_path / "dicom" / "b" / str(number), make_slice(number, **changes))
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "dicom").rglob("*"):
            archive.write(file, str(file.relative_to(tmp_path)))
        archive.writestr("readme.txt", "text")
    labels = make_labels(read_dicom(tmp_path / "scan.zip", "8"))

    dataset = write(tmp_path / "seg.dcm", labels, tmp_path / "scan.zip", "8")

    assert_lies_on(tmp_path / "seg.dcm", labels)
    assert [item.SeriesInstanceUID for item in dataset.ReferencedSeriesSequence] == ["1.2.3.6"]


def test_slice_distance_is_that_of_the_positions(tmp_path: Path) -> None:
    """A spacing between slices that a maker states negative, or wrong, is not copied."""
    source = make_series(tmp_path / "dicom", SpacingBetweenSlices=-2, SliceThickness=8)

    dataset = write(tmp_path / "seg.dcm", make_labels(read_dicom(source)), source)

    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, measures.SliceThickness) == (5, 8)


@pytest.mark.parametrize("name", ["cptac-c3l-00189", "c4kc-kits-00072-top18"])
def test_real_series_is_segmented(tmp_path: Path, test_data: Path, name: str) -> None:
    """What lies in bone and vessels of a real archive is at its place; GE states a negative slice distance."""
    source = test_data / "dicom" / f"{name}.zip"
    scan = read_dicom(source)
    labels = scan.with_array(np.digitize(scan.array, [400, 700]).astype(np.uint8))

    dataset = write(tmp_path / "seg.dcm", labels, source)

    assert_lies_on(tmp_path / "seg.dcm", labels)
    assert len(dataset.SourceImageSequence) == len(scan.array)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(scan.geometry.spacing_mm[0])
    assert dataset.PatientID == dataset.PatientName != ""


def test_object_states_what_it_is(tmp_path: Path) -> None:
    """Segments are coded and tracked, the algorithm is named, every source slice is referred to."""
    source = make_series(tmp_path / "dicom")

    dataset = write(
        tmp_path / "seg.dcm", make_labels(read_dicom(source)), source, classes=KITS23_LABELS, note='{"model": "r50"}'
    )

    assert dataset.SOPClassUID == SegmentationStorage
    assert (dataset.Modality, dataset.SegmentationType, dataset.BitsAllocated) == ("SEG", "BINARY", 1)
    assert dataset.ImageComments == '{"model": "r50"}'
    assert dataset.FrameOfReferenceUID == "1.2.3.5"
    kidney, tumour, cyst = dataset.SegmentSequence
    for number, (segment, name, code, category) in enumerate(
        (
            (kidney, "kidney", "64033007", "91723000"),
            (tumour, "tumour", "108369006", "49755003"),
            (cyst, "cyst", "367643001", "49755003"),
        ),
        1,
    ):
        assert (segment.SegmentNumber, segment.SegmentLabel) == (number, name)
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == code
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == category
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "kitsattn")
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmVersion, algorithm.AlgorithmParameters) == (__version__, "model=r50")
        assert segment.TrackingID == f"kitsattn {name}"
    assert len({segment.TrackingUID for segment in dataset.SegmentSequence}) == 3
    assert "AnatomicRegionSequence" not in kidney
    assert tumour.AnatomicRegionSequence[0].CodeMeaning == "Kidney"
    slices = {f"1.2.3.4.{number + 1}" for number in range(SHAPE[0])}
    assert {item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence} == slices
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.4"
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == slices
    assert dataset.SeriesInstanceUID != "1.2.3.4"


def test_patient_and_study_are_those_of_the_series(tmp_path: Path) -> None:
    """Names, IDs, dates and descriptions are copied."""
    source = make_series(tmp_path / "dicom")

    dataset = write(tmp_path / "seg.dcm", make_labels(read_dicom(source)), source)

    first = make_slice()
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyID"),
        *("StudyDate", "StudyTime", "StudyDescription", "AccessionNumber"),
    ):
        assert dataset.get(keyword) == first.get(keyword), keyword


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Řehoř^Žofie"),
        ("ISO_IR 6", "NoCaret"),
    ],
)
def test_names_keep_their_letters(tmp_path: Path, charset: Any, name: str) -> None:
    """A name in any character set of DICOM is the same in the segmentation, without a warning that quotes it."""
    source = make_series(tmp_path / "dicom", SpecificCharacterSet=charset, PatientName=name)

    dataset = write(tmp_path / "seg.dcm", make_labels(read_dicom(source)), source)

    assert str(dataset.PatientName) == name


def test_empty_label_map_keeps_a_blank_frame_of_each_class(tmp_path: Path) -> None:
    """Nothing found is a file of one blank slice for each class, which still refers to every slice."""
    source = make_series(tmp_path / "dicom")
    scan = read_dicom(source)

    dataset = write(tmp_path / "seg.dcm", scan.with_array(np.zeros(SHAPE, np.uint8)), source)

    assert dataset.NumberOfFrames == 2
    assert not dataset.pixel_array.any()
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == ["kidney", "tumour"]
    assert len(dataset.SourceImageSequence) == SHAPE[0]
    assert not highdicom.seg.segread(tmp_path / "seg.dcm").get_volume().array.any()


def test_class_without_voxels_is_described(tmp_path: Path) -> None:
    """A class that was looked for and not found has a segment, without frames."""
    source = make_series(tmp_path / "dicom")
    labels = make_labels(read_dicom(source))

    dataset = write(tmp_path / "seg.dcm", labels, source, classes=KITS23_LABELS)

    numbers = [
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert numbers == [1, 1, 1, 2, 2, 2]
    assert dataset.SegmentSequence[2].SegmentLabel == "cyst"
    assert_lies_on(tmp_path / "seg.dcm", labels)


def test_classes_of_any_values_and_names_become_segments(tmp_path: Path) -> None:
    """Segments are numbered in the order of the values; a class that has no code of its own is tissue."""
    source = make_series(tmp_path / "dicom")
    scan = read_dicom(source)
    labels = scan.with_array(np.where(make_labels(scan).array == 1, 200, 0).astype(np.uint8))

    dataset = write(tmp_path / "seg.dcm", labels, source, classes={"vein": 200, "background": 0, "kidney": 4})

    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == ["kidney", "vein"]
    assert dataset.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert np.array_equal(places_of_frames(dataset, 2), places_of_labels(labels, 200))


def test_what_anonymisers_remove_is_left_empty(tmp_path: Path) -> None:
    """Without the names, IDs and dates that may be empty, and with values that are none, a segmentation is written."""
    removed = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "StudyTime", "SliceThickness", "Manufacturer")
    changes: dict[str, Any] = {**dict.fromkeys(removed), "PatientSex": "X", "PatientAge": None}
    source = make_series(tmp_path / "dicom", **changes)
    for file in source.iterdir():
        file.write_bytes(file.read_bytes().replace(b"19700203", b"removed ").replace(b"20200304", b"99999999"))
    labels = make_labels(read_dicom(source))

    dataset = write(tmp_path / "seg.dcm", labels, source)

    assert_lies_on(tmp_path / "seg.dcm", labels)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
        assert keyword in dataset
        assert not dataset.get(keyword), keyword
    assert dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 5


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID"])
def test_series_that_cannot_be_referred_to_is_refused(tmp_path: Path, keyword: str) -> None:
    """A missing identifier is named, before the prediction and after it."""
    source = make_series(tmp_path / "dicom")
    broken = make_slice(1)
    del broken[keyword]
    broken.save_as(source / "IM0003", implicit_vr=False, little_endian=True)
    labels = make_labels(read_dicom(source))

    with pytest.raises(KitsattnError, match=rf"IM0003 in .*dicom states no {keyword}, so that no DICOM Segm"):
        check_source(source)
    with pytest.raises(KitsattnError, match=f"states no {keyword}"):
        write(tmp_path / "seg.dcm", labels, source)
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FrameOfReferenceUID": "1.9"}, "IM0003 in .* states another FrameOfReferenceUID than other slices"),
        ({"StudyInstanceUID": "1.9"}, "IM0003 in .* states another StudyInstanceUID than other slices"),
        ({"SOPInstanceUID": "1.2.3.4.1"}, "IM0003 in .* states the SOPInstanceUID of another slice"),
    ],
)
def test_slices_that_do_not_belong_together_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Slices of two studies or frames of reference, and slices of one name, are told apart by no reference."""
    source = make_series(tmp_path / "dicom")
    save(source / "IM0003", make_slice(1, **changes))

    with pytest.raises(KitsattnError, match=message):
        check_source(source)


def test_several_multi_frame_files_are_refused(tmp_path: Path) -> None:
    """A segmentation refers to one multi-frame image."""
    for part in range(2):
        dataset = make_enhanced()
        dataset.SOPInstanceUID = f"1.2.3.4.{part + 1}"
        for group in dataset.PerFrameFunctionalGroupsSequence:
            position = group.PlanePositionSequence[0].ImagePositionPatient
            position[2] = float(position[2]) + 20 * part
        save(tmp_path / "dicom" / str(part), dataset)

    with pytest.raises(KitsattnError, match="holds its series in 2 multi-frame files"):
        check_source(tmp_path / "dicom")


def test_odd_header_is_one_line_without_its_values(tmp_path: Path) -> None:
    """What highdicom cannot take over is refused; no value is quoted, since it could name the patient."""
    source = make_series(tmp_path / "dicom", SOPClassUID="1.2.3.999")
    labels = make_labels(read_dicom(source))

    with pytest.raises(KitsattnError, match=r"dicom has headers that no DICOM Segmentation") as caught:
        write(tmp_path / "seg.dcm", labels, source)

    assert "1.2.3.999" in str(caught.value.__cause__)
    assert "1.2.3.999" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["dicom"]


def test_scan_that_is_no_dicom_is_refused(tmp_path: Path) -> None:
    """A NIfTI file has no series that a segmentation could refer to."""
    labels = Volume(np.zeros(SHAPE, np.uint8), Geometry.axial(SHAPE, (5.0, 0.7, 0.9)))
    write_labels(tmp_path / "scan.nii.gz", labels)

    with pytest.raises(KitsattnError, match=r"scan\.nii\.gz holds no DICOM images"):
        check_source(tmp_path / "scan.nii.gz")
    with pytest.raises(KitsattnError, match=r"scan\.nii\.gz holds no DICOM images"):
        write(tmp_path / "seg.dcm", labels, tmp_path / "scan.nii.gz")


def test_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without highdicom the user is told what to install."""
    monkeypatch.setitem(sys.modules, "highdicom", None)

    with pytest.raises(KitsattnError, match=r"pip install 'kitsattn\[dicom\]'"):
        check_source(make_series(tmp_path))


def test_labels_of_another_grid_are_refused(tmp_path: Path) -> None:
    """Labels that do not lie on the series are not written onto it."""
    source = make_series(tmp_path / "dicom")
    moved = Geometry.axial(SHAPE, (5.0, 0.7, 0.9), (3.5, -2.5, 2.4))

    with pytest.raises(KitsattnError, match=r"is not on the series of .*dicom \(the grids are up to 1 voxels apart"):
        write(tmp_path / "seg.dcm", Volume(np.zeros(SHAPE, np.uint8), moved), source)


def test_unknown_label_is_refused(tmp_path: Path) -> None:
    """No voxel is dropped in silence."""
    source = make_series(tmp_path / "dicom")
    scan = read_dicom(source)

    with pytest.raises(KitsattnError, match=r"the label map holds the unknown labels \[9\]"):
        write(tmp_path / "seg.dcm", scan.with_array(np.full(SHAPE, 9, np.uint8)), source)


def test_existing_file_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    """Nothing is overwritten unasked."""
    source = make_series(tmp_path / "dicom")
    labels = make_labels(read_dicom(source))
    (tmp_path / "seg.dcm").write_text("mine")

    with pytest.raises(KitsattnError, match="exists already"):
        write(tmp_path / "seg.dcm", labels, source)
    assert (tmp_path / "seg.dcm").read_text() == "mine"

    assert write(tmp_path / "seg.dcm", labels, source, overwrite=True).Modality == "SEG"


def test_few_copies_of_the_labels_are_held(tmp_path: Path) -> None:
    """Writing takes at most two and a half times the bytes of the label map."""
    shape = (40, 256, 256)
    source = make_series(tmp_path / "dicom", shape)
    labels = make_labels(read_dicom(source))
    write(tmp_path / "once.dcm", labels, source)  # imports are not counted
    tracemalloc.start()

    write_segmentation(tmp_path / "seg.dcm", labels, source, classes=KITS19_LABELS, model="r50", note="")

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * labels.array.nbytes
