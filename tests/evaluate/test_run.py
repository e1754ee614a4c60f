from pathlib import Path

import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.metrics import ASSD, DISTANCE_RULE, HD95, SURFACE_DICE
from kitsattn.evaluate.overlap import EMPTY_RULE
from kitsattn.evaluate.run import CasePair, MatchedCases, Scores, choose_protocol, evaluate_cases, match_cases
from kitsattn.files import write_json
from kitsattn.labels import KITS19, KITS23, KITS23_LABELS, ScoringProtocol
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume


def touch(path: Path) -> Path:
    """Make an empty file: matching goes by names alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_row(path: Path, *values: int) -> Path:
    """Write a label map of one row of voxels."""
    geometry = Geometry.axial((1, 1, len(values)), (5.0, 0.7, 0.9))
    write_nifti(path, Volume(np.array([[values]], dtype=np.uint8), geometry))
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

    with pytest.raises(KitsattnError, match=r"\(kits_0, kits_1, kits_2 and 2 more\).*\(case_00001\).*alike in both"):
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


@pytest.mark.parametrize("workers", [1, 2])
def test_cohort_worked_by_hand(tmp_path: Path, workers: int) -> None:
    """Means are over the cases, a missing prediction counts as background, the composite is the mean of the means."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write_row(predictions / "a.nii.gz", 1, 1, 2, 0)
    write_row(references / "a.nii.gz", 1, 2, 2, 0)
    write_row(references / "b.nii.gz", 1, 0, 0, 0)
    write_row(predictions / "z.nii.gz", 1, 0, 0, 0)
    reports: list[tuple[str, int, int]] = []

    scores = evaluate_cases(
        match_cases(predictions, references),
        workers=workers,
        progress=lambda label, done, total: reports.append((label, done, total)),
    )

    found = scores.to_json()
    assert found.pop("spread")["tumour"]["dice"] == {
        "cases": 2,
        "median": pytest.approx(5 / 6),
        "sd": pytest.approx(np.sqrt(1 / 18)),
        "mean_ci95": [pytest.approx(2 / 3), 1.0],
    }
    assert found == {
        "protocol": "kits19",
        "cases": [
            {"case": "a", "kidney_and_tumour": {"dice": 1.0}, "tumour": {"dice": pytest.approx(2 / 3)}},
            {"case": "b", "kidney_and_tumour": {"dice": 0.0}, "tumour": {"dice": 1.0}},
        ],
        "mean": {"kidney_and_tumour": {"dice": 0.5}, "tumour": {"dice": pytest.approx(5 / 6)}},
        "composite": pytest.approx(2 / 3),
        "rules": [EMPTY_RULE],
        "missing": ["b"],
        "surplus": ["z"],
    }
    assert reports == [("evaluate", 0, 2), ("evaluate", 1, 2), ("evaluate", 2, 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_cohort_with_cysts_worked_by_hand(tmp_path: Path, workers: int) -> None:
    """KiTS23's three regions are averaged over the cases, and the composite is the mean of the three."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write_row(predictions / "a.nii.gz", 1, 1, 3, 3, 2, 0)
    write_row(references / "a.nii.gz", 1, 3, 3, 2, 2, 0)
    write_row(predictions / "b.nii.gz", 1, 1, 0, 3)
    write_row(references / "b.nii.gz", 1, 1, 0, 0)
    write_row(references / "c.nii.gz", 1, 3)

    scores = evaluate_cases(match_cases(predictions, references), protocol=KITS23, workers=workers)

    # a: 5 of 5 and 5 labelled; 3 of 3 and 4 masses; 1 of 1 and 2 tumours. b: 2 of 3 and 2; a mass of none; no tumour.
    # c: nothing of 2 labelled and of 1 mass; no tumour.
    found = scores.to_json()
    assert list(found.pop("spread")) == ["kidney_and_masses", "masses", "tumour"]
    assert found == {
        "protocol": "kits23",
        "cases": [
            {
                "case": "a",
                "kidney_and_masses": {"dice": 1.0},
                "masses": {"dice": pytest.approx(6 / 7)},
                "tumour": {"dice": pytest.approx(2 / 3)},
            },
            {
                "case": "b",
                "kidney_and_masses": {"dice": pytest.approx(4 / 5)},
                "masses": {"dice": 0.0},
                "tumour": {"dice": 1.0},
            },
            {"case": "c", "kidney_and_masses": {"dice": 0.0}, "masses": {"dice": 0.0}, "tumour": {"dice": 1.0}},
        ],
        "mean": {
            "kidney_and_masses": {"dice": pytest.approx(3 / 5)},
            "masses": {"dice": pytest.approx(2 / 7)},
            "tumour": {"dice": pytest.approx(8 / 9)},
        },
        "composite": pytest.approx((3 / 5 + 2 / 7 + 8 / 9) / 3),
        "rules": [EMPTY_RULE],
        "missing": ["c"],
        "surplus": [],
    }


def test_a_distance_that_is_not_defined_is_left_out_of_the_mean(tmp_path: Path) -> None:
    """One region is in one label map only, in JSON null; the tumour is in none, where distances are 0."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write_row(predictions / "a.nii.gz", 1, 1, 0, 0)
    write_row(references / "a.nii.gz", 1, 1, 1, 0)
    write_row(references / "b.nii.gz", 1, 1, 0, 0)

    scores = evaluate_cases(match_cases(predictions, references), metrics=[SURFACE_DICE, HD95]).to_json()

    assert [case["kidney_and_tumour"]["hd95_mm"] for case in scores["cases"]] == [pytest.approx(0.9), None]
    assert scores["mean"]["kidney_and_tumour"] == {"surface_dice": 0.5, "hd95_mm": pytest.approx(0.9)}
    assert scores["mean"]["tumour"] == {"surface_dice": 1.0, "hd95_mm": 0.0}
    assert "composite" not in scores
    tolerances = "Tolerances of surface Dice: kidney_and_tumour 1.033 mm, tumour 1.15 mm."
    assert scores["rules"] == [EMPTY_RULE, DISTANCE_RULE, tolerances]


def test_a_distance_that_is_defined_for_no_case_has_no_mean(tmp_path: Path) -> None:
    """JSON knows no NaN."""
    reference = write_row(tmp_path / "reference.nii.gz", 1, 0)
    empty = write_row(tmp_path / "empty.nii.gz", 0, 0)

    scores = evaluate_cases(match_cases(empty, reference), metrics=[ASSD]).to_json()

    assert scores["mean"] == {"kidney_and_tumour": {"assd_mm": None}, "tumour": {"assd_mm": 0.0}}
    assert scores["spread"]["kidney_and_tumour"]["assd_mm"] == {
        "cases": 0,
        "median": None,
        "sd": None,
        "mean_ci95": None,
    }
    assert scores["rules"] == [DISTANCE_RULE]


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


def test_composite_is_the_mean_of_the_mean_dice_values() -> None:
    """KiTS19 ranks by the mean of mean kidney-and-tumour Dice and mean tumour Dice."""
    cases = tuple(
        CaseScores(case, {"kidney_and_tumour": {"dice": kidney}, "tumour": {"dice": tumour}})
        for case, kidney, tumour in (("a", 0.9, 0.5), ("b", 1.0, 0.8))
    )

    assert Scores(cases, KITS19).composite == pytest.approx((0.95 + 0.65) / 2)
