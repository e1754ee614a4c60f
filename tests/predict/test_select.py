"""Which networks predict."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kitsattn.checkpoint.file import load_checkpoint, save_checkpoint
from kitsattn.errors import KitsattnError
from kitsattn.predict.select import MODEL_VARIABLE, Choice, choose_models
from kitsattn.workspace import Workspace

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden.safetensors"


@pytest.fixture
def workspace(tmp_path: Path, shipped_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace, with the stand-in as the shipped model."""
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    return Workspace(tmp_path)


def _train(workspace: Workspace, run: str, *, synthetic: bool, age_s: float) -> Path:
    """Write a run of one fold."""
    golden = load_checkpoint(GOLDEN)
    made = replace(golden.header.provenance, synthetic=synthetic)
    path = workspace.runs / run / "fold_0" / "best.safetensors"
    save_checkpoint(path, replace(golden, header=replace(golden.header, provenance=made)))
    os.utime(path, (1e9 - age_s,) * 2)
    return path


def test_an_empty_workspace_gives_the_shipped_model(workspace: Workspace, shipped_folder: Path) -> None:
    """No run was passed over."""
    assert choose_models((), workspace) == Choice((shipped_folder / "starter.safetensors",))


def test_the_newest_run_on_real_scans_wins(workspace: Workspace) -> None:
    """A newer run on phantoms changes nothing."""
    _train(workspace, "oldest", synthetic=False, age_s=30)
    real = _train(workspace, "real", synthetic=False, age_s=20)
    _train(workspace, "phantoms", synthetic=True, age_s=10)
    assert choose_models((), workspace) == Choice((real,))


def test_runs_on_phantoms_are_passed_over(workspace: Workspace, shipped_folder: Path) -> None:
    """The shipped model is used, and the newest run that was passed over is named."""
    _train(workspace, "old", synthetic=True, age_s=20)
    newest = _train(workspace, "new", synthetic=True, age_s=10)
    assert choose_models((), workspace) == Choice((shipped_folder / "starter.safetensors",), newest)


def test_named_networks_win(workspace: Workspace, shipped_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the option, then the environment, then the runs; names and files may be mixed."""
    run = _train(workspace, "real", synthetic=False, age_s=0)
    starter = shipped_folder / "starter.safetensors"
    assert choose_models(["starter", str(GOLDEN)], workspace) == Choice((starter, GOLDEN))
    monkeypatch.setenv(MODEL_VARIABLE, os.pathsep.join(["starter", str(GOLDEN), ""]))
    assert choose_models((), workspace) == Choice((starter, GOLDEN))
    assert choose_models([str(run)], workspace) == Choice((run,))
    monkeypatch.setenv(MODEL_VARIABLE, "")
    assert choose_models((), workspace) == Choice((run,))
    monkeypatch.setenv(MODEL_VARIABLE, "stater")
    with pytest.raises(KitsattnError, match="did you mean 'starter'"):
        choose_models((), workspace)


def test_without_the_shipped_weights_the_run_that_is_passed_over_is_named(
    workspace: Workspace, shipped_folder: Path
) -> None:
    """One error says why the run on phantoms is not used, how to use it, and what is missing."""
    phantoms = _train(workspace, "phantoms", synthetic=True, age_s=10)
    (shipped_folder / "starter.safetensors").unlink()
    with pytest.raises(KitsattnError) as caught:
        choose_models((), workspace)
    told = str(caught.value)
    for part in (
        "run phantoms is not used",
        f"--model {phantoms}",
        "weights of the shipped model 'starter' are missing",
    ):
        assert part in told
