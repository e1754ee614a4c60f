"""Training on made scans, from a data folder to the small file that ships."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner, Result

from kitsattn.checkpoint.file import load_checkpoint
from kitsattn.checkpoint.header import read_header
from kitsattn.cli.app import app
from kitsattn.config import read_settings
from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.jobs import HERE
from kitsattn.labels import KITS23_LABELS
from kitsattn.predict.infer import load_ensemble
from kitsattn.predict.scan import predict_volume
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import PreparedDataset, save_dataset
from kitsattn.synthesis.data import SOURCES_OF_DATA
from kitsattn.synthesis.prepare import PLAN, PreparedMaterial, plan_file
from kitsattn.train.starter import made_dataset, open_real
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume
from kitsattn.workspace import Workspace

NETWORK = """
normalizer_channels = [4, 8]
encoder_depths = [1, 1, 1, 1]
encoder_width = 8
aspp_channels = 16
aspp_rates = [2]
key_channels = 4
low_level_channels = 8
decoder_channels = 16
"""
RECIPE = """
epochs = 1
batches_per_epoch = 2
validation_batches = 2
batch_size = 2
patch_size = [64, 96]
optimizer = "adamw"
learning_rate = 1e-3
schedule = "polynomial"
ema_decay = 0.9
shares = [{shares}]
"""

Train = Callable[..., Result]


@pytest.fixture
def workspace(material: PreparedMaterial, tmp_path: Path) -> Workspace:
    """A workspace in which everything is prepared."""
    shutil.copytree(material.folder.parents[1], tmp_path / "workspace")
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def train(workspace: Workspace, tmp_path: Path) -> Iterator[Train]:
    """`kitsattn train` of a very small network with a recipe that has shares, and as the test adds."""
    (tmp_path / "network.toml").write_text(NETWORK)

    def run(*more: str | Path, shares: str = "1, 1, 1, 1", network: str = "network.toml") -> Result:
        (tmp_path / "made.toml").write_text(RECIPE.format(shares=shares))
        options = ["--workspace", workspace.root, "--recipe", tmp_path / "made.toml", "--model-settings"]
        options += [tmp_path / network, "--model", "attention-deeplab-tiny", "--workers", "0", "--device", "cpu"]
        words = [str(word) for word in ("train", *options, "--precision", "fp32", *more)]
        return CliRunner().invoke(app, words, catch_exceptions=False)

    logger = logging.getLogger("kitsattn")
    before = logger.handlers, logger.level, logger.propagate
    yield run
    logger.handlers, logger.level, logger.propagate = before


def test_a_training_leaves_the_file_that_ships(train: Train, workspace: Workspace, starter_folder: Path) -> None:
    """Matrices in fp16, every source with its count and licence, hours of training; and it predicts."""
    result = train("--data", starter_folder, "--run-name", "small", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    path = workspace.runs / "small" / "fold_0" / "starter.safetensors"
    assert told == {
        "run": str(path.parents[1]),
        "finished": True,
        "weights": str(path),
        "checkpoint": str(path.with_name("best.safetensors")),
    }
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - a file, not a mapping
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim > 1} == {torch.float16}
    assert torch.float16 not in {tensor.dtype for tensor in tensors.values() if tensor.ndim <= 1}
    best = load_checkpoint(path.with_name("best.safetensors"))
    for name, tensor in load_checkpoint(path).model.items():
        torch.testing.assert_close(tensor, best.model[name], rtol=1e-3, atol=1e-6)

    header, _ = read_header(path)
    made = header.provenance
    assert header.config["slab_step_mm"] == 5.0
    assert header.config["slices"] == 5
    assert header.plan["spacing_mm"] == [1.5, 1.5]
    assert header.training is None
    assert header.tta == "sides"
    assert (made.dataset, made.recipe, made.synthetic, made.licence) == ("starter", "made", False, "CC BY-NC-SA 4.0")
    assert {source.name: (source.count, source.unit) for source in made.sources} == {
        "KiTS19 label maps": (2, "label maps"),
        "KiTS23 label maps": (1, "label maps"),
        "TotalSegmentator label maps": (1, "label maps"),
        "SPL abdominal atlas": (1, "label maps"),
        "slices of the CURVAS challenge": (2, "real slices"),
        "slices of KiTS19": (2, "real slices"),
    }
    known = {(info.licence, info.citation) for info in SOURCES_OF_DATA}
    assert {(source.licence, source.citation) for source in made.sources} == known
    assert made.hours is not None
    assert 0 <= made.hours < 1
    assert set(made.scores) == {"kidney_and_tumour", "tumour"}

    ensemble = load_ensemble([path], torch.device("cpu"), "fp32")
    scan = np.random.default_rng(0).normal(0, 100, (6, 40, 50)).astype(np.int16)
    labels, _ = predict_volume(ensemble, Volume(scan, Geometry.axial(scan.shape, (5.0, 1.5, 1.5))))
    assert labels.array.shape == scan.shape


def test_a_stopped_training_goes_on_to_the_same_bits(train: Train, workspace: Workspace, starter_folder: Path) -> None:
    """After --max-minutes 0, one batch at a time, the weights are those of an uninterrupted training."""
    assert train("--data", starter_folder, "--run-name", "straight").exit_code == 0
    stopped = train("--data", starter_folder, "--run-name", "stopped", "--max-minutes", "0", "--json")
    assert stopped.exit_code == 0
    assert json.loads(stopped.stdout)["finished"] is False
    folder = workspace.runs / "stopped" / "fold_0"
    assert not (folder / "starter.safetensors").exists()
    for _ in range(4):
        if (folder / "starter.safetensors").exists():
            break
        assert train("--data", starter_folder, "--run-name", "stopped", "--max-minutes", "0").exit_code == 0
    assert train("--data", starter_folder, "--run-name", "stopped").exit_code == 0
    for name in ("starter", "last"):
        one, other = (
            load_checkpoint(workspace.runs / run / "fold_0" / f"{name}.safetensors") for run in ("straight", "stopped")
        )
        assert one.model.keys() == other.model.keys()
        assert all(torch.equal(one.model[key], other.model[key]) for key in one.model)
        assert all(torch.equal(one.training[key], other.training[key]) for key in one.training)


def test_a_training_does_not_go_on_with_other_data(train: Train, starter_folder: Path, tmp_path: Path) -> None:
    """Data that were added since are named, with what to do."""
    folder = tmp_path / "data"
    shutil.copytree(starter_folder, folder)
    (folder / "kits19-labels" / "case_00158.nii.gz").unlink()
    assert train("--data", folder, "--max-minutes", 0).exit_code == 0
    shutil.copy(starter_folder / "kits19-labels" / "case_00158.nii.gz", folder / "kits19-labels")
    result = train("--data", folder)
    assert result.exit_code == 1
    assert "KiTS19 label maps was 1 label maps and is 2 label maps" in result.stderr
    assert "--restart" in result.stderr


def test_without_real_slices_made_scans_validate(train: Train, starter_folder: Path, tmp_path: Path) -> None:
    """A data folder with nothing but label maps is enough."""
    for name in ("kits19-labels", "starter/kits23-labels", "starter/totalsegmentator", "starter/spl-atlas"):
        shutil.copytree(starter_folder / name, tmp_path / "data" / name)
    result = train("--data", tmp_path / "data", "--run-name", "made", "--json")
    assert result.exit_code == 0, result.output
    header, _ = read_header(Path(json.loads(result.stdout)["weights"]))
    assert [source.unit for source in header.provenance.sources] == ["label maps"] * 4


@pytest.fixture
def scans(workspace: Workspace, kits_folder: Path) -> PreparedDataset:
    """Painted cases that stand for real scans, prepared with the plan of made ones."""
    folder = workspace.preprocessed / "painted"
    dataset = find_dataset(kits_folder)
    return preprocess_dataset(dataset, folder, plan_file=plan_file(workspace), workers=HERE).dataset


def test_real_scans_are_mixed_in(train: Train, scans: PreparedDataset, starter_folder: Path) -> None:
    """--dataset draws from them by the fourth share, and the file names the data set and its licence."""
    result = train(
        "--data", starter_folder, "--dataset", "painted", "--run-name", "mixed", "--json", shares="0, 0, 0, 1"
    )
    assert result.exit_code == 0, result.output
    header, _ = read_header(Path(json.loads(result.stdout)["weights"]))
    assert header.provenance.dataset == "starter-painted"
    assert header.provenance.licence == f"CC BY-NC-SA 4.0; painted: {scans.licence}"
    assert scans.citation in header.provenance.citation
    source = header.provenance.sources[-1]
    assert (source.name, source.count, source.unit) == ("painted", len(scans.cases), "real scans")
    assert (source.licence, source.citation) == (scans.licence, scans.citation)


def test_without_real_scans_their_share_alone_draws_nothing(train: Train, starter_folder: Path) -> None:
    """One line names the sources."""
    result = train("--data", starter_folder, shares="0, 0, 0, 1")
    assert result.exit_code == 1
    assert "none of the sources painted, bodies, slices, volumes with a share above 0 has any material" in result.stderr


def test_scans_of_another_plan_are_refused(prepared: PreparedDataset, workspace: Workspace, train: Train) -> None:
    """With the command that prepares them again, whose plan is there even if nothing else was prepared before."""
    shutil.copytree(prepared.folder, workspace.preprocessed / "other")
    plan_file(workspace).unlink()
    with pytest.raises(KitsattnError) as refusal:
        open_real(workspace.preprocessed / "other", plan_file(workspace))
    assert str(refusal.value).endswith(
        f"was prepared with another plan: run `kitsattn preprocess RAW_FOLDER --plan {plan_file(workspace)}`"
    )
    assert read_settings(Plan, plan_file(workspace)) == PLAN


def test_scans_with_other_labels_are_refused(
    scans: PreparedDataset, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label 2 must be a tumour; a cyst as label 3 is welcome."""
    save_dataset(replace(scans, labels={"background": 0, "liver": 1, "tumour": 2}))
    with pytest.raises(KitsattnError, match="has the labels background, liver, tumour: it needs background 0, kidney"):
        open_real(scans.folder, plan_file(workspace))
    monkeypatch.setattr(PreparedDataset, "open_case", lambda _, case: case)
    save_dataset(replace(scans, labels=KITS23_LABELS))
    assert open_real(scans.folder, plan_file(workspace)).labels == KITS23_LABELS


@pytest.mark.parametrize("shares", ["0.2, 0.5, 0.3", "0, 0, 0, 0", "-1, 1, 1, 1"])
def test_shares_that_make_no_training_are_refused(train: Train, starter_folder: Path, shares: str) -> None:
    """There are four, 0 or more, one of them above 0."""
    result = train("--data", starter_folder, shares=shares)
    assert result.exit_code == 1
    assert "shares" in result.stderr


def test_data_belongs_to_recipes_that_make_scans(workspace: Workspace, starter_folder: Path, train: Train) -> None:
    """--data with another recipe is refused; a recipe with shares but without --data lists what it needs."""
    words = ["train", "--data", str(starter_folder), "--recipe", "paper", "--workspace", str(workspace.root)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 1
    assert "--data is for recipes that make scans: add --recipe starter, or leave --data out" in result.stderr
    result = train()
    assert result.exit_code == 1
    for info in SOURCES_OF_DATA:
        assert info.origin in result.stderr


@pytest.mark.parametrize("change", ["slices = 3", "slab_step_mm = 3.0"])
def test_networks_of_other_slabs_are_refused(train: Train, starter_folder: Path, tmp_path: Path, change: str) -> None:
    """Made scans have five slices 5 mm apart, and a network predicts with the slabs that it was trained on."""
    (tmp_path / "changed.toml").write_text(f"{NETWORK}\n{change}\n")
    result = train("--data", starter_folder, network="changed.toml")
    assert result.exit_code == 1
    assert "made scans have 5 slices 5 mm apart: leave slices and slab_step_mm out" in result.stderr


def test_the_licence_is_the_strictest(material: PreparedMaterial) -> None:
    """Without data for non-commercial use only, weights would be CC BY 4.0; KiTS's label maps make them NC and SA."""
    assert made_dataset(material).licence == "CC BY-NC-SA 4.0"
    assert made_dataset(material).plan == PLAN
    free = replace(material, data=replace(material.data, label_maps=(), slices=()))
    assert made_dataset(free).licence == "CC BY 4.0"
