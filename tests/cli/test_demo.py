"""The demo, as a newcomer runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

import kitsattn.weights
from kitsattn.datasets.sample_ct import CITATION, find_sample
from kitsattn.evaluate.case import score_case
from kitsattn.evaluate.scoring import Scoring
from kitsattn.volume.formats import read_labels

Command = Callable[..., Result]


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "kitsattn", *arguments], capture_output=True, text=True, check=False)


def test_the_scans_alone_are_written_in_the_layout_of_kits19(tmp_path: Path) -> None:
    """Ten cases, slices first, running to Inferior, Posterior and Left, described as synthetic; painted once."""
    first = _run("demo", "--data-only", "--json", "--workspace", str(tmp_path))
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert answer["synthetic"] is True
    assert answer["cases"] == [f"case_{number:05}" for number in range(10)]
    folder = Path(answer["dataset"])
    assert json.loads((folder / "kitsattn-dataset.json").read_text())["synthetic"] is True
    image = nib.Nifti1Image.from_filename(folder / "case_00003" / "imaging.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("I", "P", "L")
    assert image.shape[0] == 40
    labels = np.asanyarray(nib.Nifti1Image.from_filename(folder / "case_00003" / "segmentation.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 1, 2}
    written = (folder / "case_00000" / "imaging.nii.gz").stat().st_mtime_ns
    assert _run("demo", "--data-only", "--workspace", str(tmp_path)).returncode == 0
    assert (folder / "case_00000" / "imaging.nii.gz").stat().st_mtime_ns == written
    assert [path.name for path in folder.parent.iterdir()] == ["phantom"]
    assert not (tmp_path / "predictions").exists()


def test_the_demo_begins_with_a_real_ct(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Label map, picture, volumes and Dice of the sample; source and licence are stated; a second run replaces it."""
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("kitsattn.checkpoint.shipped.verify", lambda _: checkpoint)
    monkeypatch.setattr("kitsattn.cli.demo._paint", lambda _: None)
    monkeypatch.setattr("kitsattn.cli.demo._run", lambda *arguments, **_: shown.append(arguments[3]))
    for _ in range(2):
        result = command("demo", "--device", "cpu")
        assert result.exit_code == 0
    (again, sample) = shown
    assert {**again, "seconds": 0} == {**sample, "seconds": 0}
    assert sample.keys() == {
        "input", "output", "picture", "dice", "volumes_ml", "seconds", "licence", "citation", "model",
    }  # fmt: skip
    assert sample["model"] == "starter"
    assert sample["licence"] == "CC BY 4.0"
    assert sample["citation"] == CITATION
    assert sample["seconds"] > 0
    assert json.loads(json.dumps(sample)) == sample

    folder = Path("kitsattn-workspace") / "predictions"
    assert (Path(sample["output"]), Path(sample["picture"])) == (folder / "sample.nii.gz", folder / "sample.png")
    assert Path(sample["input"]) == find_sample().scan
    labels = read_labels(Path(sample["output"]))
    assert labels.geometry == read_labels(find_sample().labels).geometry
    kidney_ml = np.count_nonzero(labels.array == 1) * labels.geometry.voxel_ml
    assert sample["volumes_ml"]["kidney"] == pytest.approx(kidney_ml)
    expected = score_case("sample", Path(sample["output"]), find_sample().labels, Scoring()).regions
    assert sample["dice"] == {"kidney_and_tumour": expected["kidney_and_tumour"]["dice"]}
    with Image.open(sample["picture"]) as picture:
        note = picture.info["Description"].replace("\n", " ")
    for said in (note, result.stderr):
        assert f"{CITATION}; CC BY 4.0" in said
    for said in (note, result.stdout):
        assert "not a medical device" in said
    assert f"kidney {kidney_ml:.1f} ml" in result.stdout
    assert f"kidney Dice against its reference: {sample['dice']['kidney_and_tumour']:.3f}" in result.stdout
    assert str(folder / "sample.png") in result.stdout


def test_without_the_starter_the_demo_goes_on_with_phantoms(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line names the missing file and what to do; there is no sample in the JSON."""
    shown: list[object] = []
    monkeypatch.setattr("kitsattn.cli.demo._paint", lambda _: None)
    monkeypatch.setattr("kitsattn.cli.demo._run", lambda *arguments, **_: shown.append(arguments[3]))
    (tmp_path / "starter.md").write_text("a card")
    monkeypatch.setattr("kitsattn.checkpoint.shipped.FOLDER", tmp_path)
    result = command("-q", "demo")
    assert (result.exit_code, result.stdout, shown) == (0, "", [None])
    assert str(tmp_path / "starter.safetensors") in result.stderr
    assert "missing" in result.stderr
    assert "install kitsattn again" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_demo_runs_to_its_report_and_learns(tmp_path: Path) -> None:
    """Held-out Dice is 0.90 and 0.60 or more; called again it finds all done; the other commands go on from it."""
    done = _run("demo", "--json", "--workspace", str(tmp_path))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if Path(kitsattn.weights.__file__).with_name("starter.safetensors").exists():  # what the process sees
        sample = answer["sample"]
        assert sample["dice"]["kidney_and_tumour"] >= 0.90
        assert Path(sample["output"]).is_file()
        assert Path(sample["picture"]).is_file()
    assert len(answer["held_out"]) == 2
    assert answer["mean"]["kidney_and_tumour"]["dice"] >= 0.90
    assert answer["mean"]["tumour"]["dice"] >= 0.60
    for entry in ("checkpoint", "report"):
        assert Path(answer[entry]).is_file()
    assert all(Path(picture).is_file() for picture in answer["pictures"])
    page = Path(answer["report"]).read_text()
    assert "SYNTHETIC" in page
    assert "not a medical device" in page

    again = _run("demo", "--json", "--workspace", str(tmp_path))
    assert json.loads(again.stdout)["mean"] == answer["mean"]

    scores = _run("evaluate", "dice", "--json", "--workspace", str(tmp_path))
    assert json.loads(scores.stdout)["mean"] == answer["mean"]

    scan = tmp_path / "raw" / "phantom" / answer["held_out"][0]["case"] / "imaging.nii.gz"
    unnamed = _run("predict", str(scan), str(tmp_path / "other.nii.gz"), "--workspace", str(tmp_path))
    assert "run demo is not used, it was trained on synthetic phantoms" in unnamed.stderr
    named = _run("predict", str(scan), str(tmp_path / "out.nii.gz"), "--model", answer["checkpoint"])
    assert named.returncode == 0, named.stderr
    assert "SYNTHETIC" in named.stderr
    predicted, original = nib.Nifti1Image.from_filename(tmp_path / "out.nii.gz"), nib.Nifti1Image.from_filename(scan)
    assert predicted.shape == original.shape
    assert np.array_equal(predicted.affine, original.affine)
