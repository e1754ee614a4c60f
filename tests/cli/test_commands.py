"""The commands as people type them, each doing its job."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import typer.main
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage
from typer.testing import Result

import kitsattn
from kitsattn.checkpoint.header import describe_quality, read_header
from kitsattn.cli.app import app
from kitsattn.files import read_json, sole_writer, write_json
from kitsattn.models import build_model, model_entry, model_names
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_MODEL_NOTICE

Command = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]
Settings = Callable[..., list[str]]


def _all_commands() -> list[list[str]]:
    """Return the words of every command of the application, however deep, without the groups."""

    def walk(node: Any, words: list[str]) -> list[list[str]]:
        children = getattr(node, "commands", None)
        if children is None:
            return [words]
        return [path for name, child in children.items() for path in walk(child, [*words, name])]

    return walk(typer.main.get_command(app), [])


@pytest.mark.parametrize("words", _all_commands(), ids=" ".join)
def test_help_shows_an_example(command: Command, words: list[str]) -> None:
    """`--help` of every command is on stdout alone, with an example that starts as the command does."""
    result = command(*words, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"Example: kitsattn {' '.join(words)}" in result.stdout


@pytest.mark.parametrize("words", [[], ["predict"], ["demo"]], ids=" ".join)
def test_help_says_what_the_package_is_not(command: Command, words: list[str]) -> None:
    """The application and the commands that people may read as advice say that it is for research."""
    shown = " ".join(command(*words, "--help").stdout.split())
    assert RESEARCH_NOTICE.rstrip(".") in shown


def test_help_lists_the_commands_in_the_order_of_the_work(command: Command) -> None:
    """download, preprocess, train, predict, evaluate, then what helps."""
    shown = command("--help").stdout
    names = ("download", "preprocess", "train", "predict", "evaluate", "models", "demo")
    places = [shown.index(f"│ {name} ") for name in names]
    assert places == sorted(places)


def test_version(command: Command) -> None:
    """`--version` prints name and version, and nothing else."""
    result = command("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"kitsattn {kitsattn.__version__}\n", "")


def test_the_way_from_raw_to_scores_without_any_path(
    command: Command, kits_folder: Path, tmp_path: Path, settings: Callable[..., list[str]]
) -> None:
    """Each command finds what the one before left in ./kitsattn-workspace, and prints the default paths it used."""
    home = Path("kitsattn-workspace")
    raw = home / "raw" / "painted"
    shutil.copytree(kits_folder, raw)
    description = read_json(raw / "kitsattn-dataset.json")
    write_json(raw / "kitsattn-dataset.json", {**description, "synthetic": False})
    scan = raw / "case_00000" / "imaging.nii.gz"

    prepared = command("preprocess", "--workers", "1")
    assert prepared.exit_code == 0
    assert prepared.stdout == f"6 cases prepared in {home / 'preprocessed' / 'painted'}\n"
    assert f"data set: {raw}\n" in prepared.stderr
    assert prepared.stderr.endswith("next: kitsattn train --fold 0\n")

    options = settings(epochs=1, batches=1)
    trained = command("train", "--fold", "0", *options)
    run = home / "runs" / "painted-attention-deeplab-tiny-recipe"
    assert trained.exit_code == 0
    assert f"data set: {home / 'preprocessed' / 'painted'} (6 cases); run: {run}\n" in trained.stderr
    assert str(run / "fold_0" / "best.safetensors") in trained.stdout
    assert str(run / "fold_0" / "report.html") in trained.stdout
    kept = {"best.safetensors", "last.safetensors", "journal.jsonl", "progress.png", "report.html", "validation"}
    assert {path.name for path in (run / "fold_0").iterdir()} == kept
    held_out = sorted(path.name.removesuffix(".nii.gz") for path in (run / "fold_0" / "validation").glob("*.nii.gz"))
    assert len(held_out) == 2

    predicted = command("predict", scan, "--device", "cpu", "--precision", "fp32")
    assert predicted.exit_code == 0
    output = home / "predictions" / "case_00000.nii.gz"
    assert predicted.stdout.startswith(f"{output}: kidney ")
    assert f"output: {output}\n" in predicted.stderr
    assert f"model: {run / 'fold_0' / 'best.safetensors'}\n" in predicted.stderr
    assert output.is_file()

    scored = command("evaluate", "dice", "--workers", "1")
    assert scored.exit_code == 0
    assert scored.stderr == f"predictions: {run / 'fold_0' / 'validation'}\n"
    assert all(case in scored.stdout for case in [*held_out, "mean", "composite", "kidney_and_tumour"])


def test_all_folds_are_trained_predicted_with_and_scored(
    command: Command, home: Path, tmp_path: Path, settings: Callable[..., list[str]]
) -> None:
    """`--fold all` holds out every case once; `predict` then averages the five, `evaluate` scores all six cases."""
    shutil.copytree(home / "preprocessed", tmp_path / "ws" / "preprocessed")
    trained = command("train", "--fold", "all", *settings(), "--run-name", "five", "--workspace", "ws", "--json")
    assert trained.exit_code == 0
    content = json.loads(trained.stdout)
    run = Path("ws") / "runs" / "five"
    folds = {str(fold): str(run / f"fold_{fold}" / "best.safetensors") for fold in range(5)}
    assert (content["run"], content["checkpoints"]) == (str(run), folds)
    every = [f"case_0000{number}" for number in range(6)]
    assert sorted(case["case"] for case in content["cases"]) == every
    summary = json.loads((run / "summary.json").read_text())
    assert summary["mean"] == content["mean"]
    assert "cross-validation over 5 folds" in (run / "report.html").read_text()
    again = command("train", "--fold", "all", *settings(), "--run-name", "five", "--workspace", "ws")
    rows = [line.split() for line in again.stdout.splitlines()]
    cases = {row[1]: row[3] for row in rows if len(row) > 4 and row[1] in {"0", "1", "2", "3", "4", "all"}}
    assert cases == {"0": "2", "1": "1", "2": "1", "3": "1", "4": "1", "all": "6"}
    assert f"report: {run / 'report.html'}" in again.stdout

    scan = home / "raw" / "painted" / "case_00000" / "imaging.nii.gz"
    predicted = command("predict", scan, "out.nii.gz", "--workspace", "ws", "--device", "cpu", "--precision", "fp32")
    assert f"model: {', '.join(folds.values())}\n" in predicted.stderr
    scored = command("evaluate", "dice", "--workspace", "ws", "--workers", "1", "--json")
    assert sorted(case["case"] for case in json.loads(scored.stdout)["cases"]) == every


def test_json_is_all_that_is_on_stdout(command: Command, home: Path, checkpoint: Path, scan: Path) -> None:
    """With --json each command prints one JSON value with its results, and nothing else on stdout."""
    commands: dict[str, list[str | Path]] = {
        "preprocess": ["preprocess", "--workers", "1"],
        "predict": ["predict", scan, "out.nii.gz", "--model", checkpoint, "--device", "cpu", "--precision", "fp32"],
        "dice": ["evaluate", "dice", "--workers", "1"],
        "list": ["models", "list"],
        "network": ["models", "describe", "attention-deeplab-tiny"],
        "file": ["models", "describe", checkpoint],
    }
    found = {}
    for name, words in commands.items():
        place = [] if words[0] == "models" else ["--workspace", home]
        result = command(*words, *place, "--json")
        assert result.exit_code == 0
        found[name] = json.loads(result.stdout)
    cases = [f"case_0000{number}" for number in range(6)]
    folder = str(home / "preprocessed" / "painted")
    assert found["preprocess"] == {
        "dataset": "painted",
        "folder": folder,
        "cases": cases,
        "kept": 6,
        "report": None,
        "findings": [],
    }
    assert (found["predict"]["input"], found["predict"]["output"]) == (str(scan), "out.nii.gz")
    assert found["predict"]["volumes_ml"]["kidney"] > 0
    assert (found["predict"]["synthetic"], found["predict"]["notes"]) == (False, [])
    assert 0 < found["dice"]["mean"]["kidney_and_tumour"]["dice"] <= 1
    assert [model["name"] for model in found["list"]] == [*model_names(), "starter"]
    assert {model["kind"] for model in found["list"][:-1]} == {"network"}
    assert all(model["parameters"] > 0 for model in found["list"])
    assert found["network"]["config"]["classes"] == 3
    assert (found["file"]["format"], found["file"]["model"]) == ("kitsattn/1", "attention-deeplab-tiny")
    assert found["file"]["provenance"]["dataset"] == "painted"


def test_text_results_are_on_stdout(command: Command, checkpoint: Path) -> None:
    """`models list` names every network, `models describe` says where a checkpoint comes from."""
    listed = command("models", "list")
    assert listed.stderr == ""
    assert all(name in listed.stdout for name in model_names())
    described = command("models", "describe", checkpoint)
    assert described.stderr == ""
    assert f"file: {checkpoint}\n" in described.stdout
    assert "  dataset: painted\n" in described.stdout
    assert "  synthetic: False\n" in described.stdout


def test_a_checkpoint_is_described_by_content_not_by_suffix(command: Command, checkpoint: Path) -> None:
    """A file is a file, whatever its name."""
    shutil.copy(checkpoint, "weights.bin")
    result = command("models", "describe", "weights.bin", "--json")
    assert json.loads(result.stdout)["model"] == "attention-deeplab-tiny"


def test_describing_a_checkpoint_needs_no_torch(process: Process, checkpoint: Path) -> None:
    """`models describe FILE` reads the header with the standard library."""
    program = (
        "import sys\n"
        "from kitsattn.cli.app import app\n"
        "app(standalone_mode=False)\n"
        "heavy = [name for name in ('torch', 'numpy', 'nibabel') if name in sys.modules]\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    run = process("models", "describe", checkpoint, "--json", program=program)
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads(run.stdout)["file"] == str(checkpoint)


def test_shipped_models_are_listed(command: Command, shipped_folder: Path) -> None:
    """`models list` shows accuracy, licence and size; a damaged one is a warning, and the networks are listed."""
    path = shipped_folder / "starter.safetensors"
    listed = command("models", "list")
    assert listed.stderr == ""
    for text in ("starter", "Dice kidney 0.93", "CC BY-NC-SA 4.0"):
        assert text in listed.stdout
    *_, row = json.loads(command("models", "list", "--json").stdout)
    assert (row["name"], row["kind"], row["file"]) == ("starter", "weights", str(path))
    assert (row["network"], row["licence"]) == ("attention-deeplab-tiny", "CC BY-NC-SA 4.0")
    assert row["quality"].endswith("(ward B, 1 patient); CC BY-NC-SA 4.0; research use only")
    assert (row["size_bytes"], len(row["dice"])) == (path.stat().st_size, 3)
    header, _ = read_header(path)
    config = model_entry(header.model).read_config(header.config, "test")
    network = build_model(header.model, config)
    assert row["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    path.unlink()
    listed = command("models", "list", "--json")
    assert listed.exit_code == 0
    assert listed.stderr.startswith("warning: the weights of the shipped model 'starter' are missing")
    assert [model["name"] for model in json.loads(listed.stdout)] == model_names()


def test_a_shipped_model_is_described_without_torch(process: Process, command: Command, shipped_folder: Path) -> None:
    """`models describe starter` gives the header and the model card, from the standard library."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kitsattn.checkpoint import shipped\n"
        "from kitsattn.cli.app import app\n"
        f"shipped.FOLDER = Path({str(shipped_folder)!r})\n"
        "app(standalone_mode=False)\n"
        "heavy = [name for name in ('torch', 'numpy', 'nibabel') if name in sys.modules]\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    run = process("models", "describe", "starter", "--json", program=program)
    assert (run.returncode, run.stderr) == (0, "")
    content = json.loads(run.stdout)
    assert (content["name"], content["file"]) == ("starter", str(shipped_folder / "starter.safetensors"))
    assert content["card"] == (shipped_folder / "starter.md").read_text()
    assert content["provenance"]["sources"][0]["citation"] == "Heller"
    text = command("models", "describe", "starter").stdout
    assert "  sources:\n    - name KiTS23, count 9, unit label maps, licence CC BY-NC-SA 4.0, citation Heller\n" in text
    assert "    - data ward B, region kidney, dice 0.5, low None, high None, patients 1\n" in text
    assert text.endswith((shipped_folder / "starter.md").read_text())


def test_a_shipped_model_is_exported(command: Command, shipped_folder: Path) -> None:
    """`models export starter OUT` writes a graph of float32 with the quality and the licence of the weights."""
    result = command("models", "export", "starter", "starter.pt2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["input"] == str(shipped_folder / "starter.safetensors")
    extra = {"kitsattn.json": ""}
    program = torch.export.load(Path("starter.pt2"), extra_files=extra)
    metadata = json.loads(extra["kitsattn.json"])
    assert (metadata["file"], metadata["provenance"]["licence"]) == ("starter.safetensors", "CC BY-NC-SA 4.0")
    assert metadata["quality"].startswith("Dice kidney 0.93")
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.float32, torch.int64}


def test_a_shipped_model_is_fine_tuned(command: Command, home: Path, settings: Callable[..., list[str]]) -> None:
    """`train --init starter` takes its network with its settings, and its weights."""
    shutil.copytree(home / "preprocessed", "ws/preprocessed")
    settings()
    words = ["--recipe", "recipe.toml", "--device", "cpu", "--precision", "fp32", "--workers", "0"]
    result = command("train", "--init", "starter", *words, "--workspace", "ws", "--json")
    assert result.exit_code == 0, result.output
    run = Path("ws/runs/painted-attention-deeplab-tiny-recipe")
    header, _ = read_header(run / "fold_0" / "best.safetensors")
    assert header.config["normalizer_channels"] == [2, 2]
    assert header.provenance.sources == ()
    assert "starter.safetensors" in (run / "train.log").read_text()


def test_the_workspace_is_the_option_then_the_environment(
    command: Command, kits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--workspace` goes before $KITSATTN_WORKSPACE, which goes before ./kitsattn-workspace."""
    monkeypatch.setenv("KITSATTN_WORKSPACE", "of-the-environment")
    for arguments, place in (([], "of-the-environment"), (["--workspace", "of-the-option"], "of-the-option")):
        result = command("preprocess", kits_folder, "--workers", "1", *arguments, "--json")
        assert json.loads(result.stdout)["folder"] == str(Path(place) / "preprocessed" / "painted")
        assert (Path(place) / "preprocessed" / "painted" / "dataset.json").is_file()
    assert not Path("kitsattn-workspace").exists()


def test_runs_leave_a_log_in_their_folder(home: Path) -> None:
    """Preprocessing and training write what they were asked and what they did, with times."""
    for path, done in (
        (home / "preprocessed" / "painted" / "preprocess.log", "6 cases prepared"),
        (home / "runs" / "first" / "train.log", "fold 0: epoch 3 of 3"),
    ):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert "command: kitsattn" in lines[0]
        assert all(line[:4].isdecimal() and line[4] == "-" for line in lines)
        assert any(done in line for line in lines)


def test_verifying_prepares_nothing(command: Command, kits_folder: Path) -> None:
    """`preprocess --verify` reads all cases and tells what it found; the workspace stays as it was."""
    result = command("preprocess", kits_folder, "--verify", "--workers", "1")
    assert (result.exit_code, result.stdout) == (0, "6 cases read, none with errors\n")
    told = json.loads(command("preprocess", kits_folder, "--verify", "--workers", "1", "--json").stdout)
    assert told == {"dataset": "painted", "cases": 6, "findings": []}
    assert not Path("kitsattn-workspace").exists()


def test_findings_are_a_table(command: Command, kits_folder: Path) -> None:
    """What is wrong or odd is told by severity and case, and an error makes the exit code 1."""
    shutil.copytree(kits_folder, "raw")
    Path("raw/case_00001/segmentation.nii.gz").write_bytes(b"broken")
    shutil.copy("raw/case_00002/imaging.nii.gz", "raw/case_00003/imaging.nii.gz")
    shutil.copy("raw/case_00002/segmentation.nii.gz", "raw/case_00003/segmentation.nii.gz")
    for words in (["--verify"], []):
        result = command("preprocess", "raw", "--workers", "1", *words)
        assert result.exit_code == 1
        rows = [line.split("│")[1:3] for line in result.stdout.splitlines() if line.startswith("│")]
        assert [[cell.strip() for cell in row] for row in rows if row[0].strip()] == [
            ["error", "case_00001"],
            ["warning", "case_00003"],
        ]
        assert "error: 1 of 6 cases cannot be used" in result.stderr


def test_notes_are_told_when_asked_for(command: Command, kits_folder: Path) -> None:
    """What is known to be so does not fill the screen of every run: it is counted, logged, and told by --verify."""
    shutil.copytree(kits_folder, "raw")
    Path("raw/case_00001/segmentation.nii.gz").unlink()
    note = "1 of 6 cases have no label map and are left out"
    usual = command("preprocess", "raw", "--workers", "1")
    assert note not in usual.output
    assert "notes on these data: 1, see preprocess.log there, --report or --verify" in usual.stderr
    assert note in Path("kitsattn-workspace/preprocessed/painted/preprocess.log").read_text(encoding="utf-8")
    assert note in command("preprocess", "raw", "--workers", "1", "--verify").stdout


def test_report_is_written_on_request(command: Command, kits_folder: Path) -> None:
    """`preprocess --report` names its page, in text and JSON."""
    page = Path("kitsattn-workspace/preprocessed/painted/report.html")
    assert f"report: {page}\n" in command("preprocess", kits_folder, "--workers", "1", "--report").stdout
    assert page.is_file()
    told = json.loads(command("preprocess", kits_folder, "--workers", "1", "--report", "--json").stdout)
    assert (told["report"], told["kept"]) == (str(page), 6)


def test_window_of_nnunet_is_chosen(command: Command, kits_folder: Path) -> None:
    """`preprocess --window nnunet` clips to the percentiles of the foreground, which are no round numbers here."""
    result = command("preprocess", kits_folder, "--workers", "1", "--window", "nnunet", "--json")
    assert result.exit_code == 0
    low, high = json.loads(Path("kitsattn-workspace/preprocessed/painted/plan.json").read_text())["clip_hu"]
    assert 40 < low < 110 < high < 230


def test_cases_are_prepared_by_a_cluster(command: Command, kits_folder: Path, cluster: str) -> None:
    """`preprocess --scheduler` hands the cases to Dask workers."""
    result = command("preprocess", kits_folder, "--scheduler", cluster)
    assert result.exit_code == 0
    assert result.stdout == "6 cases prepared in kitsattn-workspace/preprocessed/painted\n"


def test_prepared_cases_are_kept_unless_told(command: Command, kits_folder: Path) -> None:
    """A second `preprocess` does nothing; --restart prepares every case again."""
    said = [command("preprocess", kits_folder, "--workers", "1", *more).stderr for more in ([], [], ["--restart"])]
    assert "6 cases prepared, 0 finished before" in said[0]
    assert "0 cases prepared, 6 finished before" in said[1]
    assert "6 cases prepared, 0 finished before" in said[2]


def _write(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="aligned")
    nib.save(image, path)
    return path


def _load(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


@pytest.mark.parametrize("axes", ["IPL", "RAS", "LPS", "ASL"])
def test_the_output_lies_on_the_grid_of_the_input(
    command: Command, checkpoint: Path, painted: tuple[np.ndarray, np.ndarray], axes: str
) -> None:
    """Whatever way the file's axes run, the output has its shape, affine and units, and the same labels in the world.

    The first is KiTS19's own way; the reference is its label map, turned by nibabel.
    """
    data, affine = painted
    options = ["--model", checkpoint, "--device", "cpu", "--precision", "fp32"]
    command("predict", _write(Path("as_painted.nii.gz"), data, affine), "reference.nii.gz", *options)
    reference = _load(Path("reference.nii.gz"))
    assert nib.aff2axcodes(reference.affine) == ("I", "P", "L")
    assert set(np.unique(np.asarray(reference.dataobj))) >= {0, 1}

    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    turned = nib.Nifti1Image(data, affine).as_reoriented(turn)
    source = _load(_write(Path("turned.nii"), np.asarray(turned.dataobj), turned.affine))
    assert command("predict", "turned.nii", "labels.nii.gz", *options).exit_code == 0
    labels = _load(Path("labels.nii.gz"))
    assert "".join(nib.aff2axcodes(labels.affine)) == axes
    assert labels.shape == source.shape
    np.testing.assert_array_equal(labels.affine, source.affine)
    assert labels.get_data_dtype() == np.uint8
    for key in ("pixdim", "xyzt_units", "sform_code", "qform_code"):
        np.testing.assert_array_equal(labels.header[key], source.header[key])
    np.testing.assert_array_equal(
        np.asarray(labels.dataobj), np.asarray(reference.as_reoriented(turn).dataobj), err_msg=axes
    )


def test_an_existing_output_is_kept_unless_told(command: Command, checkpoint: Path, scan: Path) -> None:
    """Without --overwrite the command ends before it reads anything; with it the output is replaced."""
    output = Path("out.nii.gz")
    output.write_bytes(b"precious")
    Path("no-scan.nii").write_bytes(b"not read")
    refused = command("predict", "no-scan.nii", output, "--model", "no-model-is-read")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == "error: out.nii.gz exists already: choose another name, or add --overwrite to replace it\n"
    assert output.read_bytes() == b"precious"
    replaced = command(
        *("predict", scan, output, "--model", checkpoint, "--overwrite", "--device", "cpu", "--precision", "fp32")
    )
    assert replaced.exit_code == 0
    assert _load(output).shape == _load(scan).shape


def test_a_model_of_phantoms_is_used_only_by_name(command: Command, synthetic: Path, scan: Path) -> None:
    """Unnamed it is passed over, though it is the newest; named, stderr, JSON and the output's header say SYNTHETIC."""
    passed = command("predict", scan, "out.nii.gz", "--device", "cpu", "--json")
    assert passed.exit_code == 0
    assert "run phantoms is not used, it was trained on synthetic phantoms" in passed.stderr
    assert "to use it: --model kitsattn-workspace/runs/phantoms/fold_0/best.safetensors\n" in passed.stderr
    assert "model: starter (comes with kitsattn)\n" in passed.stderr
    assert json.loads(passed.stdout)["synthetic"] is False
    Path("out.nii.gz").unlink()

    options = ["--model", synthetic, "--device", "cpu", "--precision", "fp32"]
    used = command("-q", "predict", scan, "out.nii.gz", *options, "--json")
    assert used.exit_code == 0
    assert used.stderr == f"warning: {SYNTHETIC_MODEL_NOTICE}\n"
    assert json.loads(used.stdout)["synthetic"] is True
    quality = describe_quality(read_header(synthetic)[0].provenance)
    assert quality.startswith("trained on synthetic phantoms; validation Dice")
    header = _load(Path("out.nii.gz")).header
    assert b"kitsattn" in bytes(header["descrip"])
    table, note = header.extensions
    assert b'<Label Key="2"' in table.get_content()
    assert json.loads(note.get_content()) == {
        "made_by": f"kitsattn {kitsattn.__version__}",
        "use": RESEARCH_NOTICE,
        "labels": {"background": 0, "kidney": 1, "tumour": 2},
        "model": "attention-deeplab-tiny",
        "checkpoints": ["best.safetensors"],
        "training_data": "painted",
        "synthetic": True,
        "model_name": "phantoms/fold_0",
        "quality": quality,
        "licence": "CC0-1.0",
        "sources": [],
        "warning": SYNTHETIC_MODEL_NOTICE,
    }


def test_an_offset_of_1024_is_mended_and_reported(
    command: Command, checkpoint: Path, painted: tuple[np.ndarray, np.ndarray]
) -> None:
    """Unsigned CT values give the label map of the scan in HU; stderr and JSON say what was done."""
    data, affine = painted
    in_hu = np.maximum(data, -1024)
    options = ["--model", checkpoint, "--device", "cpu", "--precision", "fp32", "--json"]
    _write(Path("hu.nii.gz"), in_hu, affine)
    _write(Path("offset.nii.gz"), in_hu + np.int16(1024), affine)
    plain = command("-q", "predict", "hu.nii.gz", "plain.nii.gz", *options)
    assert (plain.exit_code, plain.stderr) == (0, "")
    fixed = command("-q", "predict", "offset.nii.gz", "fixed.nii.gz", *options)
    assert fixed.exit_code == 0
    note = "The values had an offset of 1024; it was subtracted to get HU."
    assert fixed.stderr == f"warning: offset.nii.gz: {note}\n"
    assert json.loads(fixed.stdout)["notes"] == [note]
    expected, found = (np.asarray(_load(Path(name)).dataobj) for name in ("plain.nii.gz", "fixed.nii.gz"))
    np.testing.assert_array_equal(found, expected)


def test_a_prediction_is_post_processed_and_measured(
    command: Command, checkpoint: Path, scan: Path, tmp_path: Path
) -> None:
    """Specks go unless told otherwise; JSON says what each rule changed; statistics measure what is written."""
    options = ["--model", checkpoint, "--device", "cpu", "--precision", "fp32", "--json"]
    raw = json.loads(command("predict", scan, "raw.nii.gz", "--no-postprocess", *options).stdout)
    assert raw["postprocessing"] is None
    measured = tmp_path / "measured.json"
    result = command("predict", scan, "out.nii.gz", "--min-volume", "1", "--statistics", measured, *options)
    assert result.exit_code == 0
    steps = json.loads(result.stdout)["postprocessing"]
    before, after = (np.asarray(_load(Path(name)).dataobj) for name in ("raw.nii.gz", "out.nii.gz"))
    kidney_ml = 5.0 * 2.0 * 2.5 / 1000
    parts, _ = ndimage.label(after > 0, np.ones((3, 3, 3)))
    assert min(np.bincount(parts.ravel())[1:], default=1e9) * kidney_ml >= 1
    assert sum(step["voxels"] for step in steps) >= np.count_nonzero(before != after)
    assert steps[0]["name"] == "small objects"

    statistics = json.loads(measured.read_text())
    assert statistics["output"] == "out.nii.gz"
    kidney = statistics["classes"]["kidney"]
    assert kidney["voxels"] == np.count_nonzero(after == 1)
    assert kidney["volume_ml"] == pytest.approx(kidney["voxels"] * kidney_ml)
    again = command("predict", scan, "other.nii.gz", "--statistics", measured, *options)
    assert again.exit_code == 1
    assert f"{measured} exists" in again.stderr


def test_one_fold_is_trained_by_one_process(command: Command, home: Path, settings: Settings) -> None:
    """The second one is refused and changes nothing; another fold of the same run may be trained beside it."""
    place = Path("kitsattn-workspace")
    shutil.copytree(home / "preprocessed", place / "preprocessed")
    run = place / "runs" / "twice"
    with sole_writer(run / "fold_0", "kitsattn train"):
        before = sorted((run / "fold_0").iterdir())
        result = command("-q", "train", *settings(), "--run-name", "twice")
        assert result.exit_code == 1
        assert f"fold_0 is in use by another `kitsattn train`, process {os.getpid()} on " in result.stderr
        assert "--run-name" in result.stderr
        assert sorted((run / "fold_0").iterdir()) == before
        assert command("-q", "train", "--fold", "1", *settings(), "--run-name", "twice").exit_code == 0
    assert command("-q", "train", *settings(), "--run-name", "twice").exit_code == 0
