import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.challenge.rank import SubmissionScores, rank_submissions, read_submission, to_json
from kitsattn.labels import KITS19, KITS23

KITS23_HEADER = "caseID,Dice_kidney,Dice_masses,Dice_tumor,SD_kidney,SD_masses,SD_tumor"
CASES = frozenset({"case_00001", "case_00002"})
TABLES = st.lists(st.tuples(*[st.sampled_from([0.1, 0.2, 0.3, 0.6])] * 6), min_size=2, max_size=6)
"""Few values, so that means and ranks tie often; the thirds of some sums differ in their last digit alone."""


def write_table(folder: Path, *lines: str) -> Path:
    """Write an evaluation.csv and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def kits23(name: str, dice: Sequence[float], surface_dice: Sequence[float]) -> SubmissionScores:
    """Return a submission by its scores of kidney, masses and tumour."""
    regions = [region.key for region in KITS23.regions]
    pairs = zip(dice, surface_dice, strict=True)
    mean = {region: {"dice": a, "surface_dice": b} for region, (a, b) in zip(regions, pairs, strict=True)}
    return SubmissionScores(name, KITS23, CASES, mean)


def kits19(name: str, kidney: float, tumour: float) -> SubmissionScores:
    """Return a submission by its Dice."""
    return SubmissionScores(name, KITS19, CASES, {"kidney_and_tumour": {"dice": kidney}, "tumour": {"dice": tumour}})


def places(submissions: Sequence[SubmissionScores]) -> list[tuple[str, int]]:
    """Return names and ranks, in the order of the ranking."""
    return [(place.submission.name, place.rank) for place in rank_submissions(submissions)]


def test_reads_the_official_table_of_kits23(tmp_path: Path) -> None:
    """Name, cases and means are those of the folder, its rows and its last row; other columns are left aside."""
    folder = write_table(
        tmp_path / "team_a",
        KITS23_HEADER + ",HD95_mm_kidney",
        "case_00001,0.9,0.8,0.7,0.6,0.5,0.4,3.0",
        "case_00002,1,1,1,1,1,1,",
        "average,0.95,0.90,0.85,0.80,0.75,0.70,3.0",
    )

    assert read_submission(folder) == kits23("team_a", (0.95, 0.9, 0.85), (0.8, 0.75, 0.7))


def test_reads_the_table_of_kits19(tmp_path: Path) -> None:
    """KiTS19 is told by its columns, and its Dice is enough."""
    lines = ("caseID,Dice_kidney_and_tumour,Dice_tumour", "case_00001,1,0", "case_00002,1,1", "average,1,0.5")

    assert read_submission(write_table(tmp_path / "b", *lines)) == kits19("b", 1.0, 0.5)


def test_finds_the_only_table_below(tmp_path: Path) -> None:
    """A table in a folder of the submission is its table."""
    write_table(tmp_path / "team" / "fold_0", "caseID,Dice_kidney_and_tumour,Dice_tumour", "a,1,1", "average,1,1")

    assert read_submission(tmp_path / "team").name == "team"


def test_several_tables_below_are_refused(tmp_path: Path) -> None:
    """Which of two tables counts is for the user to say."""
    for fold in ("fold_0", "fold_1"):
        write_table(tmp_path / fold, KITS23_HEADER)

    with pytest.raises(KitsattnError, match=r"holds several .*fold_0.* and .*fold_1.*: name the folder of one"):
        read_submission(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"has neither KiTS23's Dice_kidney, Dice_masses, Dice_tumor nor KiTS19's Dice_kidney_and_tumour,"),
        (["caseID,HD95_mm_kidney", "a,1", "average,1"], r"has neither KiTS23's"),
        (["caseID,Dice_kidney,Dice_masses,Dice_tumor", "average,1,1,1"], r"has no SD_kidney, SD_masses, SD_tumor, and"),
        ([KITS23_HEADER, "a,1,1,1,1,1,1"], "has no last row `average`"),
        ([KITS23_HEADER], "has no last row `average`"),
        ([KITS23_HEADER, "average,1,1,1,1,1,1", "a,1,1,1,1,1,1"], "has no last row `average`"),
        ([KITS23_HEADER, "average,1,1,1,1,1,1"], "has no cases"),
        ([KITS23_HEADER, "a,1,1,1,1,1,1", "a,1,1,1,1,1,1", "average,1,1,1,1,1,1"], "has a case twice"),
        ([KITS23_HEADER, "a,1,1,1,1,1,1", "average,1,1,good,1,1,1"], "has 'good' as average of Dice_tumor, no number"),
        ([KITS23_HEADER, "a,1,1,1,1,1,1", "average,1,1,1,1,1"], "has '' as average of SD_tumor, no number"),
        ([KITS23_HEADER, "a,1,1,1,1,1,1", "average,nan,1,1,1,1,1"], "has 'nan' as average of Dice_kidney, no number"),
        ([KITS23_HEADER, "a,1,1,1,1,1,1", "average,1,1,1,1,87,1"], "has '87' as average of SD_masses, no number"),
        ([KITS23_HEADER, 'a,"1'], r"cannot be read as CSV"),
    ],
)
def test_table_that_cannot_be_ranked_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    """What is wrong is named in one line, with the command that makes a right one."""
    write_table(tmp_path, *lines)

    with pytest.raises(KitsattnError, match=message) as caught:
        read_submission(tmp_path)

    assert f"`kitsattn evaluate all {tmp_path} REFERENCES --csv {tmp_path / 'evaluation.csv'}`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_without_table_is_refused(tmp_path: Path) -> None:
    """The command that makes the table is named, for a folder that does not exist too."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(KitsattnError, match=r"holds no evaluation\.csv: `kitsattn evaluate all .*` makes it"):
            read_submission(folder)


def test_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A binary file of that name is told in one line."""
    (tmp_path / "evaluation.csv").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(KitsattnError, match=r"evaluation\.csv cannot be read as CSV"):
        read_submission(tmp_path)


def test_table_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in one line what to fix."""
    write_table(tmp_path, KITS23_HEADER)

    def refuse(path: Path, **_: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(KitsattnError, match=r"evaluation\.csv cannot be read \(Permission denied\): see that you may"):
        read_submission(tmp_path)


def test_kits23_ranking_worked_by_hand() -> None:
    """Ranks by Dice 1 2 3 4 and by surface Dice 2 1 4 3: two pairs tie, and tumour Dice decides each."""
    ranking = rank_submissions(
        [
            kits23("a", (0.9, 0.9, 0.6), (0.7, 0.7, 0.7)),
            kits23("b", (0.8, 0.8, 0.65), (0.8, 0.8, 0.8)),
            kits23("c", (0.7, 0.7, 0.55), (0.5, 0.5, 0.5)),
            kits23("d", (0.6, 0.6, 0.5), (0.6, 0.6, 0.6)),
        ]
    )

    assert [(place.rank, place.submission.name, place.mean_rank) for place in ranking] == [
        (1, "b", 1.5),
        (2, "a", 1.5),
        (3, "c", 3.5),
        (4, "d", 3.5),
    ]
    assert ranking[0].mean_dice == pytest.approx(0.75)
    assert ranking[0].mean_surface_dice == pytest.approx(0.8)


def test_what_ties_in_tumour_dice_too_shares_the_rank() -> None:
    """Of three that tie, the two of equal tumour Dice come second together, and nobody comes third."""
    tied = [
        kits23(name, (1 - tumour, 0.5, tumour), (0.5, 0.5, 0.5))
        for name, tumour in (("a", 0.25), ("b", 0.5), ("c", 0.25))
    ]

    assert places([*tied, kits23("d", (0, 0, 0), (0, 0, 0))]) == [("b", 1), ("a", 2), ("c", 2), ("d", 4)]


def test_kits19_ranks_by_the_composite() -> None:
    """The mean of both Dice decides; equals share the rank, whatever their tumour Dice."""
    ranked = rank_submissions([kits19("a", 0.5, 0.25), kits19("b", 0.75, 0.75), kits19("c", 0.25, 0.5)])

    assert [(place.submission.name, place.rank, place.mean_dice) for place in ranked] == [
        ("b", 1, 0.75),
        ("a", 2, 0.375),
        ("c", 2, 0.375),
    ]


def official_ranks(scores: np.ndarray[Any, Any]) -> list[int]:
    """Return the ranks as the official script finds them: rank, average, rank, and untie rank after rank."""
    means = np.stack([scores[:, :3].mean(axis=1), scores[:, 3:].mean(axis=1)], axis=1)
    ranks = rankdata(rankdata(-means, "min", axis=0).mean(axis=1), "min").astype(int)
    for rank in range(1, len(scores) + 1):
        tied = ranks == rank
        ranks[tied] = rank - 1 + rankdata(-scores[tied, 2], "min")
    return [int(rank) for rank in ranks]


@given(TABLES)
def test_equal_to_the_official_algorithm(table: list[tuple[float, ...]]) -> None:
    """Every submission to KiTS23 gets the rank that the official algorithm gives it, however many tie."""
    submissions = [kits23(str(index), row[:3], row[3:]) for index, row in enumerate(table)]

    found = dict(places(submissions))

    assert [found[str(index)] for index in range(len(table))] == official_ranks(np.array(table))


@given(TABLES, st.randoms(use_true_random=False))
def test_order_of_submissions_is_all_one(table: list[tuple[float, ...]], chance: random.Random) -> None:
    """However the submissions are listed, the ranking is the same."""
    submissions = [kits23(str(index), row[:3], row[3:]) for index, row in enumerate(table)]
    shuffled = chance.sample(submissions, len(submissions))

    assert rank_submissions(shuffled) == rank_submissions(submissions)


def test_ranking_as_json() -> None:
    """The keys are those that are documented; what KiTS19 has not is null."""
    of_kits23 = to_json(rank_submissions([kits23("a", (1, 1, 1), (1, 1, 1)), kits23("b", (0, 0.75, 0), (0, 0, 0.75))]))

    assert of_kits23["protocol"] == "kits23"
    assert of_kits23["ranking"][1] == {
        "rank": 2,
        "submission": "b",
        "mean_dice": 0.25,
        "mean_surface_dice": 0.25,
        "mean_rank": 2.0,
        "tumour_dice": 0,
        "mean": {
            "kidney_and_masses": {"dice": 0, "surface_dice": 0},
            "masses": {"dice": 0.75, "surface_dice": 0},
            "tumour": {"dice": 0, "surface_dice": 0.75},
        },
    }
    of_kits19 = json.loads(json.dumps(to_json(rank_submissions([kits19("a", 1, 0), kits19("b", 0, 0)]))))
    assert of_kits19["ranking"][0] == {
        "rank": 1,
        "submission": "a",
        "mean_dice": 0.5,
        "mean_surface_dice": None,
        "mean_rank": None,
        "tumour_dice": 0,
        "mean": {"kidney_and_tumour": {"dice": 1}, "tumour": {"dice": 0}},
    }


@pytest.mark.parametrize(
    ("submissions", "message"),
    [
        ([], "at least two submissions, not 0"),
        ([kits19("a", 1, 1)], "at least two submissions, not 1"),
        ([kits19("a", 1, 1), kits19("a", 0, 1)], "two submissions are named a: name their folders differently"),
        (
            [kits19("a", 1, 1), kits23("b", (1, 1, 1), (1, 1, 1))],
            "a was scored for KiTS19, and b for KiTS23: rank the submissions to one challenge",
        ),
        (
            [kits19("a", 1, 1), SubmissionScores("b", KITS19, CASES | {"case_00003"}, kits19("b", 1, 1).mean)],
            "b was scored on case_00003, and a was not: .* score all submissions on the same cases",
        ),
        (
            [kits19("a", 1, 1), SubmissionScores("b", KITS19, frozenset({"case_00001"}), kits19("b", 1, 1).mean)],
            "a was scored on case_00002, and b was not",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(submissions: list[SubmissionScores], message: str) -> None:
    """The error names two submissions, and a case where the cases differ."""
    with pytest.raises(KitsattnError, match=message):
        rank_submissions(submissions)
