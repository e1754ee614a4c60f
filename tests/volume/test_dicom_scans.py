"""Which series of a study is read, and which scan where a series holds several."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, SecondaryCaptureImageStorage

from kitsattn.errors import KitsattnError
from kitsattn.volume.dicom.series import read_dicom
from kitsattn.volume.formats import read_scan

WriteSlice = Callable[..., Path]
SIZE, STEP_MM = 40, 5.0
CAPTURE = {"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY"]}
CORONAL = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}


def paint(number: int, kidney_hu: int = 180, *, seed: int = 0) -> np.ndarray:
    """Return a slice of 100 x 100 mm with noise: muscle, a spine, two kidneys."""
    y, x = np.indices((SIZE, SIZE)) * 2.5
    hu = np.where(np.hypot(y - 50, x - 50) < 48, 50.0, -1000.0)
    hu[np.hypot(y - 80, x - 50) < 10] = 400
    for side in (28, 72):
        hu[np.hypot(y - 50, x - side) < 18 + number % 3] = kidney_hu
    noise = np.random.default_rng(1000 * seed + number).normal(0, 12, hu.shape)
    return np.maximum(hu + noise, -1024).round().astype(int)


def write_scan(
    write: WriteSlice, folder: Path, count: int = 6, *, begin_mm: float = 0.0, kidney_hu: int = 180, **changes: Any
) -> np.ndarray:
    """Write a scan of `count` slices and return its HU."""
    hu = np.stack([paint(number, kidney_hu, seed=kidney_hu) for number in range(count)])
    for number, one in enumerate(hu):
        write(folder / str(number), one, begin_mm + STEP_MM * number, PixelSpacing=[2.5, 2.5], **changes)
    return hu


TRAITS: list[tuple[str, Sequence[Any], str]] = [
    ("AcquisitionNumber", (1, 2), "acquisition=2"),
    ("AcquisitionNumber", (9, 10, 11), "acquisition=10"),
    ("EchoNumbers", (1, 2), "echo=2"),
    ("TemporalPositionIdentifier", (1, 2), "temporal=2"),
    ("NominalPercentageOfCardiacPhase", (30.0, 75.0), "cardiac=75"),
    ("NominalPercentageOfRespiratoryPhase", (0.0, 50.0), "respiratory=50"),
    ("TriggerTime", ("120.0", "650"), "trigger=650"),
    ("ConvolutionKernel", ("B30f", ["Br40d", "3"]), "kernel=Br40d-3"),
    ("FilterType", ("BODY", "LUNG FILTER"), "filter=LUNG-FILTER"),
    ("KVP", (80, 140), "kvp=140"),
    ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "MIP"]), "type=DERIVED-PRIMARY-MIP"),
    ("SeriesDescription", ("art", "portal venous"), "description=portal-venous"),
    ("AcquisitionNumber", (1, None), "acquisition=none"),
]


@pytest.mark.parametrize(("keyword", "values", "chosen"), TRAITS, ids=[chosen for _, _, chosen in TRAITS])
def test_scans_of_one_series_are_told_apart(
    write_slice: WriteSlice, tmp_path: Path, keyword: str, values: Sequence[Any], chosen: str
) -> None:
    """Scans whose slices alternate are refused with the choices; each can be chosen."""
    scans = []
    for number, value in enumerate(values):
        changes = {"begin_mm": STEP_MM * number / len(values), "kidney_hu": 180 - 20 * number, keyword: value}
        scans.append(write_scan(write_slice, tmp_path / str(number), 4, **changes))

    with pytest.raises(KitsattnError, match=r"several scans in series 7") as caught:
        read_dicom(tmp_path)
    assert f"--series 7:{chosen}" in str(caught.value)
    assert str(caught.value).count("--series") == len(values)

    scan = read_dicom(tmp_path, f"7:{chosen}")
    assert np.array_equal(scan.array, scans[1])
    assert f"Read {chosen} of the series, 4 of {4 * len(values)} slices." in scan.notes


def test_two_traits_tell_scans_apart_that_one_does_not(write_slice: WriteSlice, tmp_path: Path) -> None:
    """Two acquisitions in two kernels are four scans."""
    for number, (acquisition, kernel) in enumerate([(1, "soft"), (1, "sharp"), (2, "soft"), (2, "sharp")]):
        traits: dict[str, Any] = {"AcquisitionNumber": acquisition, "ConvolutionKernel": kernel, "copy": number}
        wanted = write_scan(write_slice, tmp_path / str(number), kidney_hu=180 - 10 * number, **traits)

    with pytest.raises(KitsattnError, match=r":acquisition=1,kernel=sharp or .*:acquisition=2,kernel=soft$"):
        read_dicom(tmp_path)
    assert np.array_equal(read_dicom(tmp_path, "1.2.3:acquisition=2,kernel=sharp").array, wanted)


def test_acquisitions_that_follow_each_other_are_one_scan(write_slice: WriteSlice, tmp_path: Path) -> None:
    """So a scan is stitched, and a scanner counts each turn, or each slice, with numbers that may come again."""
    for number in range(12):
        traits = {"AcquisitionNumber": number // 3, "TriggerTime": (number * number) % 7, "copy": number}
        write_slice(tmp_path / str(number), paint(number), STEP_MM * number, **traits)

    assert read_dicom(tmp_path).array.shape[0] == 12


def test_frames_of_an_enhanced_file_are_told_apart(write_slice: WriteSlice, tmp_path: Path) -> None:
    """Each frame states its temporal position in a functional group."""
    hu = np.stack([paint(number, 180 - 100 * phase) for phase in range(2) for number in range(4)])
    groups = []
    for phase in range(2):
        for number in range(4):
            group, content, position = Dataset(), Dataset(), Dataset()
            content.TemporalPositionIndex = phase + 1
            position.ImagePositionPatient = [0, 0, STEP_MM * number]
            group.FrameContentSequence, group.PlanePositionSequence = Items([content]), Items([position])
            groups.append(group)
    words = (hu + 1024).astype(np.uint16).tobytes()
    frames = {"NumberOfFrames": 8, "PerFrameFunctionalGroupsSequence": Items(groups), "PixelData": words}
    write_slice(tmp_path / "a.dcm", hu[0], SOPClassUID=EnhancedCTImageStorage, **frames)

    with pytest.raises(KitsattnError, match="--series 7:temporal=1 or --series 7:temporal=2"):
        read_dicom(tmp_path / "a.dcm")
    assert np.array_equal(read_dicom(tmp_path / "a.dcm", "7:temporal=2").array, hu[4:])


@pytest.mark.parametrize("phases", [(180, 60), (180, 60, 120)])
def test_brightness_that_takes_turns_is_refused(
    write_slice: WriteSlice, tmp_path: Path, phases: tuple[int, ...]
) -> None:
    """Where headers are silent, kidneys that are bright in every second or third slice tell of several phases."""
    count = len(phases)
    for number in range(8 * count):
        write_slice(tmp_path / str(number), paint(0, phases[number % count], seed=number), STEP_MM * number)

    with pytest.raises(KitsattnError, match=rf"takes turns.* --series 7:slices=1of{count} or .* --series 7:all$"):
        read_dicom(tmp_path)

    second = read_dicom(tmp_path, f"7:slices=2of{count}")
    assert np.array_equal(second.array[0], paint(0, phases[1], seed=1))
    assert second.geometry.spacing_mm[0] == count * STEP_MM
    assert second.array.shape[0] == 8
    assert read_dicom(tmp_path, "7:all").array.shape[0] == 8 * count


@pytest.mark.parametrize("noise", [12, 60])
def test_one_scan_does_not_take_turns(write_slice: WriteSlice, tmp_path: Path, noise: int) -> None:
    """Noise and anatomy that changes from slice to slice are those of one scan."""
    rng = np.random.default_rng(noise)
    for number in range(24):
        hu = np.maximum(paint(number) + rng.normal(0, noise, (SIZE, SIZE)).round().astype(int), -1024)
        write_slice(tmp_path / str(number), hu, STEP_MM * number)

    assert read_dicom(tmp_path).array.shape[0] == 24


@pytest.mark.parametrize("name", ["cptac-c3l-00189", "c4kc-kits-00072-top18"])
def test_real_series_are_one_scan(test_data: Path, name: str) -> None:
    """Their slices neither overlap nor take turns."""
    assert read_scan(test_data / "dicom" / f"{name}.zip").array.shape[0] in {18, 35}


@pytest.mark.parametrize("part", ["acquisition=3", "slices=3of2", "slices=0of2", "x"])
def test_scan_that_is_not_there_is_refused_with_the_choices(write_slice: WriteSlice, tmp_path: Path, part: str) -> None:
    """What follows the colon is one of the scans."""
    for number in range(2):
        write_scan(write_slice, tmp_path / str(number), begin_mm=2.5 * number, AcquisitionNumber=number, copy=number)

    with pytest.raises(KitsattnError, match=rf"no scan {part} in series 7: choose --series 7:acquisition=0 or "):
        read_dicom(tmp_path, f"7:{part}")


OTHERS: dict[str, dict[str, Any]] = {
    "capture": {**CAPTURE, "ImagePositionPatient": None},
    "capture with a place": CAPTURE,
    "colours": {**CAPTURE, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "colours of CT class": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "dose sheet": {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "DOSE_INFO"], "ImagePositionPatient": None},
    "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "coronal": {**CORONAL, "ImageType": ["DERIVED", "SECONDARY", "MPR"]},
    "projection": {"ImageType": ["DERIVED", "SECONDARY", "MIP"]},
    "8 bits": {"BitsStored": 8, "HighBit": 7},
    "other values": {"RescaleType": "MGML"},
    "one place": {"ImagePositionPatient": [0, 0, 0]},
    "another study's capture": {**CAPTURE, "ImagePositionPatient": None, "StudyInstanceUID": "1.3"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_scan_never_wins_by_number(write_slice: WriteSlice, tmp_path: Path, name: str) -> None:
    """The axial slices with CT values are read, and the other series is named."""
    other = {"SeriesInstanceUID": "1.2.9", "SeriesNumber": 9, **OTHERS[name]}
    for number in range(20):
        place = {"ImagePositionPatient": [0, 2.5 * number, 0]} if name == "coronal" else {}
        write_slice(tmp_path / "other" / str(number), paint(number), 2.5 * number, **other | place, copy=number)
    hu = write_scan(write_slice, tmp_path / "ct")

    scan = read_dicom(tmp_path)

    assert np.array_equal(scan.array, hu)
    assert "series 9" in scan.notes[0]


def test_series_that_cannot_be_read_names_those_that_can(write_slice: WriteSlice, tmp_path: Path) -> None:
    """By a wrong number, by one that holds no slices, and where the best one is damaged."""
    write_scan(write_slice, tmp_path / "small", 4, SeriesInstanceUID="1.2.4", SeriesNumber=4)
    write_scan(write_slice, tmp_path / "large", 8)
    shots = {"SeriesInstanceUID": "1.2.9", "SeriesNumber": 9, **OTHERS["capture"]}
    write_slice(tmp_path / "shot", paint(0), **shots)

    with pytest.raises(KitsattnError, match=r"no series 5, but series 7 [^9]*series 4 [^9]*: choose one"):
        read_dicom(tmp_path, "5")
    with pytest.raises(
        KitsattnError, match=r"series 9 .* none of which .*; or choose another .*: series 7.*, series 4"
    ):
        read_dicom(tmp_path, "9")
    (tmp_path / "large" / "4").unlink()
    with pytest.raises(KitsattnError, match=r"1 slice were missing.*; or choose another .*: series 4"):
        read_dicom(tmp_path)


def test_reformats_are_read_where_they_are_all_there_is(write_slice: WriteSlice, tmp_path: Path) -> None:
    """A study of coronal slices alone is read as it was."""
    for number in range(4):
        place = {"ImagePositionPatient": [0, STEP_MM * number, 0], **CORONAL, "copy": number}
        write_slice(tmp_path / str(number), paint(number), **place)

    assert read_dicom(tmp_path).array.shape == (SIZE, 4, SIZE)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keyword=st.sampled_from([keyword for keyword, _, _ in TRAITS]),
    counts=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    begin=st.integers(-30, 30),
)
def test_two_scans_are_one_only_where_they_do_not_overlap(
    write_slice: WriteSlice, tmp_path_factory: pytest.TempPathFactory, **drawn: Any
) -> None:
    """However two regular stacks lie to each other, in steps of 1 mm: refused where they share a stretch."""
    keyword, counts, begin = drawn["keyword"], drawn["counts"], drawn["begin"]
    values = next(values for name, values, _ in TRAITS if name == keyword)
    folder = tmp_path_factory.mktemp("series")
    for number, (count, start) in enumerate(zip(counts, (0, begin), strict=True)):
        changes = {"begin_mm": float(start), "kidney_hu": 100 + number, "copy": number, keyword: values[number]}
        write_scan(write_slice, folder / str(number), count, **changes)
    ends = [(start, start + STEP_MM * (count - 1)) for count, start in zip(counts, (0, begin), strict=True)]
    overlap = max(ends)[0] <= min(ends)[1]

    outcome: Any
    try:
        outcome = len(read_dicom(folder).array)
    except KitsattnError as error:
        outcome = str(error)

    if overlap:
        assert "several scans" in outcome
    else:
        assert outcome == sum(counts) or "several scans" not in outcome
    for chosen in re.findall(r"--series (\S+)", str(outcome)):
        assert len(read_dicom(folder, chosen).array) in counts
