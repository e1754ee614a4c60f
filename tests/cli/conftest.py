"""The command line under test, in this process and in others, and one tiny network that it trained."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kitsattn.checkpoint.file import load_checkpoint, save_checkpoint
from kitsattn.checkpoint.header import Header
from kitsattn.cli.app import app
from kitsattn.files import read_json, write_json
from kitsattn.predict.select import MODEL_VARIABLE
from kitsattn.workspace import ENVIRONMENT_VARIABLE

NETWORK = """
slices = 3
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
epochs = {epochs}
batches_per_epoch = {batches}
validation_batches = 1
batch_size = 4
patch_size = [64, 64]
learning_rate = 5e-3
schedule = "plateau"
"""

Command = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., list[Path]]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, shipped_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in an empty folder without a workspace, and leave the package's logging as it was.

    The shipped model is the stand-in; commands in other processes have the package's own.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)  # which pytest-xdist sets
    logger = logging.getLogger("kitsattn")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def command() -> Command:
    """`kitsattn ARGUMENTS` in this process; an exception that a user would see as a traceback fails the test."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def process() -> Process:
    """`python -m kitsattn ARGUMENTS` in a process of its own; `program` replaces `-m kitsattn`."""

    def run(*arguments: str | Path, program: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        start = [sys.executable, *(["-m", "kitsattn"] if program is None else ["-c", program])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONUNBUFFERED", None)  # people do not set it, and it changes when a write fails
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.run(
            [*start, *map(str, arguments)], text=True, check=False, timeout=60, env=environment, **pipes
        )

    return run


def files_in(folder: Path) -> dict[Path, bytes]:
    """Return all files of a folder with their bytes; logs are left out, every command writes on in them."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".log"}


@pytest.fixture
def refused(command: Command, tmp_path: Path) -> Refused:
    """Run a command that must be refused: one line that names the cause and the fix, and nothing lost.

    Returns the files that are new, logs left out.
    """

    def run(*arguments: str | Path, names: str | Path, fix: str) -> list[Path]:
        before = files_in(tmp_path)
        result = command("-q", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert str(names) in line
        assert fix in line
        after = files_in(tmp_path)
        assert {path: after.get(path) for path in before} == before
        new = sorted(after.keys() - before.keys())
        assert not [path for path in new if ".part." in path.name]
        return new

    return run


def write_settings(folder: Path, *, epochs: int, batches: int) -> list[str]:
    """Write a very small network and recipe; return the options of `kitsattn train` that use them, on the CPU."""
    (folder / "network.toml").write_text(NETWORK, encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE.format(epochs=epochs, batches=batches), encoding="utf-8")
    settings = ["--model-settings", str(folder / "network.toml"), "--recipe", str(folder / "recipe.toml")]
    return ["--model", "attention-deeplab-tiny", *settings, "--device", "cpu", "--precision", "fp32", "--workers", "0"]


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., list[str]]:
    """Options of `kitsattn train` for a very small network and as few epochs and batches as the test asks for."""
    return lambda epochs=1, batches=1: write_settings(tmp_path, epochs=epochs, batches=batches)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, kits_folder: Path, command: Command) -> Path:
    """A workspace with the painted cases, called real, prepared and fold 0 trained until kidneys are found.

    Nothing in it may be changed: tests copy what they change.
    """
    root = tmp_path_factory.mktemp("home")
    raw = root / "raw" / "painted"
    shutil.copytree(kits_folder, raw)
    write_json(raw / "kitsattn-dataset.json", {**read_json(raw / "kitsattn-dataset.json"), "synthetic": False})
    options = write_settings(root, epochs=3, batches=40)
    for arguments in (["preprocess", "--workers", "1"], ["train", *options, "--run-name", "first"]):
        result = command(*arguments, "--workspace", root)
        assert result.exit_code == 0, result.output
    return root


@pytest.fixture(scope="session")
def checkpoint(home: Path) -> Path:
    """The network of `home`, trained on cases that are called real."""
    return home / "runs" / "first" / "fold_0" / "best.safetensors"


@pytest.fixture
def changed_checkpoint(checkpoint: Path) -> Callable[..., Path]:
    """Write the network of `home` to a file, with a header that a function of the test has changed."""

    def write(path: Path, change: Callable[[Header], Header]) -> Path:
        loaded = load_checkpoint(checkpoint)
        save_checkpoint(path, replace(loaded, header=change(loaded.header)))
        return path

    return write


@pytest.fixture
def synthetic(changed_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """The newest run of a workspace in the test's folder, trained on phantoms."""
    return changed_checkpoint(
        tmp_path / "kitsattn-workspace" / "runs" / "phantoms" / "fold_0" / "best.safetensors",
        lambda header: replace(header, provenance=replace(header.provenance, synthetic=True)),
    )


@pytest.fixture
def scan(home: Path, tmp_path: Path) -> Path:
    """A painted scan in the test's folder, KiTS19's way: slice axis first, affine (I, P, L)."""
    return Path(shutil.copy(home / "raw" / "painted" / "case_00000" / "imaging.nii.gz", tmp_path / "scan.nii.gz"))


@pytest.fixture
def painted(home: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, int16, and affine of that scan, in the order of the file."""
    image = nib.load(home / "raw" / "painted" / "case_00000" / "imaging.nii.gz")
    assert isinstance(image, nib.Nifti1Image)
    return np.asarray(image.dataobj), np.asarray(image.affine)
