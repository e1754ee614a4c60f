"""The demo, as a newcomer runs it."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


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


@pytest.mark.slow
def test_the_demo_runs_to_its_report_and_learns(tmp_path: Path) -> None:
    """Held-out Dice is 0.90 and 0.60 or more; called again it finds all done; the other commands go on from it."""
    done = _run("demo", "--json", "--workspace", str(tmp_path))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
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
