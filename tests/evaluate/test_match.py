import shutil
from pathlib import Path

import pytest

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.match import CasePair, MatchedCases, add_scans, choose_protocol, match_cases
from kitsattn.files import write_json
from kitsattn.labels import KITS19, KITS23, KITS23_LABELS, ScoringProtocol


def touch(path: Path) -> Path:
    """Make an empty file: matching goes by names alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_two_files_are_one_case(tmp_path: Path) -> None:
    """Two files are paired whatever their names; the case is named after the reference."""
    prediction = touch(tmp_path / "out.nii.gz")
    reference = touch(tmp_path / "case_00003" / "segmentation.nii.gz")

    assert match_cases(prediction, reference) == MatchedCases((CasePair("case_00003", prediction, reference),))


@pytest.mark.parametrize(
    "name",
    [
        "prediction_00007.nii.gz",
        "case_00007.nii.gz",
        "case_00007.nii",
        "case_00007.nrrd",
        "case_00007.seg.nrrd",
        "case_00007.mha",
        "case_00007/segmentation.nii.gz",
        "case_00007/aggregated_MAJ_seg.nii.gz",
    ],
)
def test_folders_are_matched_by_case_id(tmp_path: Path, name: str) -> None:
    """The layouts of KiTS submissions, of the KiTS data and of plain folders all name the same case."""
    prediction = touch(tmp_path / "predictions" / name)
    touch(tmp_path / "predictions" / "summary.json")
    touch(tmp_path / "predictions" / ".1234.part.case_00008.nii.gz")
    reference = touch(tmp_path / "data" / "case_00007" / "segmentation.nii.gz")
    touch(tmp_path / "data" / "case_00007" / "imaging.nii.gz")

    matched = match_cases(tmp_path / "predictions", tmp_path / "data")

    assert matched == MatchedCases((CasePair("case_00007", prediction, reference),))


def test_missing_and_surplus_predictions_are_listed(tmp_path: Path) -> None:
    """A reference without prediction stays in, a prediction without reference is left out."""
    for name in ("b", "c", "d"):
        touch(tmp_path / "predictions" / f"{name}.nii.gz")
    for name in ("a", "b"):
        touch(tmp_path / "references" / f"{name}.nii.gz")

    matched = match_cases(tmp_path / "predictions", tmp_path / "references")

    assert [(pair.case, pair.prediction is None) for pair in matched.pairs] == [("a", True), ("b", False)]
    assert matched.missing == ("a",)
    assert matched.surplus == ("c", "d")


def test_nothing_matched_is_an_error_that_shows_the_names(tmp_path: Path) -> None:
    """Where no name agrees the error shows some of each, so that the user sees the difference."""
    for number in range(5):
        touch(tmp_path / "predictions" / f"kits_{number}.nii.gz")
    touch(tmp_path / "references" / "case_00001.nii.gz")

    with pytest.raises(
        KitsattnError, match=r"\(kits_0, kits_1, kits_2 and 2 more\).*\(case_00001\).*same name in both"
    ):
        match_cases(tmp_path / "predictions", tmp_path / "references")


def test_folder_without_label_maps_is_refused(tmp_path: Path) -> None:
    """An empty folder is named, with the layouts that are understood."""
    (tmp_path / "predictions").mkdir()
    touch(tmp_path / "references" / "case_00001.nii.gz")

    with pytest.raises(KitsattnError, match=r"predictions holds no label maps: .*case_00000/segmentation\.nii\.gz"):
        match_cases(tmp_path / "predictions", tmp_path / "references")


def test_two_files_of_one_case_are_refused(tmp_path: Path) -> None:
    """Which of two label maps counts is for the user to say."""
    touch(tmp_path / "predictions" / "prediction_00001.nii.gz")
    touch(tmp_path / "predictions" / "case_00001.nii.gz")
    touch(tmp_path / "references" / "case_00001.nii.gz")

    with pytest.raises(KitsattnError, match="are both label maps of case_00001: keep one"):
        match_cases(tmp_path / "predictions", tmp_path / "references")


@pytest.mark.parametrize("swapped", [False, True])
def test_file_against_folder_is_refused(tmp_path: Path, swapped: bool) -> None:  # noqa: FBT001 - a parameter
    """One file cannot be matched with a folder, either way round."""
    file = touch(tmp_path / "out.nii.gz")
    touch(tmp_path / "references" / "case_00001.nii.gz")
    paths = [file, tmp_path / "references"]

    with pytest.raises(KitsattnError, match=r"out\.nii\.gz is a file but .*references is a folder"):
        match_cases(*(reversed(paths) if swapped else paths))


def test_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """A wrong path is named."""
    with pytest.raises(KitsattnError, match="nowhere does not exist"):
        match_cases(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("place", ["raw", "raw/labels", "raw/labels/case_00001.nii.gz"])
def test_the_protocol_is_that_of_the_description_above_the_references(tmp_path: Path, place: str) -> None:
    """The labels in the nearest description decide, be it beside the references or above them."""
    touch(tmp_path / "raw" / "labels" / "case_00001.nii.gz")
    write_json(tmp_path / "raw" / "kitsattn-dataset.json", {"labels": dict(KITS23_LABELS)})

    assert choose_protocol(tmp_path / place) == KITS23


def test_labels_of_no_challenge_are_a_protocol_of_their_own(tmp_path: Path) -> None:
    """A description with other labels has them scored one by one."""
    write_json(tmp_path / "kitsattn-dataset.json", {"labels": {"background": 0, "liver": 1}})

    assert [region.key for region in choose_protocol(tmp_path).regions] == ["liver"]


@pytest.mark.parametrize(
    ("mark", "expected"), [("kits23.json", KITS23), ("case_00001/instances/tumor.nii.gz", KITS23), ("LICENSE", KITS19)]
)
def test_without_labels_in_a_description_the_marks_of_kits23_decide(
    tmp_path: Path, mark: str, expected: ScoringProtocol
) -> None:
    """KiTS23's own files show that there may be cysts; nothing that is known of the labels means KiTS19."""
    touch(tmp_path / "data" / "case_00001" / "segmentation.nii.gz")
    touch(tmp_path / "data" / mark)
    write_json(tmp_path / "kitsattn-dataset.json", {"name": "named"})

    assert choose_protocol(tmp_path / "data") == expected


def test_label_maps_with_nothing_around_them_are_scored_as_kits19(tmp_path: Path) -> None:
    """A file, or a folder of files, says nothing of its labels."""
    file = touch(tmp_path / "case_00001.nii.gz")

    assert (choose_protocol(file), choose_protocol(tmp_path)) == (KITS19, KITS19)


def test_the_protocol_is_that_of_nnunets_settings(tmp_path: Path) -> None:
    """`dataset.json` beside labelsTr names the labels, whatever the label maps happen to hold."""
    reference = touch(tmp_path / "data" / "labelsTr" / "a.nii.gz")
    touch(tmp_path / "data" / "imagesTr" / "a_0000.nii.gz")
    settings = {"channel_names": {"0": "CT"}, "labels": dict(KITS23_LABELS), "file_ending": ".nii.gz"}
    write_json(tmp_path / "data" / "dataset.json", settings)

    assert choose_protocol(reference.parent) == KITS23
    assert choose_protocol(reference) == KITS23
    shutil.rmtree(tmp_path / "data" / "imagesTr")
    assert choose_protocol(reference) == KITS23
    (tmp_path / "data" / "dataset.json").write_text("{}", encoding="utf-8")
    assert choose_protocol(reference.parent) == KITS19


@pytest.mark.parametrize(
    ("scan", "labels", "references"),
    [
        ("case_00007/imaging.nii.gz", "case_00007/segmentation.nii.gz", "."),
        ("imagesTr/case_00007_0000.nii.gz", "labelsTr/case_00007.nii.gz", "labelsTr"),
        ("imagesTr/case_00007_0000.nii.gz", "labelsTr/case_00007.nii.gz", "labelsTr/case_00007.nii.gz"),
    ],
)
def test_scans_are_found_beside_the_references(tmp_path: Path, scan: str, labels: str, references: str) -> None:
    """References in a data set of a known layout have their scans there."""
    expected = touch(tmp_path / "data" / scan)
    reference = touch(tmp_path / "data" / labels)
    if "labelsTr" in labels:
        settings = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "kidney": 1}, "file_ending": ".nii.gz"}
        write_json(tmp_path / "data" / "dataset.json", settings)
    matched = MatchedCases((CasePair("case_00007", None, reference),))

    assert [pair.scan for pair in add_scans(matched, tmp_path / "data" / references).pairs] == [expected]


def test_scans_are_found_from_within_the_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` has a folder above it too."""
    scan = touch(tmp_path / "data" / "imagesTr" / "a_0000.nii.gz")
    touch(tmp_path / "data" / "labelsTr" / "a.nii.gz")
    settings = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "kidney": 1}, "file_ending": ".nii.gz"}
    write_json(tmp_path / "data" / "dataset.json", settings)
    (tmp_path / "data" / "labelsTr" / "sub").mkdir()
    for place, references in (("labelsTr", Path()), ("labelsTr/sub", Path(".."))):
        monkeypatch.chdir(tmp_path / "data" / place)
        assert [pair.scan for pair in add_scans(match_cases(references, references), references).pairs] == [scan]


def test_references_on_their_own_have_no_scans(tmp_path: Path) -> None:
    """Nothing is guessed."""
    matched = MatchedCases((CasePair("a", None, touch(tmp_path / "references" / "a.nii.gz")),))

    assert add_scans(matched, tmp_path / "references") == matched
