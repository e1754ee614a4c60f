"""What goes where: results on stdout, everything else on stderr, bars on terminals only, and how errors end."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from kitsattn.cli import bars
from kitsattn.cli.console import log_file, open_standard_streams
from kitsattn.errors import KitsattnError
from kitsattn.predict.select import MODEL_VARIABLE, choose_models
from kitsattn.workspace import ENVIRONMENT_VARIABLE, Workspace

Command = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]
Settings = Callable[..., list[str]]

ESCAPE = "\x1b"
ERASE_LINE = re.compile(r"\x1b\[2K")
STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = "━"

IMPATIENT = """
from kitsattn.cli import app, bars
bars._PATIENCE_SECONDS = 0.0
app.main()
"""
WORK = """
import sys, time
from kitsattn.cli import bars, console, progress
bars._PATIENCE_SECONDS = float(sys.argv[1])
console.configure_logging(verbose=False, quiet=False)
with progress.progress_bars() as draw:
    draw("work", 1, 3)
    time.sleep(0.4)
    console.say("in between")
    time.sleep(0.4)
    draw("work", 3, 3)
console.say("at the end")
"""
TRAINING = """
from kitsattn.cli import app, bars, live
bars._PATIENCE_SECONDS = 0.0
live._REFRESHES_PER_SECOND = 100.0
app.main()
"""
LOST_TERMINAL = """
import os, sys, time
from kitsattn.cli import bars, console, live
bars._PATIENCE_SECONDS = 0.0
console.configure_logging(verbose=False, quiet=False)
with live.TrainingDisplay([], live.Console(stderr=True)) as display:
    display.draw("work", 1, 3)
    os.write(1, b"drawing\\n")  # past the display, which would put it above its bars
    sys.stdin.read()
    time.sleep(0.5)
    display.draw("work", 2, 3)
print("at the end", flush=True)
"""


def _on_terminal(program: str, *arguments: str | Path, **variables: str) -> tuple[int, str, str]:
    """Run Python with a terminal as its stderr; return exit code, stdout, and all that the terminal got."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1", **variables}
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        text=True,
    ) as process:
        os.close(theirs)
        got = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                piece = b""
            if not piece:
                break
            got += piece
        os.close(ours)
        assert process.stdout is not None
        stdout = process.stdout.read()
    return process.returncode, stdout, got.decode()


def test_bars_are_drawn_on_a_terminal_and_results_stay_clean(kits_folder: Path) -> None:
    """`preprocess` shows its steps on stderr while they run, and its result alone on stdout."""
    code, stdout, terminal = _on_terminal(IMPATIENT, "preprocess", kits_folder, "--workers", "1", "--restart")
    assert code == 0
    assert stdout == "6 cases prepared in kitsattn-workspace/preprocessed/painted\n"
    assert BAR in terminal
    assert "cases" in terminal


def test_no_bars_without_a_terminal(process: Process, kits_folder: Path) -> None:
    """A pipe or a file gets plain lines."""
    run = process("preprocess", kits_folder, "--workers", "1", program=IMPATIENT)
    assert run.returncode == 0
    assert "6 cases prepared" in run.stderr
    assert ESCAPE not in run.stderr
    assert BAR not in run.stderr


def test_quiet_shows_neither_bars_nor_information(kits_folder: Path) -> None:
    """With -q only warnings and errors are told, on a terminal too; the result is still printed."""
    code, stdout, terminal = _on_terminal(IMPATIENT, "-q", "preprocess", kits_folder, "--workers", "1")
    assert (code, terminal) == (0, "")
    assert stdout.startswith("6 cases prepared")


def test_messages_stand_above_the_bar() -> None:
    """A message while a bar is drawn has a line of its own, and the bar is gone in the end."""
    code, _, terminal = _on_terminal(WORK, "0")
    assert code == 0
    shown = [STYLE.sub("", ERASE_LINE.split(line)[-1]).strip("\r") for line in terminal.split("\r\n")]
    assert "in between" in shown
    assert "at the end" in shown
    assert any(BAR in piece and "work" in piece and "1/3" in piece for piece in ERASE_LINE.split(terminal))


def test_work_that_ends_soon_shows_no_bar() -> None:
    """A bar appears by itself once its work has lasted, not before."""
    assert bars._PATIENCE_SECONDS == 2
    assert BAR not in _on_terminal(WORK, "2")[2]
    assert BAR in _on_terminal(WORK, "0.2")[2]


def test_a_training_shows_its_epochs_as_a_table_on_a_terminal(home: Path, settings: Settings) -> None:
    """The rows stay when it ends; the sentences that say the same are in the log alone, messages are above."""
    run = Path("kitsattn-workspace", "runs", "shown")
    shutil.copytree(home / "preprocessed", Path("kitsattn-workspace", "preprocessed"))
    code, stdout, terminal = _on_terminal(TRAINING, "train", *settings(epochs=3, batches=12), "--run-name", "shown")
    assert code == 0, terminal
    assert stdout.startswith("fold 0: mean Dice over 2 held-out cases: kidney_and_tumour ")
    bars = [STYLE.sub("", piece) for piece in ERASE_LINE.split(terminal) if BAR in piece]
    assert any(re.search(r"fold 0 .* \d+/36 +[-\d:]+ left", piece) for piece in bars)
    assert any(re.search(r"predict case_\d+", piece) for piece in bars)
    lines = [line.strip() for line in STYLE.sub("", ERASE_LINE.split(terminal)[-1]).splitlines()]
    title = "painted | fold 0 | attention-deeplab-tiny | recipe recipe | cpu | fp32"
    table = lines[lines.index(title) :]
    assert [line.split()[0] for line in table if line[:1].isdigit()] == ["1", "2", "3"]
    assert "epoch 1 of 3" not in terminal
    assert "held-out Dice" in terminal
    log = (run / "train.log").read_text(encoding="utf-8")
    assert re.findall(r"fold 0: epoch (\d) of 3: loss", log) == ["1", "2", "3"]


def test_a_resumed_training_shows_its_earlier_epochs(command: Command, home: Path, settings: Settings) -> None:
    """Their rows come from the journal."""
    shutil.copytree(home / "preprocessed", Path("kitsattn-workspace", "preprocessed"))
    begun = command("train", *settings(epochs=2, batches=1), "--run-name", "shown")
    assert begun.exit_code == 0, begun.stderr
    code, _, terminal = _on_terminal(TRAINING, "train", *settings(epochs=3, batches=1), "--run-name", "shown")
    assert code == 0, terminal
    lines = [line.strip() for line in STYLE.sub("", ERASE_LINE.split(terminal)[-1]).splitlines()]
    assert [line.split()[0] for line in lines if re.match(r"\d+ +-?\d", line)] == ["1", "2", "3"]


def test_a_training_says_a_sentence_an_epoch_without_a_terminal(
    process: Process, home: Path, settings: Settings
) -> None:
    """A pipe gets no table, and a dumb terminal neither."""
    shutil.copytree(home / "preprocessed", Path("kitsattn-workspace", "preprocessed"))
    run = process("train", *settings(epochs=2, batches=1), "--run-name", "told", program=TRAINING)
    assert run.returncode == 0, run.stderr
    assert re.findall(r"fold 0: epoch (\d) of 2: loss", run.stderr) == ["1", "2"]
    assert ESCAPE not in run.stderr
    _, _, dumb = _on_terminal(TRAINING, "train", *settings(epochs=2, batches=1), "--restart", TERM="dumb")
    assert re.findall(r"fold 0: epoch (\d) of 2: loss", dumb) == ["1", "2"]
    assert "images/s  " not in dumb


def test_a_training_writes_events_for_tensorboard(command: Command, home: Path, settings: Settings) -> None:
    """`--tensorboard` adds a folder to the fold's; without the package nothing begins."""
    shutil.copytree(home / "preprocessed", Path("kitsattn-workspace", "preprocessed"))
    arguments = ["train", *settings(), "--run-name", "tracked", "--tensorboard"]
    with pytest.MonkeyPatch.context() as without:
        without.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
        without.setitem(sys.modules, "tensorboard", None)
        result = command(*arguments)
    wanted = "error: --tensorboard needs the package tensorboard: pip install 'kitsattn[track]'\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", wanted)
    assert not Path("kitsattn-workspace", "runs").exists()
    assert command(*arguments).exit_code == 0
    assert len(list(Path("kitsattn-workspace", "runs", "tracked", "fold_0", "tensorboard").glob("events.*"))) == 1


def test_a_terminal_that_is_closed_does_not_end_a_training() -> None:
    """What would be drawn is drawn nowhere."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", LOST_TERMINAL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == "drawing\n"
        os.close(ours)
        stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (0, "at the end\n")


def test_verbose_says_more(command: Command, kits_folder: Path) -> None:
    """With -v the messages of the log file are on stderr too."""
    assert "command: kitsattn" not in command("preprocess", kits_folder, "--workers", "1").stderr
    assert "command: kitsattn" in command("-v", "preprocess", kits_folder, "--workers", "1").stderr


def test_the_log_says_how_a_command_ended(command: Command, kits_folder: Path) -> None:
    """What a user is told in one line is in the log with all that led to it."""
    Path("plan.json").write_text("[]", encoding="utf-8")
    result = command("preprocess", kits_folder, "--plan", "plan.json", "--workers", "1")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    log = Path("kitsattn-workspace", "preprocessed", "painted", "preprocess.log").read_text(encoding="utf-8")
    assert "the command ended early\nTraceback" in log
    assert "KitsattnError: plan.json" in log


def test_a_log_that_cannot_be_opened_is_a_mistake_to_mend() -> None:
    """A file where its folder should be."""
    Path("file").touch()
    with (
        pytest.raises(KitsattnError, match=r"file/run/train\.log cannot be written"),
        log_file(Path("file", "run", "train.log")),
    ):
        pytest.fail("the work must not begin")


def test_what_the_system_refuses_is_one_line(
    command: Command, kits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the operating system that no room foresaw names its file; -v shows where it came from."""

    def refuse(folder: Path, *, layout: str | None) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("kitsattn.datasets.find.find_dataset", refuse)
    result = command("preprocess", kits_folder)
    line = f"error: {kits_folder}: Permission denied (kitsattn -v shows where this came from)\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)
    verbose = command("-v", "preprocess", kits_folder).stderr
    assert "Traceback" in verbose
    assert verbose.endswith(line)


def test_a_defect_of_the_program_is_not_dressed_up(
    command: Command, kits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no user can fix keeps its traceback."""

    def fail(folder: Path, *, layout: str | None) -> None:
        msg = f"never thought of {folder}"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr("kitsattn.datasets.find.find_dataset", fail)
    with pytest.raises(ZeroDivisionError):
        command("preprocess", kits_folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_a_result_that_does_not_fit_on_the_disk_is_one_line(
    process: Process, kits_folder: Path, more: list[str]
) -> None:
    """`kitsattn … > FILE` on a full disk does not end as if all were well."""
    labels = kits_folder / "case_00000" / "segmentation.nii.gz"
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = process("evaluate", "dice", labels, labels, "--workers", "1", *more, stdout=full)
    assert run.returncode == 1
    assert run.stderr == "error: No space left on device (kitsattn -v shows where this came from)\n"


def test_a_reader_that_has_gone_is_no_error_to_tell(process: Process, checkpoint: Path) -> None:
    """`kitsattn … | head` ends without a word on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    run = process("models", "describe", checkpoint, stdout=writer)
    os.close(writer)
    assert run.returncode == 1
    assert run.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_do_not_stop_the_work(kits_folder: Path, tmp_path: Path, closed: str) -> None:
    """Under some supervisors there is no stdout or stderr: the work is done, and no file gets what is printed."""
    labels = kits_folder / "case_00000" / "segmentation.nii.gz"
    words = [sys.executable, "-m", "kitsattn", "evaluate", "dice", labels, labels, "--html", tmp_path / "page.html"]

    run = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert run.returncode == 0, run.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!")
    if closed == "2>&-":
        assert "1.0000" in run.stdout


def test_streams_that_are_none_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pythonw leaves them."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    open_standard_streams()

    print("unheard")  # noqa: T201 - what is tested
    print("unheard", file=sys.stderr)  # noqa: T201
    sys.stdout.close()
    sys.stderr.close()


def test_paths_are_expanded_wherever_they_are_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell expands `~` and `$NAME` in variables of .env files and units, nor behind a `=`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STUDY", str(tmp_path / "study"))
    for words in (["~/gone"], ["$STUDY/gone"], ["${STUDY}/gone"]):
        assert str(tmp_path / ("home" if "~" in words[0] else "study") / "gone") in command("preprocess", *words).stderr
    assert f"{tmp_path}/home/w/raw holds no data set" in command("preprocess", "--workspace=~/w").stderr
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "$HOME/v")
    assert f"{tmp_path}/home/v/raw holds no data set" in command("preprocess").stderr
    assert f"{tmp_path}/home/m.safetensors" in command("models", "describe", "~/m.safetensors").stderr
    monkeypatch.setenv(MODEL_VARIABLE, "~/m.safetensors")
    assert choose_models((), Workspace(tmp_path)).paths == (tmp_path / "home" / "m.safetensors",)
    assert not list(tmp_path.glob("[~$]*"))


def test_a_terminal_that_has_gone_does_not_stop_the_work(process: Process, kits_folder: Path) -> None:
    """A training goes on after its window was closed: what it says is lost, its log and results are not."""
    reader, writer = os.pipe()
    os.close(reader)
    run = process("preprocess", kits_folder, "--workers", "1", stderr=writer)
    os.close(writer)
    assert run.returncode == 0
    assert run.stdout == "6 cases prepared in kitsattn-workspace/preprocessed/painted\n"
    log = Path("kitsattn-workspace", "preprocessed", "painted", "preprocess.log").read_text(encoding="utf-8")
    assert "6 cases prepared" in log
