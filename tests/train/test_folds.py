"""Folds."""

from pathlib import Path

import pytest

from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, write_json
from kitsattn.train.folds import SPLITS_FILE, make_splits, read_or_make_splits

IDS = [f"case_{number:05}" for number in range(12)]


def test_every_case_is_held_out_once_and_never_trained_on_there() -> None:
    """Five disjoint folds that cover all cases, whatever the order they come in."""
    splits = make_splits(IDS[::-1])
    assert len(splits) == 5
    assert sorted(case for split in splits for case in split.held_out) == IDS
    for split in splits:
        assert not set(split.train) & set(split.held_out)
        assert sorted(split.train + split.held_out) == IDS
    assert splits == make_splits(IDS)


def test_the_folds_are_those_of_nnunet() -> None:
    """Its rule is KFold(5, shuffle, seed 12345) on sorted ids; these are its first held-out cases for 12 ids."""
    from sklearn.model_selection import KFold

    expected = [[IDS[i] for i in held] for _, held in KFold(5, shuffle=True, random_state=12345).split(IDS)]
    assert [list(split.held_out) for split in make_splits(IDS)] == expected


def test_four_cases_cannot_make_five_folds() -> None:
    """The error says how many there are and what helps."""
    with pytest.raises(KitsattnError, match="4 cases cannot make 5 folds: prepare 5 or more"):
        make_splits(IDS[:4])


def test_the_file_is_written_once_in_nnunets_shape_and_then_honoured(tmp_path: Path) -> None:
    """A user may replace it with any number of folds."""
    splits = read_or_make_splits(tmp_path, IDS)
    assert read_json(tmp_path / SPLITS_FILE)[0] == {"train": list(splits[0].train), "val": list(splits[0].held_out)}
    assert read_or_make_splits(tmp_path, IDS) == splits
    write_json(tmp_path / SPLITS_FILE, [{"train": IDS[:2], "val": IDS[2:3]}])
    (own,) = read_or_make_splits(tmp_path, IDS)
    assert own.held_out == (IDS[2],)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no fold"),
        ({"train": []}, "must be a list of"),
        ([{"train": IDS[:2]}], "must be a list of"),
        ([{"train": IDS[:2], "val": IDS[1:3]}], "fold 0 of .* has 'case_00001' on both sides"),
        ([{"train": ["case_99999"], "val": IDS[1:3]}], "names 'case_99999', which is not prepared"),
        ([{"train": IDS, "val": []}], "has an empty side"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, content: object, message: str) -> None:
    """A leak between the sides is never trained on."""
    write_json(tmp_path / SPLITS_FILE, content)
    with pytest.raises(KitsattnError, match=message):
        read_or_make_splits(tmp_path, IDS)


def test_cases_that_a_file_leaves_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cases that were prepared after the folds were made do not vanish without a word."""
    read_or_make_splits(tmp_path, IDS[:10])
    read_or_make_splits(tmp_path, IDS)
    assert "2 prepared cases are in no fold (case_00010, …)" in caplog.text
