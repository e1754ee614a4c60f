"""Networks of other packages."""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from kitsattn.checkpoint.file import load_checkpoint, load_model
from kitsattn.checkpoint.weights import load_initial
from kitsattn.cli.app import app
from kitsattn.errors import KitsattnError
from kitsattn.models import model_entry, model_names, registry
from kitsattn.precision import Precision
from kitsattn.predict.infer import load_ensemble
from kitsattn.preprocess.store import PreparedDataset

# It holds its modules in an order that says nothing of how they follow one another, as published networks do, and
# uses none of the names of kitsattn's networks.
NETWORK = """
from dataclasses import dataclass
import torch
from torch import nn
from kitsattn.models import register_model

@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    slices: int = 3
    slab_step_mm: float | None = None
    classes: int = 3
    width: int = 8

class Toy(nn.Module):
    CHAINS = {chains}

    def __init__(self, config):
        super().__init__()
        self.conv1 = nn.Conv2d(config.slices, config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.bn2 = nn.BatchNorm2d(config.width)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(config.width, config.classes, 1)
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, config.width)[:, None, None], persistent=False)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        return self.head(self.act(self.bn2(self.conv2(x))) * self.ramp)

register_model("toy", ToyConfig(), Toy)
"""
RECIPE = """
epochs = 1
batches_per_epoch = 3
validation_batches = 1
batch_size = 4
patch_size = [32, 48]
learning_rate = 1e-2
schedule = "polynomial"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Return after the test to the networks that were registered before it."""
    before = dict(registry._ENTRIES)
    logger = logging.getLogger("kitsattn")
    logged = logger.handlers, logger.level, logger.propagate
    registry.load_plugins.cache_clear()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)
    sys.modules.pop("toy_networks", None)
    registry.load_plugins.cache_clear()
    logger.handlers, logger.level, logger.propagate = logged


def put_package(code: str) -> None:
    """Write a package with an entry point as pip would install it."""
    site = Path("site")
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text("[kitsattn.models]\ntoy = toy_networks\n")
    (site / "toy_networks.py").write_text(code)


def command(*words: str | Path) -> Result:
    """Run kitsattn in this process."""
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def train(dataset: PreparedDataset, *words: str | Path) -> Path:
    """Train the toy for three batches; return its checkpoint."""
    workspace = Path("workspace")
    target = workspace / "preprocessed" / dataset.name
    if not target.exists():
        target.parent.mkdir(parents=True)
        target.symlink_to(dataset.folder)
    Path("recipe.toml").write_text(RECIPE)
    always = ("--recipe", "recipe.toml", "--workspace", workspace, "--workers", "0", "--device", "cpu", "--json")
    result = command("train", *always, *words)
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["run"]) / "fold_0" / "last.safetensors"


@pytest.mark.usefixtures("install")
def test_a_network_of_another_package_does_all_that_ours_do(prepared: PreparedDataset) -> None:
    """It is listed, trains, predicts as it was trained, is fine-tuned for other classes, and exports."""
    put_package(NETWORK.format(chains='(("conv1", "bn1"), ("conv2", "bn2"))'))
    assert "toy" in command("models", "list").stdout
    checkpoint = train(prepared, "--model", "toy", "--run-name", "one")
    (member,) = load_ensemble([checkpoint], torch.device("cpu"), "fp32").members
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in member.model.modules())
    slabs = torch.randn(2, 3, 40, 56)
    plain = load_model(load_checkpoint(checkpoint), "here")
    with torch.inference_mode():
        torch.testing.assert_close(member.model(slabs), plain(slabs), rtol=1e-4, atol=1e-4)
    scan = next(iter(prepared.sources.values())).image
    assert command("predict", scan, "out.nii.gz", "--model", checkpoint, "--device", "cpu").exit_code == 0
    assert Path("out.nii.gz").exists()
    again = train(prepared, "--init", checkpoint, "--run-name", "two")
    assert load_checkpoint(again).header.model == "toy"
    other = model_entry("toy").build(replace(model_entry("toy").config, classes=4))  # type: ignore[type-var]
    fresh = other.get_parameter("head.weight").clone()
    assert "the last layer is new" in load_initial(other, "toy", checkpoint)
    assert torch.equal(other.get_parameter("head.weight"), fresh)
    assert torch.equal(other.get_parameter("conv1.weight"), plain.get_parameter("conv1.weight"))
    assert command("models", "export", checkpoint, "toy.onnx").exit_code == 0


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_declaration_costs_speed_and_nothing_else(
    prepared: PreparedDataset, capsys: pytest.CaptureFixture[str], precision: Precision
) -> None:
    """The logits of a folded network are compared with its own; a warning names it, and it is used unfolded."""
    put_package(NETWORK.format(chains='(("conv1", "bn2"), ("conv2", "bn1"), ("conv2", "act"))'))
    checkpoint = train(prepared, "--model", "toy", "--run-name", "wrong")
    (member,) = load_ensemble([checkpoint], torch.device("cpu"), precision).members
    assert "toy predicts otherwise" in capsys.readouterr().err
    slabs = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        expected = load_model(load_checkpoint(checkpoint), "here")(slabs)
        torch.testing.assert_close(member.model(slabs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("install")
def test_without_a_declaration_nothing_is_folded(prepared: PreparedDataset, capsys: pytest.CaptureFixture[str]) -> None:
    """The order in which a network holds its modules is not taken for the order in which it applies them."""
    put_package(NETWORK.format(chains="()"))
    checkpoint = train(prepared, "--model", "toy", "--run-name", "none")
    (member,) = load_ensemble([checkpoint], torch.device("cpu"), "fp32").members
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in member.model.modules()) == 2
    assert "predicts otherwise" not in capsys.readouterr().err


@pytest.mark.usefixtures("install")
def test_a_package_that_fails_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The other networks stay; asking for its network says that there is none."""
    put_package("raise ImportError('no module of mine')")
    assert model_names()[0] == "attention-deeplab-r50"
    assert "the networks of toy cannot be used: ImportError: no module of mine" in caplog.text
    with pytest.raises(KitsattnError, match="there is no model named 'toy'"):
        model_entry("toy")
