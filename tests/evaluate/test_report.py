import base64
import json
from pathlib import Path

import pytest

from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.metrics import DICE, HD95, SURFACE_DICE, Scoring
from kitsattn.evaluate.overlap import EMPTY_RULE
from kitsattn.evaluate.report import write_csv, write_report, write_summary
from kitsattn.evaluate.scores import Scores
from kitsattn.labels import KITS23
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_SCORES_NOTICE


@pytest.fixture
def scores() -> Scores:
    """Two cases, one of them without a prediction, and a prediction too many."""
    cases = tuple(
        CaseScores(case, {"kidney_and_tumour": {"dice": kidney}, "tumour": {"dice": tumour}})
        for case, kidney, tumour in (("case_00001", 0.75, 0.5), ("case_00002", 0.0, 1.0))
    )
    return Scores(cases, Scoring(), missing=("case_00002",), surplus=("case_00009",))


def test_summary_holds_scores_and_provenance(tmp_path: Path, scores: Scores) -> None:
    """The file holds the scores as `to_json` lays them out, and what they were made with."""
    write_summary(tmp_path / "summary.json", scores, provenance={"model": "attention-deeplab-tiny"})

    content = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert content == {**scores.to_json(), "provenance": {"model": "attention-deeplab-tiny"}}


@pytest.mark.parametrize("synthetic", [False, True])
def test_report_says_what_the_numbers_are(
    tmp_path: Path,
    scores: Scores,
    synthetic: bool,  # noqa: FBT001 - a parameter
) -> None:
    """The page has every score, the means, the rule for empty regions, and the warnings that apply."""
    image = tmp_path / "case_00001.png"
    image.write_bytes(b"\x89PNG and so on")

    write_report(
        tmp_path / "report.html",
        scores,
        title="A fold",
        provenance={"model": "attention-deeplab-tiny"},
        synthetic=synthetic,
        images={"case_00001": image},
        next_steps={"kitsattn train --fold 1": "Train the next fold."},
    )

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in (
        "<h1>A fold</h1>",
        "Dice (2 cases), composite 0.562",
        ">0.750<",
        ">0.375<",
        "case_00001. Dice: kidney and tumour 0.750, tumour 0.500.",
        "KiTS19. Kidney and tumour: labels 1 (kidney) and 2 (tumour) as one region. Tumour: label 2",
        "with the outlines of kidney and tumour, predicted and reference.",
        "No prediction was found for case_00002: scored as all background.",
        "Left out, having no reference: case_00009.",
        "attention-deeplab-tiny",
        "<code>kitsattn train --fold 1</code>",
        base64.b64encode(b"\x89PNG and so on").decode(),
        RESEARCH_NOTICE,
        EMPTY_RULE,
    ):
        assert part in page
    assert (SYNTHETIC_SCORES_NOTICE in page) == synthetic


def test_report_of_kits23_has_a_column_for_each_of_its_regions(tmp_path: Path) -> None:
    """Table, note and pictures name the regions of the protocol, and the labels in each."""
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89PNG and so on")
    dice = {"kidney_and_masses": {"dice": 0.9}, "masses": {"dice": 0.8}, "tumour": {"dice": 0.4}}
    scores = Scores((CaseScores("a", dice),), Scoring(KITS23))

    write_report(tmp_path / "report.html", scores, title="", provenance={}, synthetic=False, images={"a": image})

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in (
        "Dice (1 case), composite 0.700",
        '<th scope="col">Kidney and masses',
        '<th scope="col">Masses',
        '<th scope="col">Tumour',
        "KiTS23. Kidney and masses: labels 1 (kidney), 2 (tumour) and 3 (cyst) as one region.",
        "Masses: labels 2 (tumour) and 3 (cyst) as one region. Tumour: label 2 (tumour).",
        "a. Dice: kidney and masses 0.900, masses 0.800, tumour 0.400.",
        "with the outlines of kidney, tumour and cyst, predicted and reference.",
    ):
        assert part in page


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
