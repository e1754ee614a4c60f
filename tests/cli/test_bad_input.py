"""Mistakes that a user can fix: each is one line that names the cause and the fix, and nothing is lost."""

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import Result

from kitsattn.files import read_json, write_json

if TYPE_CHECKING:
    from tests.conftest import FileServer

Command = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., list[Path]]
Painted = tuple[np.ndarray, np.ndarray]
Settings = Callable[..., list[str]]

LIMITED = """
import resource, sys
from kitsattn.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


def _nifti(path: Path, data: np.ndarray, affine: np.ndarray, header: Mapping[str, Any] | None = None) -> None:
    """Write a file, and then, past nibabel's checks, the named fields of its header."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code="scanner")
    image.to_filename(path.with_name("whole.nii"))
    content = path.with_name("whole.nii").read_bytes()
    path.with_name("whole.nii").unlink()
    fields = nib.Nifti1Header(content[: nib.Nifti1Header.template_dtype.itemsize], check=False)
    for key, value in (header or {}).items():
        fields[key] = value
    path.write_bytes(gzip.compress(fields.binaryblock + content[len(fields.binaryblock) :], 1))


def _not_nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.write_bytes(gzip.compress(b"a letter, not a scan\n" * 100))


def _not_gzip(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.write_text("an error page of some server", encoding="utf-8")


def _truncated(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    _nifti(path, data, affine)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _four_axes(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    _nifti(path, np.stack([data, data], axis=-1), affine)


def _not_a_number(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    broken = data.astype(np.float32)
    broken[3, 4, 5:8] = np.nan
    _nifti(path, broken, affine)


def _zero_spacing(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    _nifti(path, data, affine, {"pixdim": [-1, 5, 0, 2.5, 0, 0, 0, 0]})


def _infinite_spacing(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    _nifti(path, data, affine, {"pixdim": [-1, 5, 2, np.inf, 0, 0, 0, 0]})


def _sheared(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    sheared = affine.copy()
    sheared[:3, 0] += 0.2 * affine[:3, 1]
    _nifti(path, data, sheared)


@dataclass(frozen=True)
class Bad:
    """A way to write a bad file, and what the error says."""

    write: Callable[[Path, np.ndarray, np.ndarray], None]
    fix: str


BAD_FILES = {
    "no NIfTI inside": Bad(_not_nifti, "is not a NIfTI file (.nii or .nii.gz with header and voxels in one): export"),
    "no gzip": Bad(_not_gzip, ": "),
    "truncated": Bad(_truncated, "is truncated or damaged"),
    "four axes": Bad(_four_axes, "(14, 64, 72, 2): a scan has three axes, extract one volume from it"),
    "NaN": Bad(_not_a_number, "has 3 voxels that are NaN: "),
    "zero spacing": Bad(_zero_spacing, "has a spacing of 5 x 0 x 2.5 mm, but every axis needs a finite one above 0"),
    "infinite spacing": Bad(_infinite_spacing, "has a spacing of 5 x 2 x inf mm"),
    "sheared": Bad(
        _sheared, "has a sheared affine (cosine 0.0797 between two axes, at most 0.01 is allowed): resample"
    ),
}


def _grey(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    _nifti(path, (np.clip(data, -160, 240) + 160).astype(np.float32) * np.float32(255 / 400), affine)


BAD_SCANS = {
    **BAD_FILES,
    "grey values": Bad(_grey, "as grey values do): export it again in HU"),
}


def _other_shape(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    _nifti(path, data[:, 1:], affine)


def _other_place(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    moved = affine.copy()
    moved[0, 3] += 30
    _nifti(path, data, moved)


def _unknown_labels(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    strange = data.copy()
    strange[0, 0, 0] = 7
    _nifti(path, strange, affine)


def _negative(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    _nifti(path, data.astype(np.int16) - 1, affine)


BAD_LABELS = {
    **BAD_FILES,
    "another shape": Bad(
        _other_shape, "(shape (z, y, x) (14, 64, 72) against (14, 63, 72)): export both from one scan"
    ),
    "another place": Bad(_other_place, "voxels apart): export both from one scan"),
    "unknown labels": Bad(
        _unknown_labels, "holds the unknown labels [7]: the labels of this data set are 0 background"
    ),
    "negative labels": Bad(_negative, "holds values from -1 to 1: a label map holds whole numbers from 0 to 255"),
}


def _voxels(path: Path) -> Painted:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return np.asarray(image.dataobj), np.asarray(image.affine)


@pytest.fixture
def prepared_case(command: Command, home: Path, tmp_path: Path) -> Path:
    """A raw data set of one good case, prepared in ./kitsattn-workspace; a second, bad case is the test's to add."""
    raw = tmp_path / "raw"
    shutil.copytree(home / "raw" / "painted" / "case_00000", raw / "case_00000")
    assert command("preprocess", raw, "--workers", "1").exit_code == 0
    shutil.copytree(home / "raw" / "painted" / "case_00001", raw / "case_00001")
    return raw


@pytest.mark.parametrize("bad", BAD_SCANS.values(), ids=BAD_SCANS.keys())
def test_a_bad_scan_is_not_predicted(refused: Refused, checkpoint: Path, painted: Painted, bad: Bad) -> None:
    """Nothing is written, and an earlier output stays, although --overwrite was said."""
    bad.write(Path("bad.nii.gz"), *painted)
    Path("earlier.nii.gz").write_bytes(b"precious")
    for words in (["new.nii.gz"], ["earlier.nii.gz", "--overwrite"]):
        assert refused("predict", "bad.nii.gz", *words, "--model", checkpoint, names="bad.nii.gz", fix=bad.fix) == []


def _reason_to_leave_out(command: Command, raw: Path, workers: str = "1") -> str:
    """Prepare a good and a bad case; return why the bad one was left out, once the good one is there."""
    result = command("-q", "preprocess", raw, "--workers", workers, "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: 1 of 2 cases cannot be used: fix them as the findings say")
    told = json.loads(result.stdout)
    assert (told["cases"], told["kept"]) == (["case_00000"], 1)
    (wrong,) = [finding for finding in told["findings"] if finding["severity"] == "error"]
    assert wrong["case"] == "case_00001"
    assert read_json(Path("kitsattn-workspace/preprocessed/raw/dataset.json"))["sources"].keys() == {"case_00000"}
    return str(wrong["text"])


@pytest.mark.parametrize("bad", BAD_SCANS.values(), ids=BAD_SCANS.keys())
def test_a_bad_scan_is_left_out(command: Command, prepared_case: Path, bad: Bad) -> None:
    """The case is named with its fix, and the other case is kept as it was prepared before."""
    scan = prepared_case / "case_00001" / "imaging.nii.gz"
    bad.write(scan, *_voxels(scan))
    reason = _reason_to_leave_out(command, prepared_case)
    assert str(scan) in reason
    assert bad.fix in reason


@pytest.mark.parametrize("bad", BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_a_bad_label_map_is_left_out(command: Command, prepared_case: Path, bad: Bad) -> None:
    """The label map is named with its fix, and the other case is kept as it was prepared before."""
    path = prepared_case / "case_00001" / "segmentation.nii.gz"
    bad.write(path, *_voxels(path))
    reason = _reason_to_leave_out(command, prepared_case)
    assert str(path) in reason
    assert bad.fix in reason


@pytest.mark.parametrize(
    "words",
    [
        ["--verify", "--report"],
        ["--plan", "mine.json", "--window", "nnunet"],
        ["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"],
    ],
)
def test_options_that_contradict_each_other(refused: Refused, prepared_case: Path, words: list[str]) -> None:
    """None is ignored silently."""
    assert refused("preprocess", prepared_case, *words, names=words[0], fix="leave one of them out") == []


def test_prepared_data_are_not_prepared_again(refused: Refused, prepared_case: Path) -> None:
    """Their dataset.json is none of nnU-Net's."""
    folder = Path("kitsattn-workspace/preprocessed/raw")
    assert prepared_case.is_dir()
    refused(
        "preprocess", folder, names=folder, fix="is prepared already: train on it with `kitsattn train --dataset raw`"
    )


def test_an_absent_cluster_is_named(refused: Refused, prepared_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on port 1."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    monkeypatch.setattr("kitsattn.jobs._ANSWER_SECONDS", 1)
    words = ["preprocess", prepared_case, "--scheduler", "tcp://127.0.0.1:1"]
    refused(*words, names="tcp://127.0.0.1:1", fix="start one with `dask scheduler`, or fix the address")


def test_a_bad_case_in_a_worker_is_told_too(command: Command, prepared_case: Path) -> None:
    """What another process found wrong is told as if this one had found it."""
    scan = prepared_case / "case_00001" / "imaging.nii.gz"
    _truncated(scan, *_voxels(scan))
    assert f"{scan} is truncated or damaged" in _reason_to_leave_out(command, prepared_case, workers="2")


@pytest.mark.parametrize("name", [name for name in BAD_LABELS if name != "unknown labels"])
def test_a_bad_label_map_is_not_scored(refused: Refused, home: Path, name: str) -> None:
    """`evaluate dice` names the label map, whether it is the prediction or the reference."""
    path = home / "raw" / "painted" / "case_00000" / "segmentation.nii.gz"
    BAD_LABELS[name].write(Path("bad.nii.gz"), *_voxels(path))
    fix = "predict from the scan that the reference was drawn on" if "another" in name else BAD_LABELS[name].fix
    for pair in (["bad.nii.gz", path], [path, "bad.nii.gz"]):
        assert refused("evaluate", "dice", *pair, "--workers", "1", names="bad.nii.gz", fix=fix) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_unknown_labels_are_refused_in_a_reference_and_told_in_a_prediction(
    command: Command, refused: Refused, home: Path, tmp_path: Path, workers: str
) -> None:
    """They count as background in a prediction; a reference with them belongs to other data."""
    path = home / "raw" / "painted" / "case_00000" / "segmentation.nii.gz"
    bad = tmp_path / "bad.nii.gz"  # absolute: processes that an earlier test has started lie in another folder
    _unknown_labels(bad, *_voxels(path))
    words = ["evaluate", "dice", "--workers", workers]
    refused(*words, path, bad, names=bad, fix=BAD_LABELS["unknown labels"].fix[:30])
    result = command("-q", *words, bad, path, "--json")
    told = "holds the labels [7], which count as background: scored are 1 kidney, 2 tumour"
    assert result.stderr == f"warning: {bad} {told}\n"
    assert json.loads(result.stdout)["composite"] == 1


@pytest.mark.parametrize("protocol", ["auto", "kits19"])
def test_a_cyst_in_a_reference_names_the_protocol_to_add(refused: Refused, protocol: str) -> None:
    """Nothing says that a label map is KiTS23's, until a cyst is met."""
    name = "cyst.nii.gz"
    _nifti(Path(name), np.full((2, 2, 2), 3, np.uint8), np.eye(4))
    words = ["evaluate", "dice", name, name, "--protocol", protocol, "--workers", "1"]
    assert refused(*words, names=name, fix="add --protocol kits23") == []


def test_what_is_no_series_of_ct_is_refused(refused: Refused, checkpoint: Path, scan: Path) -> None:
    """A folder or archive without DICOM, a damaged file, and a series of a file that has none."""
    folder = Path("series")
    folder.mkdir()
    (folder / "slice.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    Path("empty").mkdir()
    Path("notes.zip").write_text("no archive")
    fixes = {
        folder: "copy or export the series again",
        folder / "slice.dcm": "copy or export the series again",
        Path("empty"): "name a folder or .zip archive with a CT series",
        Path("notes.zip"): "copy or download it again",
    }
    for path, fix in fixes.items():
        assert refused("predict", path, "out.nii.gz", "--model", checkpoint, names=path, fix=fix) == []
    words = ["predict", scan, "out.nii.gz", "--model", checkpoint, "--series", "3"]
    assert refused(*words, names=scan, fix="leave --series out") == []
    words = ["evaluate", "dice", folder / "slice.dcm", folder / "slice.dcm", "--workers", "1"]
    assert refused(*words, names=folder / "slice.dcm", fix="name one file in NIfTI, NRRD or MHA") == []


def test_a_missing_file_is_named(refused: Refused, checkpoint: Path, scan: Path) -> None:
    """A scan, a model, a reference or a plan that is not there."""
    gone = "gone.nii.gz"
    refused("predict", gone, "out.nii.gz", "--model", checkpoint, names=gone, fix="does not exist")
    model = "gone.safetensors"
    fix = "does not exist: name a checkpoint, or train one with `kitsattn train --fold 0`"
    refused("predict", scan, "out.nii.gz", "--model", model, names=model, fix=fix)
    refused("models", "describe", model, names=model, fix=fix)
    refused("models", "export", model, "out.pt2", names=model, fix=fix)
    refused("evaluate", "dice", gone, scan, names=gone, fix="give a label map, or a folder of label maps")


def test_an_unknown_model_suggests_the_nearest(refused: Refused, scan: Path, home: Path) -> None:
    """Wherever a checkpoint or a shipped model is named."""
    near = "there is no model and no file named 'stater' (did you mean 'starter'?)"
    fix = "or a model that comes with kitsattn (starter)"
    for words in (
        ["predict", scan, "out.nii.gz", "--model", "starter", "--model", "stater"],
        ["models", "export", "stater", "out.pt2"],
        ["train", "--init", "stater", "--workspace", home, "--run-name", "none"],
    ):
        assert refused(*words, names=near, fix=fix) == []
    near = "there is no model named 'stater' (did you mean 'starter'?)"
    assert refused("models", "describe", "stater", names=near, fix="choose one of attention-deeplab-") == []
    near = "there is no model named 'attention-deeplab-r19' (did you mean 'attention-deeplab-r1"
    assert refused("models", "describe", "attention-deeplab-r19", names=near, fix=", starter, or name a file") == []


def test_a_damaged_shipped_model_is_one_clear_line(refused: Refused, scan: Path, shipped_folder: Path) -> None:
    """The error says how to repair the installation, whether the model was named or not."""
    path = shipped_folder / "starter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    repair = "install kitsattn again, or name another model"
    for words in (
        ["predict", scan, "out.nii.gz"],
        ["predict", scan, "out.nii.gz", "--model", "starter"],
        ["models", "describe", "starter"],
        ["models", "export", "starter", "out.pt2"],
    ):
        assert refused(*words, names=path, fix=repair) == []


def test_a_table_does_not_take_the_place_of_a_label_map(refused: Refused, scan: Path) -> None:
    """Who forgets REF names it as the table."""
    Path("labels.nii.gz").write_bytes(scan.read_bytes())
    words = ["evaluate", "all", "labels.nii.gz", "labels.nii.gz", "--csv", "labels.nii.gz"]
    refused(*words, names="labels.nii.gz", fix="name it .csv")
    assert Path("labels.nii.gz").read_bytes() == scan.read_bytes()


def test_an_empty_folder_holds_no_data(refused: Refused) -> None:
    """It is told what was looked for."""
    Path("empty").mkdir()
    refused("preprocess", "empty", names="empty", fix="holds no data set: expected case_00000/imaging.nii.gz")
    refused("evaluate", "dice", "empty", "empty", names="empty", fix="holds no label maps: they are expected as")


def test_cases_without_label_maps_cannot_be_prepared(refused: Refused, scan: Path) -> None:
    """Training needs labels."""
    case = Path("raw") / "case_00000"
    case.mkdir(parents=True)
    shutil.move(scan, case / "imaging.nii.gz")
    refused("preprocess", "raw", names="raw", fix="none of 1 cases has a label map, and training needs them")


def test_an_empty_workspace_says_which_command_comes_first(refused: Refused) -> None:
    """Each command but `predict` names the one that makes what it needs; nothing is created by asking."""
    place = Path("kitsattn-workspace")
    assert refused("preprocess", names=place / "raw", fix="or make phantoms with `kitsattn demo --data-only`") == []
    assert refused("train", names=place / "preprocessed", fix="make one with `kitsattn preprocess`") == []
    assert refused("evaluate", "dice", names=place / "runs", fix="make one with `kitsattn train --fold 0`") == []


def test_an_unfinished_data_set_is_not_trained_on(refused: Refused, home: Path) -> None:
    """A stopped `preprocess` is to be finished first."""
    folder = Path("kitsattn-workspace") / "preprocessed" / "painted"
    shutil.copytree(home / "preprocessed" / "painted", folder)
    (folder / "dataset.json").unlink()
    refused("train", names=folder.parent, fix="holds no finished data set: make one with `kitsattn preprocess`")


def _save_tensors(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"model/weight": torch.zeros(2)}, path, metadata)


def test_a_file_of_another_format_is_no_checkpoint(refused: Refused, scan: Path) -> None:
    """Text, a folder, plain weights, and a later version of the format."""
    text, folder, plain, later = (Path(f"{name}.safetensors") for name in ("text", "folder", "plain", "later"))
    text.write_text("weights, honestly", encoding="utf-8")
    folder.mkdir()
    _save_tensors(plain, None)
    _save_tensors(later, {"format": "kitsattn/2", "kitsattn": "{}"})
    fixes = {
        text: "is not a kitsattn checkpoint: name a .safetensors file that `kitsattn train` wrote",
        folder: "cannot be read (Is a directory): name a .safetensors file",
        plain: "names no format, this version reads 'kitsattn/1': name a checkpoint that `kitsattn train` wrote",
        later: "has the format 'kitsattn/2', this version reads 'kitsattn/1'",
    }
    for path, fix in fixes.items():
        assert refused("predict", scan, "out.nii.gz", "--model", path, names=path, fix=fix) == []
        assert refused("models", "describe", path, names=path, fix=fix) == []


@pytest.mark.parametrize("part", ["header", "config", "plan", "provenance"])
def test_a_checkpoint_with_unknown_keys_is_not_used(refused: Refused, checkpoint: Path, scan: Path, part: str) -> None:
    """A setting that this version does not know could change what the weights mean."""
    content = checkpoint.read_bytes()
    length = int.from_bytes(content[:8], "little")
    start = json.loads(content[8 : 8 + length])
    header = json.loads(start["__metadata__"]["kitsattn"])
    (header if part == "header" else header[part])["magic"] = 1
    start["__metadata__"]["kitsattn"] = json.dumps(header)
    packed = json.dumps(start).encode()
    path = Path("strange.safetensors")
    path.write_bytes(len(packed).to_bytes(8, "little") + packed + content[8 + length :])
    fix = "unknown key 'magic'; known keys are"
    assert refused("predict", scan, "out.nii.gz", "--model", path, names=path, fix=fix) == []


def test_a_truncated_checkpoint_is_not_used(refused: Refused, checkpoint: Path, scan: Path) -> None:
    """Where bytes are missing, in tensors or header, the file is to be copied again or another one named."""
    content = checkpoint.read_bytes()
    for length, fix in (
        (len(content) - 100, "is cut short (100 bytes are missing): copy it again"),
        (50, "is not a kit"),
    ):
        path = Path(f"{length}.safetensors")
        path.write_bytes(content[:length])
        assert refused("predict", scan, "out.nii.gz", "--model", path, names=path, fix=fix) == []
        assert refused("models", "describe", path, names=path, fix=fix) == []


def test_a_checkpoint_of_an_unknown_network_is_not_used(
    refused: Refused, changed_checkpoint: Callable[..., Path], scan: Path
) -> None:
    """The known ones are listed."""
    path = changed_checkpoint(Path("other.safetensors"), lambda header: replace(header, model="other"))
    refused("predict", scan, "out.nii.gz", "--model", path, names="'other'", fix="choose one of attention-deeplab-r50")


def test_models_of_different_plans_are_not_averaged(
    refused: Refused, checkpoint: Path, changed_checkpoint: Callable[..., Path], scan: Path
) -> None:
    """Their inputs would differ."""
    other = changed_checkpoint(
        Path("other.safetensors"), lambda header: replace(header, plan={**header.plan, "mean_hu": 1.0})
    )
    words = ["--model", checkpoint, "--model", other]
    refused("predict", scan, "out.nii.gz", *words, names=other, fix="name models of one run")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(refused: Refused, scan: Path) -> None:
    """An unknown suffix, a file where a folder should be, or the scan itself: no model is read."""
    Path("file").touch()
    for output, fix in (
        ("out.png", "choose .nii, .nii.gz, .nrrd, .mha"),
        ("file/out.nii.gz", "is not a folder that you may write to; name another output"),
        ("file/deeper/out.nii.gz", "is not a folder that you may write to; name another output"),
        (scan, "is the input itself, which would be lost: name another output"),
    ):
        assert refused("predict", scan, output, "--overwrite", "--model", "none", names=output, fix=fix) == []


def test_a_workspace_that_cannot_be_written_is_named(refused: Refused, kits_folder: Path) -> None:
    """A file where the workspace should be."""
    Path("file").touch()
    words = ["preprocess", kits_folder, "--workspace", "file", "--workers", "1"]
    refused(*words, names="file/preprocessed/painted", fix="choose another --workspace, or fix this one")


@pytest.mark.parametrize(
    ("words", "names", "fix"),
    [
        (["--model", "resnet"], "'resnet'", "choose one of attention-deeplab-r50"),
        (["--recipe", "stew"], "'stew'", "choose one of paper, modern, starter, demo, or name a TOML file"),
        (["--fold", "5"], "'5'", "choose 0 to 4, or all"),
        (["--fold", "first"], "'first'", "choose 0 to 4, or all"),
        (
            ["--dataset", "kits"],
            "preprocessed/kits",
            "(prepared data sets: painted): make it with `kitsattn preprocess`",
        ),
        (["--recipe", "bad.toml"], "bad.toml", "unknown key 'magic'; known keys are epochs"),
        (["--model-settings", "bad.toml"], "bad.toml", "unknown key 'magic'; known keys are slices"),
        (["--model-settings", "classes.toml"], "classes.toml", "the data set has 3 labels: leave classes out"),
        (["--model-settings", "gone.toml"], "gone.toml", "does not exist"),
        (["--encoder-weights", "bad.toml"], "bad.toml", "is not a safetensors file"),
        (["--precision", "fp16", "--device", "cpu"], "fp16", "use auto, bf16 or fp32 on a CPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_training_that_cannot_be_is_refused(
    refused: Refused, home: Path, settings: Settings, *, words: list[str], names: str, fix: str
) -> None:
    """Unknown names come with the known ones; nothing is created."""
    Path("bad.toml").write_text("magic = 1", encoding="utf-8")
    Path("classes.toml").write_text("classes = 4", encoding="utf-8")
    shutil.copytree(home / "preprocessed", Path("kitsattn-workspace") / "preprocessed")
    assert refused("train", *settings(), *words, names=names, fix=fix) == []


def test_a_device_that_is_not_there_is_refused(
    refused: Refused, home: Path, settings: Settings, checkpoint: Path, scan: Path
) -> None:
    """No silent fall-back to the CPU."""
    device = "mps" if torch.cuda.is_available() else "cuda"
    words = ["--device", device]
    fix = "use one of auto,"
    refused("predict", scan, "out.nii.gz", "--model", checkpoint, *words, names=f"no {device} device", fix=fix)
    shutil.copytree(home / "preprocessed", Path("kitsattn-workspace") / "preprocessed")
    assert refused("train", *settings(), *words, names=f"no {device} device", fix=fix) == []


def test_another_training_under_the_same_name_is_not_overwritten(
    command: Command, refused: Refused, home: Path, settings: Settings
) -> None:
    """A run goes on only as it began."""
    shutil.copytree(home / "preprocessed", Path("kitsattn-workspace") / "preprocessed")
    assert command("train", *settings()).exit_code == 0
    assert refused("train", *settings(), "--seed", "1", names="last.safetensors", fix="add --restart to begin") == []


def test_too_few_cases_make_no_folds(refused: Refused, prepared_case: Path) -> None:
    """One case cannot be held out and learnt from."""
    assert prepared_case.is_dir()
    refused("train", names="1 cases", fix="prepare 5 or more, or write splits_final.json yourself")


@pytest.mark.parametrize(
    ("words", "names", "fix"),
    [
        (["--spacing", "0"], "0.0", "must be a finite number of mm above 0"),
        (["--spacing", "nan"], "nan", "must be a finite number of mm above 0"),
        (["--plan", "gone.json"], "gone.json", "does not exist"),
        (["--plan", "bad.json"], "bad.json", "unknown key 'magic'; known keys are"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_plan_that_cannot_be_is_refused(
    refused: Refused, prepared_case: Path, words: list[str], names: str, fix: str
) -> None:
    """The prepared data set stays as it was."""
    write_json(Path("bad.json"), {"magic": 1})
    assert refused("preprocess", prepared_case, "--workers", "1", *words, names=names, fix=fix) == []


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["predict"],
        ["predict", "in.nii.gz", "out.nii.gz", "more.nii.gz"],
        ["predict", "in.nii.gz", "--batch-size", "0"],
        ["predict", "in.nii.gz", "--batch-size", "most"],
        ["predict", "in.nii.gz", "--device", "abacus"],
        ["train", "--epochs", "many"],
        ["train", "--batch-size", "1"],
        ["preprocess", "--fast"],
        ["evaluate", "beauty"],
        ["evaluate", "dice", "--protocol", "kits20"],
        ["models", "describe"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(command: Command, words: list[str]) -> None:
    """The usage is on stderr, with what was wrong, and stdout stays empty."""
    result = command(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


def _one_line(run: subprocess.CompletedProcess[str]) -> str:
    (line,) = run.stderr.splitlines()
    assert (run.returncode, run.stdout) == (1, "")
    assert line.startswith("error: ")
    return line


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_while_predicting(process: Process, checkpoint: Path, scan: Path) -> None:
    """The earlier output stays as it was, and nothing else is there."""
    Path("out.nii").write_bytes(b"precious")
    words = ["-q", "predict", scan, "out.nii", "--overwrite", "--model", checkpoint, "--device", "cpu"]
    line = _one_line(process("4096", *words, program=LIMITED))
    assert line == "error: no space left to write out.nii: free some disk space and run the command again"
    assert sorted(path.name for path in Path().iterdir()) == ["out.nii", "scan.nii.gz"]
    assert Path("out.nii").read_bytes() == b"precious"


def test_a_full_disk_while_preprocessing(command: Command, process: Process, kits_folder: Path) -> None:
    """What is finished is kept, the log that does not fit is no second error, and the same command then goes on."""
    folder = Path("kitsattn-workspace") / "preprocessed" / "painted"
    folder.mkdir(parents=True)
    (folder / "preprocess.log").write_bytes(b"\n" * 8192)
    line = _one_line(process("4096", "-q", "preprocess", kits_folder, "--workers", "1", program=LIMITED))
    assert "no space left to write" in line
    assert "case_00000: free some disk space and run the command again" in line
    assert not [path for path in _contents(folder) if ".part." in path.name or path.suffix == ".b2nd"]
    assert not (folder / "dataset.json").exists()
    assert command("preprocess", kits_folder, "--workers", "1").exit_code == 0
    assert (folder / "dataset.json").is_file()


def test_a_full_disk_while_downloading(command: Command, process: Process, file_server: "FileServer") -> None:
    """The part that fitted is kept, and the same command then goes on."""
    content = gzip.compress(np.random.default_rng(0).bytes(300_000), 1)
    for name in ("labels/case_00000/segmentation.nii.gz", "images/case_00000.nii.gz"):
        file_server.serve(f"/{name}", content)
    addresses = ["--images-url", f"{file_server.url}/images", "--labels-url", f"{file_server.url}/labels"]
    words = ["-q", "download", "kits19", "data", "--cases", "0", "--parallel", "1", *addresses]
    line = _one_line(process("100000", *words, program=LIMITED))
    folder = Path("data") / "case_00000"
    assert f"no space left to write {folder / 'segmentation.nii.gz'}: free some disk space and run" in line
    assert 65_536 <= (folder / ".segmentation.nii.gz.part").stat().st_size <= 100_000
    file_server.requests.clear()
    assert command(*words).exit_code == 0
    assert "Range" in file_server.requests[0][1]
    assert (folder / "segmentation.nii.gz").read_bytes() == (folder / "imaging.nii.gz").read_bytes() == content


def _checkpoints(fold: Path) -> dict[Path, bytes]:
    return {path: content for path, content in _contents(fold).items() if path.suffix == ".safetensors"}


def test_a_full_disk_while_training(command: Command, process: Process, home: Path, settings: Settings) -> None:
    """The checkpoints of the last finished epoch stay whole, and the same command then goes on."""
    place = Path("kitsattn-workspace")
    shutil.copytree(home / "preprocessed", place / "preprocessed")
    words = ["-q", "train", *settings(epochs=1, batches=1), "--run-name", "full"]
    assert command(*words).exit_code == 0
    fold = place / "runs" / "full" / "fold_0"
    before = _checkpoints(fold)
    line = _one_line(process("20000", *words, "--epochs", "2", program=LIMITED))
    assert "last.safetensors cannot be written" in line or "best.safetensors cannot be written" in line
    assert "see that the disk has room and run the command again" in line
    assert _checkpoints(fold) == before
    assert command(*words, "--epochs", "2").exit_code == 0
    assert len((fold / "journal.jsonl").read_text(encoding="utf-8").splitlines()) == 2
