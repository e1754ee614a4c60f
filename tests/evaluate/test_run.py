from math import nan
from pathlib import Path

import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.detection import Detection, Lesion
from kitsattn.evaluate.match import match_cases
from kitsattn.evaluate.metrics.assd import ASSD
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.hd95 import HD95
from kitsattn.evaluate.metrics.metric import DISTANCE_RULE, EMPTY_RULE
from kitsattn.evaluate.metrics.surface_dice import SURFACE_DICE
from kitsattn.evaluate.metrics.volume_difference import VOLUME_DIFFERENCE
from kitsattn.evaluate.run import evaluate_cases
from kitsattn.evaluate.scores import Scores
from kitsattn.evaluate.scoring import Scoring
from kitsattn.jobs import Workers
from kitsattn.labels import KITS19, KITS23, protocol_of
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume


def write_row(path: Path, *values: int) -> Path:
    """Write a label map of one row of voxels."""
    geometry = Geometry.axial((1, 1, len(values)), (5.0, 0.7, 0.9))
    write_nifti(path, Volume(np.array([[values]], dtype=np.uint8), geometry))
    return path


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
        Scoring(),
        workers=Workers(workers),
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
        "turned": [],
        "failed": {},
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

    scores = evaluate_cases(match_cases(predictions, references), Scoring(KITS23), workers=Workers(workers))

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
        "turned": [],
        "failed": {},
    }


def test_a_distance_that_is_not_defined_is_left_out_of_the_mean(tmp_path: Path) -> None:
    """One region is in one label map only, in JSON null; the tumour is in none, where distances are 0."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write_row(predictions / "a.nii.gz", 1, 1, 0, 0)
    write_row(references / "a.nii.gz", 1, 1, 1, 0)
    write_row(references / "b.nii.gz", 1, 1, 0, 0)

    scores = evaluate_cases(match_cases(predictions, references), Scoring(metrics=(SURFACE_DICE, HD95))).to_json()

    assert [case["kidney_and_tumour"]["hd95_mm"] for case in scores["cases"]] == [pytest.approx(0.9), None]
    assert scores["mean"]["kidney_and_tumour"] == {"surface_dice": 0.5, "hd95_mm": pytest.approx(0.9)}
    assert scores["mean"]["tumour"] == {"surface_dice": 1.0, "hd95_mm": 0.0}
    assert "composite" not in scores
    tolerances = "Tolerances of surface Dice: kidney_and_tumour 1.033 mm, tumour 1.15 mm."
    assert scores["rules"] == [EMPTY_RULE, DISTANCE_RULE, tolerances, "Definition of surfaces: surface-distance."]


def test_a_distance_that_is_defined_for_no_case_has_no_mean(tmp_path: Path) -> None:
    """JSON knows no NaN."""
    reference = write_row(tmp_path / "reference.nii.gz", 1, 0)
    empty = write_row(tmp_path / "empty.nii.gz", 0, 0)

    scores = evaluate_cases(match_cases(empty, reference), Scoring(metrics=(ASSD,))).to_json()

    assert scores["mean"] == {"kidney_and_tumour": {"assd_mm": None}, "tumour": {"assd_mm": 0.0}}
    assert scores["spread"]["kidney_and_tumour"]["assd_mm"] == {
        "cases": 0,
        "median": None,
        "sd": None,
        "mean_ci95": None,
    }
    assert scores["rules"][0] == DISTANCE_RULE


def test_composite_is_the_mean_of_the_mean_dice_values() -> None:
    """KiTS19 ranks by the mean of mean kidney-and-tumour Dice and mean tumour Dice."""
    cases = tuple(
        CaseScores(case, {"kidney_and_tumour": {"dice": kidney}, "tumour": {"dice": tumour}})
        for case, kidney, tumour in (("a", 0.9, 0.5), ("b", 1.0, 0.8))
    )

    assert Scores(cases, Scoring()).composite == pytest.approx((0.95 + 0.65) / 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_case_that_cannot_be_scored_costs_no_other(tmp_path: Path, workers: int) -> None:
    """The others have their scores and the mean; the reason is one line that names the file."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for name in ("a", "b", "c"):
        write_row(references / f"{name}.nii.gz", 1, 1, 2, 0)
        write_row(predictions / f"{name}.nii.gz", 1, 1, 2, 0)
    (predictions / "b.nii.gz").write_bytes(b"no label map")

    scores = evaluate_cases(match_cases(predictions, references), Scoring(), workers=Workers(workers))

    assert [case.case for case in scores.cases] == ["a", "c"]
    assert scores.composite == 1
    assert list(scores.failed) == ["b"]
    assert str(predictions / "b.nii.gz") in scores.failed["b"]
    assert "\n" not in scores.failed["b"]


def test_a_case_that_failed_is_not_missing_too(tmp_path: Path) -> None:
    """A reference that cannot be read is no case that was scored as empty."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for name in ("a", "b", "c"):
        write_row(references / f"{name}.nii.gz", 1, 0)
    write_row(predictions / "a.nii.gz", 1, 0)
    (references / "b.nii.gz").write_bytes(b"no label map")

    scores = evaluate_cases(match_cases(predictions, references), Scoring())

    assert (list(scores.failed), scores.missing) == (["b"], ("c",))


def test_where_no_case_can_be_scored_every_reason_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to give a mean of: the last reason is the error, the others are logged."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for name in ("a", "b"):
        write_row(references / f"{name}.nii.gz", 1, 0)
        (write_row(predictions / f"{name}.nii.gz", 1, 0)).write_bytes(b"no label map")

    with pytest.raises(KitsattnError, match=r"^no case can be scored, the last one since .*predictions.b\.nii\.gz"):
        evaluate_cases(match_cases(predictions, references), Scoring())
    (message,) = caplog.messages
    assert message.startswith(f"not scored: {predictions / 'a.nii.gz'} ")


def test_volumes_of_a_cohort_worked_by_hand(tmp_path: Path) -> None:
    """Bias is the mean difference; limits of agreement lie 1.96 standard deviations beside it."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for name, voxels in (("a", 1), ("b", 3)):
        write_row(references / f"{name}.nii.gz", 1, 1, 0, 0)
        write_row(predictions / f"{name}.nii.gz", *(int(place < voxels) for place in range(4)))
    voxel_ml = 5.0 * 0.7 * 0.9 / 1_000

    scores = evaluate_cases(match_cases(predictions, references), Scoring(metrics=(VOLUME_DIFFERENCE,))).to_json()

    half = 1.96 * np.sqrt(2) * voxel_ml
    assert scores["agreement"]["kidney_and_tumour"] == {
        "bias_ml": pytest.approx(0),
        "low_ml": pytest.approx(-half),
        "high_ml": pytest.approx(half),
    }
    assert scores["cases"][1]["kidney_and_tumour"]["predicted_ml"] == pytest.approx(3 * voxel_ml)


def test_the_worst_cases_stand_first() -> None:
    """Low Dice, long distances, volumes far off either way, and what is not defined are bad."""
    values = {"a": (0.9, 2.0, -5.0), "b": (0.5, 9.0, 1.0), "c": (0.7, nan, 3.0)}
    metrics = (DICE, HD95, VOLUME_DIFFERENCE)
    cases = tuple(
        CaseScores(
            case, {region.key: dict(zip((m.key for m in metrics), found, strict=True)) for region in KITS19.regions}
        )
        for case, found in values.items()
    )
    scores = Scores(cases, Scoring(metrics=metrics))

    orders = {metric.key: "".join(case.case for case in scores.worst_first(metric)) for metric in metrics}

    assert orders == {"dice": "bca", "hd95_mm": "cba", "volume_difference_ml": "acb"}
    assert scores.worst_first() == scores.worst_first(DICE)


def test_cases_with_one_region_not_defined_are_ordered_by_the_others() -> None:
    """They come before all others, the worst of them first."""
    values = {"a": (1.0, 1.0), "b": (2.0, nan), "c": (8.0, nan)}
    cases = tuple(
        CaseScores(case, {"kidney_and_tumour": {"hd95_mm": kidney}, "tumour": {"hd95_mm": tumour}})
        for case, (kidney, tumour) in values.items()
    )

    assert [case.case for case in Scores(cases, Scoring(metrics=(HD95,))).worst_first()] == ["c", "b", "a"]


def test_without_metrics_the_worst_case_has_most_missed_and_false_lesions() -> None:
    """Detection alone has an order too."""
    found, missed = Lesion(1.0, 0.5), Lesion(1.0, 0.0)
    cases = (
        CaseScores("a", {}, {"tumour": Detection((found,), (found,))}),
        CaseScores("b", {}, {"tumour": Detection((found, missed), (found, missed))}),
        CaseScores("c", {}, {"tumour": Detection((missed,), ())}),
    )

    scores = Scores(cases, Scoring(metrics=(), lesions=True))

    assert [case.case for case in scores.worst_first()] == ["b", "c", "a"]


def test_lesions_of_files_have_their_volume(tmp_path: Path) -> None:
    """Voxels of 5 x 0.7 x 0.9 mm, and a diameter that is the sphere's."""
    reference = write_row(tmp_path / "reference.nii.gz", 2, 2, 0, 0)

    scores = evaluate_cases(match_cases(reference, reference), Scoring(lesions=True)).to_json()

    ml = 2 * 5.0 * 0.7 * 0.9 / 1_000
    assert scores["cases"][0]["tumour"]["lesions"] == [
        {
            "volume_ml": pytest.approx(ml),
            "diameter_mm": pytest.approx((6 * ml * 1_000 / np.pi) ** (1 / 3)),
            "iou": 1.0,
            "found": True,
        }
    ]


def test_a_class_called_case_is_refused() -> None:
    """It would take the place of the case's id in JSON."""
    with pytest.raises(KitsattnError, match="a class is called case"):
        protocol_of({"background": 0, "case": 1})
