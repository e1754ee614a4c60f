from pathlib import Path

from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.detection import Detection, Lesion
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.hd95 import HD95
from kitsattn.evaluate.metrics.surface_dice import SURFACE_DICE
from kitsattn.evaluate.metrics.volume_difference import VOLUME_DIFFERENCE
from kitsattn.evaluate.scores import Scores
from kitsattn.evaluate.scoring import Scoring
from kitsattn.evaluate.table import write_csv
from kitsattn.labels import KITS23


def test_csv_has_the_challenges_columns(tmp_path: Path) -> None:
    """Names and order of KiTS23's evaluation.csv, eight decimal places, the average last."""
    regions = ("kidney_and_masses", "masses", "tumour")
    cases = tuple(
        CaseScores(name, {key: {"dice": dice + place / 100, "surface_dice": 0.5} for place, key in enumerate(regions)})
        for name, dice in (("case_00001", 0.9), ("case_00002", 0.7))
    )

    write_csv(tmp_path / "evaluation.csv", Scores(cases, Scoring(KITS23, (DICE, SURFACE_DICE))))

    assert (tmp_path / "evaluation.csv").read_text().splitlines() == [
        "caseID,Dice_kidney,Dice_masses,Dice_tumor,SD_kidney,SD_masses,SD_tumor",
        "case_00001,0.90000000,0.91000000,0.92000000,0.50000000,0.50000000,0.50000000",
        "case_00002,0.70000000,0.71000000,0.72000000,0.50000000,0.50000000,0.50000000",
        "average,0.80000000,0.81000000,0.82000000,0.50000000,0.50000000,0.50000000",
    ]


def test_csv_of_other_regions_and_of_what_is_not_defined(tmp_path: Path) -> None:
    """Regions keep their keys; a distance of nothing is empty."""
    nan = float("nan")
    cases = (CaseScores("a,b", {"kidney_and_tumour": {"hd95_mm": 2.5}, "tumour": {"hd95_mm": nan}}),)

    write_csv(tmp_path / "evaluation.csv", Scores(cases, Scoring(metrics=(HD95,))))

    assert (tmp_path / "evaluation.csv").read_text().splitlines() == [
        "caseID,HD95_mm_kidney_and_tumour,HD95_mm_tumour",
        '"a,b",2.50000000,',
        "average,2.50000000,",
    ]


def test_csv_of_volumes_and_lesions(tmp_path: Path) -> None:
    """Volumes come with their parts, lesions as counts; a file's name that is no UTF-8 is written somehow."""
    volumes = {"predicted_ml": 2.0, "reference_ml": 3.0, "volume_difference_ml": -1.0}
    lesions = {"tumour": Detection((Lesion(1.0, 0.5), Lesion(0.5, 0.0)), (Lesion(1.0, 0.5),))}
    case = CaseScores("a\udce9", {"kidney_and_tumour": volumes, "tumour": volumes}, lesions)

    write_csv(tmp_path / "evaluation.csv", Scores((case,), Scoring(metrics=(VOLUME_DIFFERENCE,), lesions=True)))

    header, row, _ = (tmp_path / "evaluation.csv").read_text().splitlines()
    found = dict(zip(header.split(","), row.split(","), strict=True))
    assert found["caseID"] == "a?"
    assert [float(found[f"{part}_ml_tumour"]) for part in ("Predicted", "Reference", "Difference")] == [2, 3, -1]
    counts = ("Lesions", "Found", "Predicted_lesions", "True_lesions")
    assert [float(found[f"{count}_tumour"]) for count in counts] == [2, 1, 1, 1]
