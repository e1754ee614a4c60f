"""`kitsattn predict` on many scans, in several processes, and with what can be written beside label maps."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.predict.infer import Ensemble
from kitsattn.predict.scan import predict_volume
from kitsattn.volume.formats import read_labels, read_scan

Command = Callable[..., Result]
Refused = Callable[..., list[Path]]

PAINTED = 6


@pytest.fixture
def options(checkpoint: Path) -> list[str]:
    """What makes a prediction quick and the same everywhere."""
    return ["--model", str(checkpoint), "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def scans(home: Path, tmp_path: Path) -> Path:
    """A folder of three scans in two formats."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        shutil.copy(home / "raw" / "painted" / f"case_0000{number}" / "imaging.nii.gz", folder / f"s{number}.nii.gz")
    return folder


def test_a_kits_folder_gives_what_the_challenge_wants_and_is_gone_on_with(
    command: Command, home: Path, options: list[str], tmp_path: Path
) -> None:
    """One label map a case, on its grid; what is there is kept, what is missing is done, --overwrite does all again."""
    source = home / "raw" / "painted"
    result = command("predict", source, "out", *options, "--json")
    assert result.exit_code == 0
    cases = json.loads(result.stdout)
    names = [f"prediction_{number:05}" for number in range(PAINTED)]
    assert [case["case"] for case in cases] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.nii.gz" for name in names]
    first = read_labels(tmp_path / "out" / f"{names[0]}.nii.gz")
    assert first.geometry == read_scan(source / "case_00000" / "imaging.nii.gz").geometry
    assert cases[0]["volumes_ml"]["kidney"] > 10

    for name in names[1:3]:
        (tmp_path / "out" / f"{name}.nii.gz").unlink()
    (tmp_path / "out" / f"{names[5]}.nii.gz").write_bytes(b"mine")
    for age_s, name in ((7200, ".0123abcd.part.old.nii.gz"), (60, ".0123abcd.part.new.nii.gz")):
        (tmp_path / "out" / name).write_bytes(b"half")
        os.utime(tmp_path / "out" / name, (time.time() - age_s,) * 2)
    result = command("predict", source, "out", *options, "--json")
    assert [case["case"] for case in json.loads(result.stdout)] == names[1:3]
    assert "4 of 6 cases finished earlier (--overwrite does them again)" in result.stderr
    assert (tmp_path / "out" / f"{names[5]}.nii.gz").read_bytes() == b"mine"
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".0123abcd.part.new.nii.gz"]
    result = command("predict", source, "out", *options, "--json", "--overwrite")
    assert len(json.loads(result.stdout)) == PAINTED
    assert read_labels(tmp_path / "out" / f"{names[5]}.nii.gz").array.any()


def test_one_bad_file_is_told_and_the_others_are_done(
    command: Command, scans: Path, options: list[str], tmp_path: Path
) -> None:
    """The exit code says so at the end; what was asked for lies in folders, and the report shows all."""
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    words = ["--statistics", "measured", "--preview", "pictures", "--probabilities", "soft", "--report", "all.html"]
    result = command("predict", scans, "out", "--format", "mha", *words, *options)
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [f"out/s{number}.mha" for number in range(3)]
    assert "bad.nii.gz is not a NIfTI file" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == "error: 1 of 4 cases could not be predicted: fix or remove them, and run the command again"
    for folder, suffix in (("out", ".mha"), ("measured", ".json"), ("pictures", ".png"), ("soft", ".nii.gz")):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == [f"s{n}{suffix}" for n in range(3)]
    with Image.open(tmp_path / "pictures" / "s0.png") as picture:
        assert picture.width == 1500
    page = (tmp_path / "all.html").read_text()
    assert page.count("data:image/webp") == 3
    assert "1 case could not be predicted" in page
    errors = [
        case for case in json.loads(command("predict", scans, "again", *options, "--json").stdout) if "error" in case
    ]
    assert [case["case"] for case in errors] == ["bad"]


def test_what_is_asked_for_later_is_made_later(
    command: Command, scans: Path, options: list[str], tmp_path: Path
) -> None:
    """A label map without the statistics that are asked for is not finished; the report shows what was, too."""
    assert command("predict", scans, "out", *options).exit_code == 0
    assert command("predict", scans, "out", "--statistics", "measured", *options).exit_code == 1
    assert command("predict", scans, "out", "--statistics", "measured", "--overwrite", *options).exit_code == 0
    result = command("predict", scans, "out", "--statistics", "measured", "--report", "all.html", *options)
    assert result.exit_code == 0
    assert "3 of 3 cases finished earlier" in result.stderr
    assert (tmp_path / "all.html").read_text().count("data:image/webp") == 3


def test_no_output_replaces_the_scan_of_another_case(
    refused: Refused, scans: Path, options: list[str], tmp_path: Path
) -> None:
    """Not under another name of its file either, nor with --overwrite."""
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft" / "s0.nii.gz").hardlink_to(scans / "s1.nii.gz")
    words = ["scans", "out", "--overwrite", *options]
    assert refused("predict", *words, "--probabilities", "soft", names="s0.nii.gz", fix="is one of the scans") == []
    assert refused("predict", *words, "--probabilities", "scans", names="s0.nii.gz", fix="is the input itself") == []


def test_processes_share_the_scans(scans: Path, home: Path, options: list[str], tmp_path: Path) -> None:
    """Two under torchrun: every scan is predicted once, and told once, by the first; the report shows earlier ones."""
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    (tmp_path / "out").mkdir()
    shutil.copy(home / "raw" / "painted" / "case_00001" / "segmentation.nii.gz", tmp_path / "out" / "s1.nii.gz")
    before = (tmp_path / "out" / "s1.nii.gz").read_bytes()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kitsattn"]
    done = subprocess.run(
        [*command, "predict", "scans", "out", *options, "--report", "r.html"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["out/s0.nii.gz", "out/s2.nii.gz"]
    assert "error: 1 of 3 cases could not be predicted" in done.stderr
    assert done.returncode != 0
    assert (tmp_path / "out" / "s1.nii.gz").read_bytes() == before
    assert done.stderr.count("finished earlier") == 1
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/webp") == 3
    assert "Predicted earlier." in page


def test_a_model_is_named_by_the_environment(
    command: Command, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one path or several, which are averaged; --model wins, and what is used is said."""
    monkeypatch.setenv("KITSATTN_MODEL", f"{checkpoint}{os.pathsep}{checkpoint}")
    result = command("predict", scan, "out.nii.gz", "--device", "cpu")
    assert result.exit_code == 0
    assert f"model: {checkpoint}, {checkpoint}" in result.stderr
    result = command("predict", scan, "more.nii.gz", "--model", "other.safetensors")
    assert "other.safetensors" in result.stderr
    monkeypatch.setenv("KITSATTN_MODEL", "starter")
    result = command("predict", scan, "third.nii.gz", "--device", "cpu")
    assert result.exit_code == 0
    assert "model: starter (comes with kitsattn)\n" in result.stderr


def test_the_shipped_model_is_used_where_nothing_is_named_or_trained(
    command: Command, scan: Path, shipped_folder: Path, tmp_path: Path
) -> None:
    """stderr, JSON, the label map's header and the report say which model it is, how accurate, and its licence."""
    result = command("predict", scan, "out.nii.gz", "--device", "cpu", "--json", "--report", "all.html")
    assert result.exit_code == 0
    quality = (
        "Dice kidney 0.93, tumour 0.70 (ward A, 7 patients); Dice kidney 0.50 (ward B, 1 patient); CC BY-NC-SA 4.0; "
        "research use only"
    )
    assert f"model: starter (comes with kitsattn)\nquality: {quality}\n" in result.stderr
    said = json.loads(result.stdout)
    assert said["synthetic"] is False
    path = str(shipped_folder / "starter.safetensors")
    dice = [
        {"data": "ward A", "region": "kidney", "dice": 0.934, "low": 0.9, "high": 0.95, "patients": 7},
        {"data": "ward A", "region": "tumour", "dice": 0.701, "low": 0.5, "high": 0.8, "patients": 7},
        {"data": "ward B", "region": "kidney", "dice": 0.5, "low": None, "high": None, "patients": 1},
    ]
    assert said["model"] == {
        "name": "starter",
        "file": path,
        "files": [path],
        "dice": dice,
        "licence": "CC BY-NC-SA 4.0",
        "use": RESEARCH_NOTICE,
    }
    image = nib.load(tmp_path / "out.nii.gz")
    assert isinstance(image, nib.Nifti1Image)
    note = json.loads(image.header.extensions[1].get_content())
    source = {
        "name": "KiTS23",
        "count": 9,
        "unit": "label maps",
        "licence": "CC BY-NC-SA 4.0",
        "citation": "Heller",
    }
    assert (note["model_name"], note["quality"], note["licence"]) == ("starter", quality, "CC BY-NC-SA 4.0")
    assert note["sources"] == [source]
    page = (tmp_path / "all.html").read_text()
    assert quality in page
    assert "KiTS23 (9 label maps, CC BY-NC-SA 4.0): Heller" in page


def test_a_run_on_real_scans_wins_over_the_shipped_model(
    command: Command, scan: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """It is used if it is in the workspace; --model starter takes the shipped one all the same."""
    shutil.copytree(checkpoint.parent, tmp_path / "kitsattn-workspace" / "runs" / "mine" / "fold_0")
    for words, name in (([], "mine/fold_0"), (["--model", "starter"], "starter")):
        result = command("predict", scan, "out.nii.gz", "--device", "cpu", "--json", "--overwrite", *words)
        assert result.exit_code == 0
        assert json.loads(result.stdout)["model"]["name"] == name


def test_a_shipped_model_and_a_file_are_averaged(command: Command, scan: Path, shipped_folder: Path) -> None:
    """The names go with the output, a source or a score that two networks share only once."""
    shutil.copy(shipped_folder / "starter.safetensors", "copy.safetensors")
    words = ["--model", "starter", "--model", "copy.safetensors", "--device", "cpu", "--json"]
    result = command("predict", scan, "out.nii.gz", *words)
    assert result.exit_code == 0
    assert "model: starter (comes with kitsattn), copy.safetensors\n" in result.stderr
    assert result.stderr.count("quality: ") == 1
    model = json.loads(result.stdout)["model"]
    assert (model["name"], model["licence"]) == ("starter, copy.safetensors", "CC BY-NC-SA 4.0")
    assert model["files"] == [str(shipped_folder / "starter.safetensors"), "copy.safetensors"]
    assert len(model["dice"]) == 3


def test_a_scan_goes_into_a_folder_under_its_name(
    command: Command, scan: Path, options: list[str], tmp_path: Path
) -> None:
    """Where OUT is a folder that is there."""
    (tmp_path / "there").mkdir()
    result = command("predict", scan, "there", "--format", "nrrd", *options)
    assert result.exit_code == 0
    assert read_labels(tmp_path / "there" / "scan.nrrd").geometry == read_scan(scan).geometry


def test_values_that_are_assumed_to_be_hu_are_recorded(
    command: Command, refused: Refused, scan: Path, options: list[str], tmp_path: Path
) -> None:
    """A scan with an offset of 1000 is refused, unless its user takes the responsibility: then the output says so."""
    image = nib.load(scan)
    assert isinstance(image, nib.Nifti1Image)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1000), image.affine), scan)
    refused("predict", scan, "out.nii.gz", *options, names=scan, fix="add --assume-hu")

    result = command("predict", scan, "out.nii.gz", "--assume-hu", "--json", *options)

    assert result.exit_code == 0
    assert "taken as HU without a check" in json.loads(result.stdout)["notes"][0]
    written = nib.load(tmp_path / "out.nii.gz")
    assert isinstance(written, nib.Nifti1Image)
    assert any('"assumed_hu": true' in str(item.get_content()) for item in written.header.extensions)


@pytest.fixture
def starter(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the network in place of the starter that ships with the package."""
    path = Path(shutil.copy(checkpoint, tmp_path / "starter.safetensors"))
    monkeypatch.setattr("kitsattn.checkpoint.shipped.verify", lambda _: path)
    return path


def test_ways_to_predict_give_label_maps_that_differ_little(
    command: Command, scan: Path, options: list[str], starter: Path, tmp_path: Path
) -> None:
    """Mirror images change some voxels, looking first at slices 10 mm apart none: there is a kidney in most of them."""
    assert starter.is_file()
    made = {}
    for name, words in {
        "plain": [],
        "fast": ["--fast"],
        "located": ["--locate"],
        "not located": ["--no-locate"],
        "without mirror images": ["--tta", "none"],
        "sides": ["--tta", "sides"],
        "flips": ["--tta", "flips"],
        "apart": ["--overlap", "0"],
    }.items():
        assert command("predict", scan, f"{name}.nii.gz", *words, *options).exit_code == 0
        made[name] = np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj)  # type: ignore[attr-defined]
    for same in ("fast", "located", "not located", "without mirror images"):
        np.testing.assert_array_equal(made[same], made["plain"])
    kidney = made["plain"] > 0
    for other in ("sides", "flips", "apart"):
        assert 2 * (kidney & (made[other] > 0)).sum() > 0.7 * (kidney.sum() + (made[other] > 0).sum())
    assert (made["sides"] != made["plain"]).any()
    assert (made["flips"] != made["sides"]).any()


def test_the_starter_finds_the_kidneys_for_other_models_only(
    command: Command, scan: Path, options: list[str], starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the locator of other models; as the model itself it is not loaded twice, and that is reported."""
    passed: list[Ensemble | None] = []

    def predict(ensemble: Ensemble, *arguments: Any, locator: Ensemble | None = None, **settings: Any) -> Any:
        passed.append(locator)
        return predict_volume(ensemble, *arguments, locator=locator, **settings)

    monkeypatch.setattr("kitsattn.predict.case.predict_volume", predict)
    assert command("predict", scan, "a.nii.gz", *options).exit_code == 0
    assert command("predict", scan, "b.nii.gz", "--locate", *options).exit_code == 0
    itself = command("predict", scan, "c.nii.gz", "--locate", *options[2:], "--model", starter)
    assert itself.exit_code == 0
    assert "--locate changes nothing: the model is the starter itself" in itself.stderr
    plain, located, same = passed
    assert plain is None
    assert same is None
    assert located is not None
    assert located.paths == (starter,)


@pytest.mark.parametrize(
    ("words", "names", "fix"),
    [
        (["scans", "out.nii.gz"], "scans", "name a folder for their label maps"),
        (["scan.nii.gz", "out.nii.gz", "--preview", "a.jpg"], "a.jpg", "name it .png"),
        (["scan.nii.gz", "out.nii.gz", "--statistics", "a.txt"], "a.txt", "name it .json"),
        (["scan.nii.gz", "out.nii.gz", "--probabilities", "a.nrrd"], "a.nrrd", "name it .nii.gz or .nii"),
        (["scan.nii.gz", "out.nii.gz", "--report", "a.pdf"], "a.pdf", "name it .html or .htm"),
        (["scan.nii.gz", "out.nii.gz", "--format", "mha"], "out.nii.gz", "rename it, or leave --format out"),
        (["scan.nii.gz", "out.dcm"], "scan.nii.gz", "holds no DICOM images"),
        (["scan.nii.gz", "out.nii.gz", "--preview", "scan.nii.gz/a.png"], "a.png", "name another output"),
        (["empty", "out"], "empty", "holds no scan: expected"),
        (["gone", "out"], "gone", "does not exist"),
        (["scans", "scans"], "scans", "name another folder for their label maps"),
        (["scans", "out", "--probabilities", "out"], "s0.nii.gz", "name another file or folder for each output"),
        (["scan.nii.gz", "a.nii.gz", "--probabilities", "./a.nii.gz"], "a.nii.gz", "for each output"),
        (["scan.nii.gz", "a.nii.gz", "--no-postprocess", "--min-volume", "1"], "--min-volume", "leave it or"),
        (["scan.nii.gz", "a.nii.gz", "--locate", "--fast"], "--locate", "leave out one of them"),
    ],
    ids=[
        "several",
        "preview",
        "statistics",
        "probabilities",
        "report",
        "format",
        "dicom",
        "place",
        "empty",
        "gone",
        "in place",
        "folder twice",
        "file twice",
        "no rule",
        "two searches",
    ],
)
def test_outputs_that_cannot_be_are_refused(
    refused: Refused, scans: Path, *, options: list[str], words: list[str], names: str, fix: str
) -> None:
    """Before anything is predicted."""
    (scans.parent / "empty").mkdir()
    shutil.copy(scans / "s0.nii.gz", scans.parent / "scan.nii.gz")
    assert refused("predict", *words, *options, names=names, fix=fix) == []
