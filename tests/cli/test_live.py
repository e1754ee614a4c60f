"""The table of a training's last epochs and the time left, as they are drawn."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from kitsattn.cli import bars
from kitsattn.cli.bars import Pace
from kitsattn.cli.live import TrainingDisplay, epoch_table
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS
from kitsattn.models import model_entry
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.folds import make_splits
from kitsattn.train.job import FoldJob
from kitsattn.train.journal import EpochRecord, append_record
from kitsattn.train.recipe import Recipe

RECORD = EpochRecord(
    epoch=7,
    training_loss=-0.8642,
    validation_loss=-0.7531,
    validation_dice={"kidney_and_tumour": 0.9125, "tumour": 0.4321},
    moving_dice=0.6,
    learning_rate=2.5e-4,
    images_per_second=412.3,
    waiting_share=0.034,
    seconds=48.2,
    skipped=0,
    peak_memory_bytes=10**9,
)
MANY = {"background": 0, **{f"structure_{number}": number for number in range(1, 30)}}


@pytest.fixture
def job(prepared: PreparedDataset, tmp_path: Path) -> FoldJob:
    """Two hundred batches that nobody trains."""
    return FoldJob(
        dataset=prepared,
        split=make_splits(prepared.cases)[0],
        fold=0,
        folds=5,
        model="attention-deeplab-r50",
        config=model_entry("attention-deeplab-r50").config,
        recipe_name="paper",
        recipe=Recipe(epochs=20, batches_per_epoch=10),
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
        workers=0,
        folder=tmp_path,
    )


def _console(width: int, height: int = 24) -> Console:
    return Console(width=width, height=height, file=io.StringIO(), force_terminal=True, record=True)


def _lines(job: FoldJob, records: list[EpochRecord], width: int) -> list[str]:
    console = _console(width)
    console.print(epoch_table(job, records, width=width))
    return console.export_text().splitlines()


def _epochs(display: TrainingDisplay, console: Console) -> list[int]:
    console.export_text()
    console.print(*display.get_renderables())
    first = [line.split()[:1] for line in console.export_text().splitlines()]
    return [int(words[0]) for words in first if words and words[0].isdecimal()]


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_holds_the_numbers_of_its_epoch(job: FoldJob, width: int) -> None:
    """All of them, on terminals of 80 and of 120 characters."""
    lines = _lines(job, [RECORD], width)
    row = ["7", "-0.864", "-0.753", "0.912", "0.432", "2.50e-04", "412", "3%", "48"]
    assert lines[-1].split() == row
    assert lines[-1].rstrip() == lines[-1]
    assert " ".join(lines).count("SYNTHETIC phantoms") == 1


def test_skipped_batches_have_a_column_where_there_are_any(job: FoldJob) -> None:
    """Otherwise they take no room."""
    assert "skipped" not in "".join(_lines(job, [RECORD], 120))
    lines = _lines(job, [RECORD, replace(RECORD, epoch=8, skipped=3)], 120)
    assert "skipped" in "".join(lines)
    assert [line.split()[-2] for line in lines[-2:]] == ["0", "3"]


@pytest.mark.parametrize("labels", [KITS19_LABELS, KITS23_LABELS, MANY], ids=["kits19", "kits23", "many"])
@pytest.mark.parametrize("width", [10, 40, 80, 120])
def test_no_number_is_cut(job: FoldJob, labels: Mapping[str, int], width: int) -> None:
    """A terminal that is too narrow shows fewer columns, the losses last of all."""
    job = replace(job, dataset=replace(job.dataset, labels=labels))
    dice = {region.key: 0.5 for region in job.protocol.regions}
    lines = _lines(job, [replace(RECORD, validation_dice=dice, skipped=2)], width)
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    assert lines[-1].split()[:3] == ["7", "-0.864", "-0.753"][: 1 if width == 10 else 3]


def test_the_last_epochs_are_shown_that_fit(job: FoldJob) -> None:
    """Ten on a usual terminal, fewer on a low one; earlier ones come from the journal, each once."""
    for epoch in range(1, 16):
        append_record(job.folder / "journal.jsonl", replace(RECORD, epoch=epoch))
    console = _console(100)
    display = TrainingDisplay([job], console)
    display.draw("fold 0", 151, 200)
    assert _epochs(display, console) == list(range(6, 16))
    append_record(job.folder / "journal.jsonl", replace(RECORD, epoch=16))
    display.end_epoch(job, replace(RECORD, epoch=16))
    assert _epochs(display, console) == list(range(7, 17))
    console.height = 13
    assert _epochs(display, console) == [14, 15, 16]


def test_a_training_of_which_only_the_validation_is_left_shows_its_epoch_once(job: FoldJob) -> None:
    """It ends an epoch before any batch, and the journal has the epoch already."""
    append_record(job.folder / "journal.jsonl", RECORD)
    console = _console(100)
    display = TrainingDisplay([job], console)
    display.end_epoch(job, RECORD)
    assert _epochs(display, console) == [7]


def test_a_journal_that_cannot_be_read_costs_its_rows_only(job: FoldJob) -> None:
    """The training goes on, and so does the table."""
    (job.folder / "journal.jsonl").write_text("nonsense\n", encoding="utf-8")
    console = _console(100)
    display = TrainingDisplay([job], console)
    display.draw("fold 0", 71, 200)
    display.end_epoch(job, replace(RECORD, epoch=8))
    assert _epochs(display, console) == [8]


def test_the_table_of_a_fold_stays_when_the_next_begins(job: FoldJob) -> None:
    """Each fold has a table of its own."""
    console = _console(100)
    other = replace(job, fold=1, folder=job.folder / "other")
    with TrainingDisplay([job, other], console) as display:
        display.end_epoch(job, RECORD)
        display.draw("predict case_00000", 1, 2)
        display.draw("fold 1", 1, 200)
        before = console.export_text()
        assert "fold 0 | attention-deeplab-r50" in before
        assert "\n    7 " in before
        assert _epochs(display, console) == []
    assert "fold 1 | attention-deeplab-r50" in console.export_text()


def test_a_bar_says_the_time_left_of_all_epochs(job: FoldJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the batches of this process, not by those that were done before."""
    monkeypatch.setattr(bars, "_PATIENCE_SECONDS", 0.0)
    now = 0.0
    console = _console(100)
    display = TrainingDisplay([job], console, clock=lambda: now)
    display.draw("fold 0", 101, 200)
    console.print(*display.get_renderables())
    assert "-:--:-- left" in console.export_text()
    for done in range(102, 111):
        now += 60.0
        display.draw("fold 0", done, 200)
    console.print(*display.get_renderables())
    assert "110/200 1:30:00 left" in console.export_text()


def test_the_time_left_follows_the_recent_pace() -> None:
    """Steps of long ago do not count, and between two steps the time runs."""
    now = 0.0
    pace = Pace(4, lambda: now)
    pace.note(10)
    assert pace.seconds_left(20) is None
    for done, seconds in ((11, 100), (12, 100), (13, 2), (14, 2), (15, 2), (16, 6)):
        now += seconds
        pace.note(done)
    assert pace.seconds_left(20) == 4 * 3
    now += 5
    assert pace.seconds_left(20) == 4 * 3 - 5
    now += 100
    assert pace.seconds_left(20) == 0
