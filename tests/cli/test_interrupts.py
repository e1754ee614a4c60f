"""Ctrl-C, sent as a terminal sends it: to the command and all processes it has started."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from typer.testing import Result

from kitsattn.checkpoint.file import load_checkpoint

if TYPE_CHECKING:
    from tests.conftest import FileServer

Command = Callable[..., Result]
Settings = Callable[..., list[str]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to send SIGINT to")

SLOW_PREDICTION = """
import pathlib, time
import kitsattn.predict.scan as scan
from kitsattn.cli.app import main

def never_ready(*arguments, **options):
    pathlib.Path("predicting").touch()
    time.sleep(60)

scan.predict_block = never_ready
main()
"""


def _interrupt(
    start: list[str], arguments: list[str], *, when: Callable[[], bool], number: signal.Signals = signal.SIGINT
) -> None:
    """Run a command, send Ctrl-C to its group once `when` holds, and check that it ends in one line.

    SIGTERM goes to the command alone, as a job scheduler sends it.
    """
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *start, "-q", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 60
        while not when():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the command never came so far"
            time.sleep(0.005)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (128 + number, "")
    assert stderr == "interrupted: whatever was finished is kept, run the same command to go on\n"


def _remains() -> list[Path]:
    return [path for path in Path().rglob("*") if ".part." in path.name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_is_interrupted_and_goes_on(
    command: Command, home: Path, settings: Settings, number: signal.Signals
) -> None:
    """The checkpoint holds the last finished batch, the journal the finished epochs, and none is missing afterwards."""
    place = Path("kitsattn-workspace")
    shutil.copytree(home / "preprocessed", place / "preprocessed")
    journal = place / "runs" / "stopped" / "fold_0" / "journal.jsonl"
    arguments = ["train", *settings(epochs=10, batches=6), "--run-name", "stopped"]

    with_worker = [*arguments, "--workers", "1"]
    _interrupt(
        ["-m", "kitsattn"],
        with_worker,
        when=lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1,
        number=number,
    )
    assert _remains() == []
    finished = [json.loads(line)["epoch"] for line in journal.read_text(encoding="utf-8").splitlines()]
    header = load_checkpoint(journal.with_name("last.safetensors")).header
    saved = header.provenance.epoch
    assert 2 <= saved < 10
    assert finished == list(range(1, saved + 1))

    result = command(*arguments)
    assert result.exit_code == 0, result.stderr
    batch = json.loads(header.training or "{}")["batch"]
    assert f"resuming after {saved} of 10 epochs{f' and {batch} batches' if batch else ''}\n" in result.stderr
    assert (journal.parent / "validation" / "summary.json").is_file()
    again = [json.loads(line)["epoch"] for line in journal.read_text(encoding="utf-8").splitlines()]
    assert again == list(range(1, 11))


def _stop_the_drawers(journal: Path) -> bool:
    """Once an epoch has ended, stop the processes that draw batches, so that no more come."""
    if not journal.exists() or not journal.read_bytes():
        return False
    commands = [process for process in psutil.Process().children() if "kitsattn" in process.cmdline()]
    drawers = [drawer for command in commands for server in command.children() for drawer in server.children()]
    for drawer in drawers:
        drawer.send_signal(signal.SIGSTOP)
    return bool(drawers)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes as Linux starts them")
def test_a_training_that_waits_for_a_batch_is_interrupted(home: Path, settings: Settings) -> None:
    """By one SIGTERM, with everything saved, though the process that draws does not answer."""
    place = Path("kitsattn-workspace")
    shutil.copytree(home / "preprocessed", place / "preprocessed")
    journal = place / "runs" / "waiting" / "fold_0" / "journal.jsonl"
    arguments = ["train", *settings(epochs=1000, batches=6), "--run-name", "waiting", "--workers", "1"]
    _interrupt(["-m", "kitsattn"], arguments, when=lambda: _stop_the_drawers(journal), number=signal.SIGTERM)
    header = load_checkpoint(journal.with_name("last.safetensors")).header
    assert header.provenance.epoch == journal.read_bytes().count(b"\n")


def test_a_training_may_be_given_its_minutes(command: Command, home: Path, settings: Settings) -> None:
    """It saves and stops, which is no mistake; the same command goes on."""
    place = Path("kitsattn-workspace")
    shutil.copytree(home / "preprocessed", place / "preprocessed")
    arguments = ["train", *settings(epochs=1, batches=3), "--run-name", "short"]
    for batch in (1, 2):
        result = command(*arguments, "--max-minutes", "0", *(["--json"] if batch == 2 else []))
        assert result.exit_code == 0, result.stderr
        if batch == 1:
            assert (
                result.stdout
                == "fold 0 was stopped in epoch 1: its time has passed: saved; run the same command to continue\n"
            )
        else:
            assert json.loads(result.stdout) == {"run": str(place / "runs" / "short"), "finished": False}
    result = command(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "resuming after 0 of 1 epochs and 2 batches" in result.stderr


def test_a_prediction_is_interrupted_and_can_be_repeated(command: Command, checkpoint: Path, scan: Path) -> None:
    """The earlier output stays as it was until a whole one takes its place."""
    Path("out.nii.gz").write_bytes(b"precious")
    arguments = ["predict", str(scan), "out.nii.gz", "--overwrite", "--model", str(checkpoint), "--device", "cpu"]
    _interrupt(["-c", SLOW_PREDICTION], arguments, when=Path("predicting").exists)
    assert sorted(path.name for path in Path().iterdir()) == ["out.nii.gz", "predicting", "scan.nii.gz"]
    assert Path("out.nii.gz").read_bytes() == b"precious"
    assert command(*arguments).exit_code == 0
    assert Path("out.nii.gz").stat().st_size > len(b"precious")


def test_a_download_is_interrupted_and_goes_on(command: Command, file_server: "FileServer") -> None:
    """Connections that have fallen silent do not hold it up; what has come is kept, and only the rest is fetched."""
    content = gzip.compress(np.random.default_rng(0).bytes(300_000), 1)
    for number in range(210, 213):
        file_server.serve(f"/case_00{number}.nii.gz", content).fail(cut=150_000, hold=True)
    arguments = ["download", "kits19", "data", "--cases", "210-212", "--images-url", file_server.url]
    parts = [Path("data") / f"case_00{number}" / ".imaging.nii.gz.part" for number in range(210, 213)]
    begun = time.monotonic()
    _interrupt(
        ["-m", "kitsattn"],
        arguments,
        when=lambda: all(part.exists() and part.stat().st_size == 131_072 for part in parts),
    )
    assert time.monotonic() - begun < 30, "half of the time after which silence is a cut"
    file_server.go_on.set()
    file_server.requests.clear()
    assert command(*arguments).exit_code == 0
    assert [headers["Range"] for _, headers in file_server.requests] == ["bytes=131072-"] * 3
    assert [part.with_name("imaging.nii.gz").read_bytes() for part in parts] == [content] * 3
    assert not any(part.exists() for part in parts)


def test_preprocessing_is_interrupted_and_goes_on(command: Command, kits_folder: Path, tmp_path: Path) -> None:
    """The processes end silently, finished cases are kept, and what a process left half-written is tidied away.

    Until all cases are there, nothing says that the data set is finished.
    """
    sources = sorted(kits_folder.glob("case_*"))
    raw = tmp_path / "raw"  # absolute: processes that an earlier test has started lie in another folder
    raw.mkdir()
    for number in range(48):
        (raw / f"case_{number:05}").symlink_to(sources[number % len(sources)])
    folder = tmp_path / "workspace" / "preprocessed" / "raw"
    arguments = ["preprocess", str(raw), "--workspace", str(tmp_path / "workspace"), "--workers", "2"]

    _interrupt(["-m", "kitsattn"], arguments, when=lambda: len(list(folder.glob("cases/case_?????"))) > 2)
    assert not (folder / "dataset.json").exists()
    finished = len(list(folder.glob("cases/case_?????")))
    assert 2 < finished < 48
    remains = folder / "cases" / ".00000000.part.new.case_00047"
    remains.mkdir()
    (folder / "fingerprints" / ".00000000.part.case_00047.json").touch()

    result = command(*arguments)
    assert result.exit_code == 0, result.stderr
    assert f"{48 - finished} cases prepared, {finished} finished before" in result.stderr
    assert (folder / "dataset.json").exists()
    assert _remains() == []
