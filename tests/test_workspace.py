"""Default paths."""

import os
from pathlib import Path

import pytest

from kitsattn.errors import KitsattnError
from kitsattn.files import write_json
from kitsattn.workspace import Workspace


def _best(workspace: Workspace, run: str, fold: int, age: int) -> Path:
    path = workspace.runs / run / f"fold_{fold}" / "best.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_the_folder_is_the_option_else_the_environment_else_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place overrides the next."""
    monkeypatch.setenv("KITSATTN_WORKSPACE", str(tmp_path / "environment"))
    assert Workspace.choose(tmp_path / "option").root == tmp_path / "option"
    assert Workspace.choose().root == tmp_path / "environment"
    monkeypatch.delenv("KITSATTN_WORKSPACE")
    assert Workspace.choose().root == Path("kitsattn-workspace")


def test_the_only_data_set_needs_no_name(tmp_path: Path) -> None:
    """One folder is found; none and several are errors that say what to do."""
    workspace = Workspace(tmp_path)
    with pytest.raises(KitsattnError, match=r"kitsattn download kits19.*kitsattn demo --data-only"):
        workspace.raw_dataset()
    with pytest.raises(KitsattnError, match="make one with `kitsattn preprocess`"):
        workspace.preprocessed_dataset()
    (workspace.raw / "kits19").mkdir(parents=True)
    (workspace.raw / ".hidden").mkdir()
    assert workspace.raw_dataset() == workspace.raw / "kits19"
    (workspace.raw / "kits23").mkdir()
    with pytest.raises(KitsattnError, match=r"several data sets \(kits19, kits23\)"):
        workspace.raw_dataset()


def test_phantoms_do_not_stand_in_the_way_of_real_scans(tmp_path: Path) -> None:
    """What the demo left is taken only where there is nothing else."""
    workspace = Workspace(tmp_path)
    write_json(workspace.raw / "phantom" / "kitsattn-dataset.json", {"synthetic": True})
    write_json(workspace.preprocessed / "phantom" / "dataset.json", {"synthetic": True})
    assert workspace.raw_dataset() == workspace.raw / "phantom"
    assert workspace.preprocessed_dataset() == workspace.preprocessed / "phantom"
    (workspace.raw / "kits19").mkdir()
    (workspace.preprocessed / "kits19").mkdir()
    assert workspace.raw_dataset() == workspace.raw / "kits19"
    assert workspace.preprocessed_dataset() == workspace.preprocessed / "phantom", "kits19 is not finished"
    write_json(workspace.preprocessed / "kits19" / "dataset.json", {"synthetic": False})
    assert workspace.preprocessed_dataset() == workspace.preprocessed / "kits19"


def test_a_named_data_set_must_be_prepared(tmp_path: Path) -> None:
    """The error lists what is there."""
    workspace = Workspace(tmp_path)
    write_json(workspace.preprocessed / "phantom" / "dataset.json", {})
    assert workspace.preprocessed_dataset("phantom") == workspace.preprocessed / "phantom"
    with pytest.raises(KitsattnError, match=r"kits19 is not prepared \(prepared data sets: phantom\)"):
        workspace.preprocessed_dataset("kits19")


def test_the_newest_run_is_the_one_with_the_newest_best(tmp_path: Path) -> None:
    """All its folds are returned, also those older than another run's."""
    workspace = Workspace(tmp_path)
    with pytest.raises(KitsattnError, match="kitsattn train --fold 0"):
        workspace.trained_runs()
    assert workspace.find_runs() == []
    old = [_best(workspace, "old", 0, age=50)]
    newest = [_best(workspace, "new", 0, age=90), _best(workspace, "new", 1, age=10)]
    (workspace.runs / "begun" / "fold_0").mkdir(parents=True)
    assert workspace.trained_runs() == workspace.find_runs() == [newest, old]


def test_a_description_that_is_none_is_named(tmp_path: Path) -> None:
    """Where it decides which of two data sets is taken, a list in its place is one line."""
    workspace = Workspace(tmp_path)
    write_json(workspace.raw / "one" / "kitsattn-dataset.json", [])
    (workspace.raw / "two").mkdir()
    with pytest.raises(KitsattnError, match=r"one.kitsattn-dataset\.json: expected keys with values, got \[\]"):
        workspace.raw_dataset()
