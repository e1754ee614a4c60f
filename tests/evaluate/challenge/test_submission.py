import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.challenge.submission import (
    AFFINE_TOLERANCE,
    CheckedSubmission,
    check_submission,
    guess_protocol,
    zip_submission,
)
from kitsattn.jobs import Workers
from kitsattn.labels import KITS19, KITS23, ScoringProtocol, protocol_of
from kitsattn.volume.geometry import Geometry, Triple
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

SPACING_MM = (5.0, 0.7, 0.9)


def write_row(
    path: Path,
    *values: float,
    dtype: type = np.uint8,
    axes: str = "RAS",
    origin_mm: Triple = (0.0, 0.0, 0.0),
) -> Path:
    """Write a label map, or a scan, of one row of voxels."""
    geometry = Geometry.axial((1, 1, len(values)), SPACING_MM, origin_mm)
    write_nifti(path, Volume(np.array([[values]], dtype=dtype), geometry), axes=axes)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound predictions: of case 00300, and of case 00210 of KiTS19."""
    write_row(tmp_path / "predictions" / "case_00300.nii.gz", 0, 1, 2)
    write_row(tmp_path / "predictions" / "prediction_00210.nii.gz", 0, 1, 2)
    return tmp_path / "predictions"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Their scans."""
    write_row(tmp_path / "images" / "case_00300.nii.gz", -1000, 40, 300, dtype=np.int16)
    write_row(tmp_path / "images" / "case_00210.nii.gz", -1000, 40, 300, dtype=np.int16)
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [1, 2])
def test_sound_submission_to_kits23(folder: Path, images: Path, workers: int) -> None:
    """Every scan has its prediction, on its grid: nothing is said, whatever the files were named; each is reported."""
    reports: list[tuple[str, int, int]] = []

    checked = check_submission(
        folder, images, KITS23, workers=Workers(workers), progress=lambda *report: reports.append(report)
    )

    files = {
        "case_00210.nii.gz": folder / "prediction_00210.nii.gz",
        "case_00300.nii.gz": folder / "case_00300.nii.gz",
    }
    assert checked == CheckedSubmission(KITS23, files, (), (), ())
    assert reports == [("check", 0, 2), ("check", 1, 2), ("check", 2, 2)]


@pytest.mark.parametrize("name", ["case_{}/imaging.nii.gz", "case_{}.nii.gz", "case_{}_0000.nii.gz"])
def test_scans_are_found_in_every_layout(tmp_path: Path, name: str) -> None:
    """The layouts of the KiTS data, of KiTS23's check and of nnU-Net name the same scan; other files are none."""
    write_row(tmp_path / "images" / "case_00300_0001.nii.gz", 0)
    prediction = write_row(tmp_path / "predictions" / "case_00300.nii.gz", 0, 1, 2, 2)
    scan = write_row(tmp_path / "images" / name.format("00300"), -1000, 40, 300, dtype=np.int16)

    checked = check_submission(prediction.parent, tmp_path / "images", KITS23)

    fix = "write it on the grid of its scan, in the same order of axes, as `kitsattn predict` does"
    assert checked.problems == (f"{prediction} has the shape (4, 1, 1), {scan} has (3, 1, 1): {fix}",)


def test_kits19_takes_its_test_cases_alone(folder: Path) -> None:
    """Cases 00210 to 00299 go in as prediction_; what is missing of them is a warning, what is more a note."""
    write_row(folder / "case_00299.nii.gz", 0, 1, 2)

    checked = check_submission(folder, None, KITS19)

    assert not checked.problems
    assert checked.files == {
        "prediction_00210.nii.gz": folder / "prediction_00210.nii.gz",
        "prediction_00299.nii.gz": folder / "case_00299.nii.gz",
    }
    first = ", ".join(f"prediction_{number:05}.nii.gz" for number in range(211, 216))
    assert checked.warnings == (f"{folder} lacks {first} and 83 more: what is missing counts as background",)
    assert checked.notes == (
        "These do not go into the archive: case_00300.nii.gz.",
        "Shapes and affines were not checked: that needs the test scans.",
    )


def test_kits19_without_some_scans_goes_unchecked_there(folder: Path, images: Path) -> None:
    """Its test cases are fixed: one without a scan goes in, and is said to be unchecked."""
    write_row(folder / "prediction_00211.nii.gz", 0, 1, 2)

    checked = check_submission(folder, images, KITS19)

    assert list(checked.files) == ["prediction_00210.nii.gz", "prediction_00211.nii.gz"]
    assert f"{images} holds no scan of prediction_00211.nii.gz: shape and affine were not checked" in checked.warnings
    assert not checked.problems


def test_kits23_without_scans_says_what_was_not_checked(folder: Path) -> None:
    """What is there is checked, and goes in."""
    checked = check_submission(folder, None, KITS23)

    assert list(checked.files) == ["case_00210.nii.gz", "case_00300.nii.gz"]
    assert checked.notes == (
        "Shapes, affines, and whether every case is there, were not checked: that needs the test scans.",
    )
    assert not checked.problems + checked.warnings


def test_kits23_misses_every_scan_without_prediction(folder: Path, images: Path) -> None:
    """A case that is missing is a problem, one line each; a prediction without scan stays out."""
    for number in ("00301", "00302"):
        write_row(images / f"case_{number}.nii.gz", -1000, 40, 300, dtype=np.int16)
    (images / "case_00210.nii.gz").unlink()

    checked = check_submission(folder, images, KITS23)

    assert checked.problems == (
        f"{folder / 'case_00301.nii.gz'} is missing: predict that case too",
        f"{folder / 'case_00302.nii.gz'} is missing: predict that case too",
    )
    assert checked.notes == ("These do not go into the archive: prediction_00210.nii.gz.",)
    assert list(checked.files) == ["case_00300.nii.gz"]


@pytest.mark.parametrize(
    ("names", "protocol"),
    [
        (["case_00210.nii.gz", "prediction_00299.nii.gz"], KITS19),
        (["case_00299.nii.gz", "case_00300.nii"], KITS23),
        (["summary_00300.json"], KITS19),
    ],
)
def test_challenge_is_told_by_the_numbers(tmp_path: Path, names: list[str], protocol: ScoringProtocol) -> None:
    """Test cases up to 00299 are KiTS19's, later ones those of KiTS21 and KiTS23."""
    for name in names:
        (tmp_path / name).touch()

    assert guess_protocol(tmp_path) == protocol


@pytest.mark.parametrize("protocol", [KITS19, KITS23])
def test_folder_without_predictions_is_a_problem(tmp_path: Path, protocol: ScoringProtocol) -> None:
    """One line says how files are named."""
    (tmp_path / "case_00210").mkdir()
    (tmp_path / "case_210.nii.gz").touch()

    checked = check_submission(tmp_path, None, protocol)

    name = {"kits19": "prediction", "kits23": "case"}[protocol.key]
    assert checked.problems == (f"{tmp_path} holds no predictions of test cases: name them {name}_NNNNN.nii.gz",)
    assert not checked.warnings
    assert checked.notes[0] == "These do not go into the archive: case_00210, case_210.nii.gz."


def test_other_files_are_noted(folder: Path, images: Path) -> None:
    """What does not go in is listed, up to some; hidden files are not."""
    for name in ("a.json", "b", "c.npz", "case_00300.pkl", "case_00300_0000.nii.gz", "z", ".DS_Store"):
        (folder / name).touch()

    checked = check_submission(folder, images, KITS23)

    expected = "a.json, b, c.npz, case_00300.pkl, case_00300_0000.nii.gz and 1 more"
    assert checked.notes == (f"These do not go into the archive: {expected}.",)
    assert not checked.problems + checked.warnings


def test_two_files_of_one_case_are_a_problem(folder: Path, images: Path) -> None:
    """Which of them counts is for the user to say, whatever their names and formats."""
    write_row(folder / "case_00210.nii.gz", 0, 1, 2)
    write_row(folder / "case_00300.nii", 0, 1, 2)

    checked = check_submission(folder, images, KITS23)

    pairs = {
        "00210": ("case_00210.nii.gz", "prediction_00210.nii.gz"),
        "00300": ("case_00300.nii", "case_00300.nii.gz"),
    }
    assert checked.problems == tuple(
        f"{folder / first} and {folder / second} are both of case {number}: keep one of them"
        for number, (first, second) in pairs.items()
    )
    assert not checked.files


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".NII.GZ"])
def test_other_format_is_a_problem(folder: Path, images: Path, suffix: str) -> None:
    """The line says which format to write."""
    wrong = (folder / "case_00300.nii.gz").rename(folder / f"case_00300{suffix}")

    checked = check_submission(folder, images, KITS23)

    assert checked.problems == (f"{wrong} has a format that the challenge does not take: write it as .nii.gz",)


def write_truncated(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_uncompressed(path: Path) -> None:
    """Write NIfTI without gzip under a name that announces it."""
    write_row(path.with_name("a.nii"), 0, 1, 2).replace(path)


def write_four_axes(path: Path) -> None:
    """Write a label map with a trailing axis of length 1."""
    image: Any = nib.load(path)
    nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine).to_filename(path)


def write_two_volumes(path: Path) -> None:
    """Write the probabilities of two classes."""
    nib.Nifti1Image(np.zeros((3, 1, 1, 2), np.float32), np.diag([0.9, 0.7, 5, 1])).to_filename(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write_truncated, "{} is truncated or damaged .*: copy or download it again"),
        (lambda path: path.write_text("labels"), "{} is not a NIfTI file .*"),
        (write_uncompressed, r"{} is named \.nii\.gz but is not compressed: compress it with gzip"),
        (write_four_axes, r"{} has the shape \(3, 1, 1, 1\): write it with three axes"),
        (write_two_volumes, r"{} has the shape \(3, 1, 1, 2\): a scan has three axes, extract one volume from it"),
        (
            lambda path: write_row(path, 0, 0.5, 2, dtype=np.float32),
            "{} holds the value 0.5: a label map holds whole numbers from 0 to 255; .*",
        ),
        (
            lambda path: write_row(path, -1000, 40, 300, dtype=np.int16),
            "{} holds values from -1000 to 300: a label map holds whole numbers from 0 to 255",
        ),
        (lambda path: write_row(path, 0, 1, 2, 0), r"{} has the shape \(4, 1, 1\), .* has \(3, 1, 1\): write it on .*"),
        (
            lambda path: write_row(path, 0, 1, 2, axes="SAR"),
            r"{} has the shape \(1, 1, 3\), .* has \(3, 1, 1\): .* in the same order of axes, .*",
        ),
        (lambda path: write_row(path, 0, 1, 2, axes="LAS"), "{} has another affine than .*, by 3.6 in sum: write .*"),
    ],
)
def test_what_is_wrong_with_a_file_is_a_problem(
    folder: Path, images: Path, spoil: Callable[[Path], object], message: str
) -> None:
    """One line names the file and how to fix it; the other files are checked all the same."""
    path = folder / "case_00300.nii.gz"
    spoil(path)
    write_row(folder / "prediction_00210.nii.gz", 0, 0, 0)

    checked = check_submission(folder, images, KITS23)

    assert len(checked.problems) == 1
    assert re.fullmatch(message.format(re.escape(str(path))), checked.problems[0])
    assert [warning.partition(" ")[0] for warning in checked.warnings] == [str(folder / "prediction_00210.nii.gz")]


def test_a_file_with_two_faults_has_two_problems(folder: Path, images: Path) -> None:
    """The grid is compared although the values are wrong."""
    write_row(folder / "case_00300.nii.gz", 0, 0.5, 2, 0, dtype=np.float32)

    assert len(check_submission(folder, images, KITS23).problems) == 2


@pytest.mark.parametrize(("shift_mm", "problems"), [(0.9 * AFFINE_TOLERANCE, 0), (1.1 * AFFINE_TOLERANCE, 1)])
def test_affines_may_differ_by_a_little(folder: Path, images: Path, shift_mm: float, problems: int) -> None:
    """The challenge's tolerance holds for the sum over the affine."""
    write_row(folder / "case_00300.nii.gz", 0, 1, 2, origin_mm=(shift_mm / 2, shift_mm / 2, 0))

    assert len(check_submission(folder, images, KITS23).problems) == problems


@pytest.mark.parametrize("name", ["predictions", "images"])
def test_affine_is_the_one_in_the_file(folder: Path, images: Path, name: str) -> None:
    """As in the challenge's check units count for nothing: micrometres are another affine than millimetres."""
    affine = np.diag([900.0, 700.0, 5000.0, 1.0])
    image = nib.Nifti1Image(np.zeros((3, 1, 1), np.int16), affine)
    image.header.set_xyzt_units("micron")
    image.to_filename(folder.parent / name / "case_00300.nii.gz")

    problem = check_submission(folder, images, KITS23).problems[0]

    loaded: list[Any] = [nib.load(place / "case_00300.nii.gz") for place in (folder, images)]
    difference = np.abs(loaded[0].affine - loaded[1].affine).sum()
    assert f"by {difference:.3g} in sum" in problem


def test_scan_that_cannot_be_read_is_a_problem(folder: Path, images: Path) -> None:
    """It is the scan that is named."""
    (images / "case_00300.nii.gz").write_text("scan")

    (problem,) = check_submission(folder, images, KITS23).problems

    assert problem.startswith(f"{images / 'case_00300.nii.gz'} is not a NIfTI file")


def test_whole_numbers_of_any_type_are_labels(folder: Path, images: Path) -> None:
    """Labels may be stored as floating-point numbers."""
    write_row(folder / "case_00300.nii.gz", 0, 1, 3, dtype=np.float64)

    checked = check_submission(folder, images, KITS23)

    assert not checked.problems + checked.warnings


@pytest.mark.parametrize(
    ("protocol", "values", "told"),
    [
        (KITS19, (1, 2, 3), "3, which count as background: KiTS19 knows 0 background, 1 kidney, 2 tumour"),
        (KITS23, (1, 4, 255), "4, 255, which count as background: KiTS23 knows 0 background, 1 kidney, 2 tumour, 3"),
        (KITS23, (3, *range(10, 17)), "10, 11, 12, 13, 14 and 2 more, which count as background"),
    ],
)
def test_values_that_the_challenge_does_not_know_are_a_warning(
    tmp_path: Path, protocol: ScoringProtocol, values: tuple[int, ...], told: str
) -> None:
    """They count as background, and the known ones are named."""
    path = write_row(tmp_path / "case_00210.nii.gz", 0, *values)

    checked = check_submission(tmp_path, None, protocol)

    assert not checked.problems
    assert checked.warnings[-1].startswith(f"{path} holds the values {told}")


@pytest.mark.parametrize("value", [0, 9])
def test_empty_prediction_is_a_warning(tmp_path: Path, value: int) -> None:
    """A prediction of background alone, or of values that count as such, is hardly meant."""
    path = write_row(tmp_path / "case_00300.nii.gz", 0, value, 0)

    warning = check_submission(tmp_path, None, KITS23).warnings[-1]

    assert warning == f"{path} holds nothing but background: see that its prediction did not fail"


@pytest.mark.parametrize(
    ("predictions", "scans", "message"),
    [
        ("nowhere", "images", "nowhere does not exist: name a folder"),
        ("predictions", "nowhere", "nowhere does not exist: name a folder"),
        ("images/case_00300.nii.gz", "images", r"case_00300\.nii\.gz is a file: name a folder"),
        ("predictions", "empty", r"empty holds no test scans: they are expected as case_00210/imaging\.nii\.gz"),
    ],
)
@pytest.mark.usefixtures("folder", "images")
def test_wrong_folder_is_refused(tmp_path: Path, predictions: str, scans: str, message: str) -> None:
    """Where there is nothing to check, the path is named."""
    (tmp_path / "empty").mkdir()

    with pytest.raises(KitsattnError, match=message):
        check_submission(tmp_path / predictions, tmp_path / scans, KITS23)


def test_folder_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in one line what to fix."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)

    with pytest.raises(KitsattnError, match=r"predictions cannot be read \(Permission denied\): see that you may read"):
        check_submission(folder, None, KITS23)


def test_labels_of_no_challenge_are_refused(folder: Path) -> None:
    """Only a challenge has rules for submissions."""
    with pytest.raises(KitsattnError, match="add --protocol kits19 or kits23"):
        check_submission(folder, None, protocol_of({"background": 0, "lung": 1}))


def test_check_as_json(folder: Path) -> None:
    """Paths are text, and the lines are lists."""
    write_row(folder / "case_00300.nii.gz", 0, 0)
    (folder / "prediction_00210.nii.gz").rename(folder / "prediction_00210.nii")

    checked = check_submission(folder, None, KITS23)

    assert json.loads(json.dumps(checked.to_json())) == {
        "protocol": "kits23",
        "files": {"case_00300.nii.gz": str(folder / "case_00300.nii.gz")},
        "problems": list(checked.problems),
        "warnings": list(checked.warnings),
        "notes": list(checked.notes),
    }
    assert (len(checked.problems), len(checked.warnings), len(checked.notes)) == (1, 1, 1)


def test_archive_holds_the_files_flat_and_unchanged(tmp_path: Path, folder: Path) -> None:
    """Names are the challenge's, in order; the bytes are those of the files, as they are."""
    checked = check_submission(folder, None, KITS23)

    zip_submission(tmp_path / "predictions.zip", checked)

    with zipfile.ZipFile(tmp_path / "predictions.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["case_00210.nii.gz", "case_00300.nii.gz"]
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.external_attr >> 16 == 0o100644  # a plain file that everybody may read
            assert archive.read(entry) == checked.files[entry.filename].read_bytes()


def test_same_files_give_the_same_archive(tmp_path: Path, folder: Path) -> None:
    """Neither times nor order nor the files' old names change a byte."""
    zip_submission(tmp_path / "first.zip", check_submission(folder, None, KITS23))
    renamed = (folder / "prediction_00210.nii.gz").rename(folder / "case_00210.nii.gz")
    os.utime(renamed, (0, 0))
    renamed.chmod(0o600)
    checked = check_submission(folder, None, KITS23)
    backwards = CheckedSubmission(KITS23, dict(sorted(checked.files.items(), reverse=True)), (), (), ())

    zip_submission(tmp_path / "second.zip", backwards)

    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_files_of_any_size_go_in(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the limit of plain zip archives, here lowered, is written as zip64."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)

    zip_submission(tmp_path / "predictions.zip", check_submission(folder, None, KITS23))

    with zipfile.ZipFile(tmp_path / "predictions.zip") as archive:
        assert archive.testzip() is None


def test_submission_with_problems_is_not_archived(tmp_path: Path, folder: Path) -> None:
    """The first problem is quoted, the others are counted, and nothing is written."""
    (folder / "case_00300.nii.gz").write_text("labels")
    (folder / "prediction_00210.nii.gz").write_text("labels")

    with pytest.raises(KitsattnError, match=r"fix first: .*prediction_00210.* is not a NIfTI file .* \(and 1 more\)"):
        zip_submission(tmp_path / "predictions.zip", check_submission(folder, None, KITS23))

    assert not list(tmp_path.glob("*.zip"))


def test_archive_is_named_zip(tmp_path: Path, folder: Path) -> None:
    """A slip of the path cannot replace a prediction."""
    with pytest.raises(KitsattnError, match=r"is not the name of a zip archive: use a name such as predictions\.zip"):
        zip_submission(folder / "case_00300.nii.gz", check_submission(folder, None, KITS23))


def test_archive_that_fails_leaves_the_older_one(tmp_path: Path, folder: Path) -> None:
    """A file that has gone since is named; what was there before stays, and nothing half-written."""
    checked = check_submission(folder, None, KITS23)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.zip").write_text("older")
    (folder / "case_00300.nii.gz").unlink()

    with pytest.raises(KitsattnError, match=r"case_00300\.nii\.gz cannot be read"):
        zip_submission(tmp_path / "out" / "predictions.zip", checked)

    assert [path.read_text("utf-8") for path in (tmp_path / "out").iterdir()] == ["older"]
