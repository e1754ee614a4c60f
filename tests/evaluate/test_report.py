import base64
import json
from pathlib import Path

import pytest

from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.overlap import EMPTY_RULE
from kitsattn.evaluate.report import write_report, write_summary
from kitsattn.evaluate.run import Scores
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_SCORES_NOTICE


@pytest.fixture
def scores() -> Scores:
    """Two cases, one of them without a prediction, and a prediction too many."""
    cases = tuple(
        CaseScores(case, {"kidney_and_tumour": {"dice": kidney}, "tumour": {"dice": tumour}})
        for case, kidney, tumour in (("case_00001", 0.75, 0.5), ("case_00002", 0.0, 1.0))
    )
    return Scores(cases, missing=("case_00002",), surplus=("case_00009",))


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
        "Scores of 2 cases: composite 0.562",
        ">0.750<",
        ">0.375<",
        "case_00001. Dice: kidney and tumour 0.750, tumour 0.500.",
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
