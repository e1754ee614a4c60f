"""TensorBoard events of a training, read back with TensorBoard's own reader."""

import logging
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kitsattn.errors import KitsattnError
from kitsattn.models.attention_deeplab import AttentionDeeplabConfig
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.fold import ignore, train_fold
from kitsattn.train.folds import make_splits
from kitsattn.train.job import FoldJob
from kitsattn.train.journal import read_journal
from kitsattn.train.names import JOURNAL, LAST, TENSORBOARD
from kitsattn.train.recipe import Recipe
from kitsattn.train.tensorboard import EventWriter

CONFIG = AttentionDeeplabConfig(
    slices=3,
    normalizer_channels=(4, 8),
    encoder_block="basic",
    encoder_depths=(1, 1, 1, 1),
    encoder_width=8,
    aspp_channels=16,
    aspp_rates=(2,),
    key_channels=4,
    low_level_channels=8,
    decoder_channels=16,
)


@pytest.fixture
def job(prepared: PreparedDataset, tmp_path: Path) -> FoldJob:
    """Four epochs of one batch."""
    return FoldJob(
        dataset=prepared,
        split=make_splits(prepared.cases)[0],
        fold=0,
        folds=5,
        model="attention-deeplab-tiny",
        config=CONFIG,
        recipe_name="test",
        recipe=Recipe(epochs=4, batches_per_epoch=1, validation_batches=1, batch_size=2, patch_size=(64, 64)),
        seed=1,
        device=torch.device("cpu"),
        precision="fp32",
        workers=0,
        folder=tmp_path / "fold_0",
    )


class StopError(Exception):
    """A training is cut off."""


def _train(job: FoldJob, events: EventWriter | None, *, epochs: int = 4) -> None:
    """Train, and be cut off in the epoch after the last one that is wanted."""

    def stop(label: str, done: int, total: int, /) -> None:
        if done > epochs:
            raise StopError

    with suppress(StopError):
        train_fold(job, progress=stop, epoch_end=ignore if events is None else events.write)


def _scalars(job: FoldJob) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(job.folder / TENSORBOARD))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_events_hold_the_journal(job: FoldJob) -> None:
    """One scalar for each number, one step an epoch."""
    with EventWriter() as events:
        _train(job, events)
    records = read_journal(job.folder / JOURNAL)
    assert [one.epoch for one in records] == [1, 2, 3, 4]
    expected = {
        "loss/training": [one.training_loss for one in records],
        "loss/validation": [one.validation_loss for one in records],
        "dice/kidney_and_tumour": [one.validation_dice["kidney_and_tumour"] for one in records],
        "dice/tumour": [one.validation_dice["tumour"] for one in records],
        "dice/moving_average": [one.moving_dice for one in records],
        "learning_rate": [one.learning_rate for one in records],
        "images_per_second": [one.images_per_second for one in records],
        "waiting_share": [one.waiting_share for one in records],
        "peak_memory_gb": [one.peak_memory_bytes / 1e9 for one in records],
        "skipped": [0, 0, 0, 0],
    }
    scalars = _scalars(job)
    assert scalars.keys() == expected.keys()
    for name, values in expected.items():
        assert [step for step, _ in scalars[name]] == [1, 2, 3, 4]
        assert [value for _, value in scalars[name]] == pytest.approx(values, rel=1e-6)


def test_epochs_that_are_repeated_are_there_once(job: FoldJob) -> None:
    """A resumed training replaces the events of epochs that it trains again."""
    with EventWriter() as events:
        _train(job, events, epochs=2)
    shutil.copy(job.folder / LAST, job.folder / "kept")
    with EventWriter() as events:
        _train(job, events)
    shutil.copy(job.folder / "kept", job.folder / LAST)
    with EventWriter() as events:
        _train(job, events)
    assert [step for step, _ in _scalars(job)["loss/training"]] == [1, 2, 3, 4]


def test_a_training_that_was_begun_without_events_has_all_of_them(job: FoldJob) -> None:
    """Its earlier epochs come from the journal."""
    _train(job, None, epochs=2)
    assert not (job.folder / TENSORBOARD).exists()
    with EventWriter() as events:
        _train(job, events)
    assert [step for step, _ in _scalars(job)["dice/tumour"]] == [1, 2, 3, 4]


def test_events_that_cannot_be_written_do_not_end_a_training(job: FoldJob, caplog: pytest.LogCaptureFixture) -> None:
    """One warning says so, and the training goes on."""
    job.folder.mkdir(parents=True)
    (job.folder / TENSORBOARD).touch()
    with EventWriter() as events, caplog.at_level(logging.WARNING, logger="kitsattn"):
        _train(job, events)
    assert [one.epoch for one in read_journal(job.folder / JOURNAL)] == [1, 2, 3, 4]
    (record,) = caplog.records
    assert record.getMessage().startswith("fold 0 continues without TensorBoard events: ")


def test_without_the_package_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    wanted = r"^--tensorboard needs the package tensorboard: pip install 'kitsattn\[track\]'$"
    with pytest.raises(KitsattnError, match=wanted):
        EventWriter()
