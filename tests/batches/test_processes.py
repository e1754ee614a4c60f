"""Batches that other processes draw."""

import logging
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from kitsattn.batches import processes
from kitsattn.batches.loader import BatchKey, BatchSettings, SlabBatch, SlabBatches
from kitsattn.batches.processes import load_batches
from kitsattn.errors import Interrupted, KitsattnError
from kitsattn.preprocess.store import PreparedDataset, open_dataset

SETTINGS = BatchSettings(
    batch_size=4, patch_size=(32, 40), slices=5, slab_step_mm=None, air=-5.0, seed=3, augment=False
)
CheckProcesses = Callable[[Sequence[Dataset[SlabBatch]]], None]

KEYS = [(0, 0, index) for index in range(12)]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes as Linux starts them")


def _batches(prepared: PreparedDataset, settings: BatchSettings = SETTINGS) -> SlabBatches:
    return SlabBatches([prepared.open_case(case) for case in prepared.cases], settings)


def test_workers_do_not_change_the_sequence(prepared: PreparedDataset, check_processes: CheckProcesses) -> None:
    """Two processes give what this one gives, in the same order, from both streams."""
    check_processes([_batches(prepared, replace(SETTINGS, augment=True)), _batches(prepared)])


def _drawers() -> list[psutil.Process]:
    """Return the processes that draw: children of the server that starts them."""
    return [child for server in psutil.Process().children() for child in server.children()]


@on_linux
def test_a_killed_process_is_noticed_and_started_again_once(
    prepared: PreparedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    """Within seconds, with the batch that is lost, and the sequence goes on; a second time is the end."""
    handler = signal.getsignal(signal.SIGCHLD)
    with closing(load_batches([_batches(prepared)], KEYS, workers=1)) as batches:
        got = [next(batches)]
        assert signal.getsignal(signal.SIGCHLD) is handler
        for process in _drawers():
            process.kill()
        begun = time.monotonic()
        got += [next(batches) for _ in range(4)]
        assert time.monotonic() - begun < 30
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "was killed (SIGKILL) before it sent batch" in record.getMessage()
        wanted = [_batches(prepared)[key] for key in KEYS[:5]]
        assert all(torch.equal(one.images, other.images) for one, other in zip(got, wanted, strict=True))

        for process in _drawers():
            process.kill()
        with pytest.raises(KitsattnError, match=r"was killed .*, for the second time: .* --workers 0"):
            list(batches)


@on_linux
def test_batches_need_no_shared_memory(prepared: PreparedDataset) -> None:
    """Neither a process that draws nor this one maps a file of /dev/shm, and all are gone once it is closed."""

    def shared(process: psutil.Process) -> set[str]:
        maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines()
        return {line for line in maps if "/dev/shm/" in line}  # noqa: S108 - where Linux keeps shared memory

    before = shared(psutil.Process())  # of earlier tests, such as their semaphores
    with closing(load_batches([_batches(prepared)], KEYS, workers=2)) as batches:
        kept = [next(batches) for _ in range(4)]
        drawers = _drawers()
        assert len(drawers) == 2
        assert shared(psutil.Process()) <= before
        assert not any(map(shared, drawers))
        assert not any(batch.images.is_shared() for batch in kept)
    assert not [process for process in drawers if process.is_running()]


@on_linux
def test_a_process_that_says_nothing_holds_nobody_up(
    prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be stopped, or read from a disk that does not answer: who waits may leave, and does so after a bound."""
    monkeypatch.setattr(processes, "_LOOK_S", 0.1)
    looks: list[float] = []

    def look() -> None:
        looks.append(time.monotonic())
        if len(looks) == 3:
            raise Interrupted(signal.SIGTERM)

    def stopped(**options: Any) -> Iterator[SlabBatch]:
        with closing(load_batches([_batches(prepared)], KEYS, workers=1, **options)) as batches:
            yield next(batches)
            for process in _drawers():
                process.send_signal(signal.SIGSTOP)
            looks.clear()
            yield from batches

    with pytest.raises(Interrupted):
        list(stopped(waiting=look))
    assert len(looks) == 3
    assert not _drawers()

    monkeypatch.setattr(processes, "_PATIENCE_S", 1.0)
    with pytest.raises(KitsattnError, match=r"has not come .* --workers 0"):
        list(stopped())
    assert not _drawers()


@pytest.mark.parametrize("refused", ["socket.socketpair", "multiprocessing.process.BaseProcess.start"])
def test_where_no_process_can_be_started_this_one_draws(
    prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """The system may have no room for more processes, files or semaphores; the sequence is the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(refused, refuse)
    got = list(load_batches([_batches(prepared)], KEYS[:2], workers=2))
    wanted = [_batches(prepared)[key] for key in KEYS[:2]]
    assert all(torch.equal(one.images, other.images) for one, other in zip(got, wanted, strict=True))
    assert "cannot be started (No space left on device)" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_cannot_be_drawn_is_told_with_its_number(
    prepared: PreparedDataset, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever went wrong; where it did is in the log."""
    caplog.set_level(logging.DEBUG)
    shutil.copytree(prepared.folder, tmp_path / "copy")
    copy = open_dataset(tmp_path / "copy")
    source = _batches(copy)
    for path in (tmp_path / "copy").rglob("locations.b2nd"):
        path.unlink()
    with pytest.raises(KitsattnError, match=r"locations\.b2nd is missing or damaged"):
        next(load_batches([source], [(0, 0, 0)], workers=workers))

    broken = _batches(prepared, replace(SETTINGS, slices=-3))
    with pytest.raises(
        KitsattnError, match=r"batch 8 of epoch 3 cannot be drawn, ValueError: .*kitsattn -v shows where"
    ):
        next(load_batches([broken], [(0, 2, 7)], workers=workers))
    assert "Traceback" in caplog.text


@st.composite
def slab_batches(draw: st.DrawFn) -> SlabBatch:
    """A batch of any shape and number format."""
    samples, slices, height, width = (draw(st.integers(1, 4)) for _ in range(4))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    images = torch.rand(samples, slices, height, width).to(dtype)
    if draw(st.booleans()):
        images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(3, (samples, height, width), dtype=torch.uint8)
    return SlabBatch(images, labels, tuple(draw(st.lists(st.text(max_size=9), min_size=samples, max_size=samples))))


class Streams(Dataset[SlabBatch]):
    """Gives, or raises, what the test has put there."""

    def __init__(self, outcomes: Sequence[Any]) -> None:
        self.outcomes = outcomes

    def __getitem__(self, key: BatchKey) -> SlabBatch:
        outcome = self.outcomes[key[2]]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome  # type: ignore[no-any-return]


def failures() -> st.SearchStrategy[Any]:
    """What cannot be drawn, and what cannot be sent."""
    raised = st.sampled_from([KitsattnError("it is gone"), ValueError("no"), MemoryError(), OSError(28, "No space")])
    labels = torch.zeros(1, 1, 1, dtype=torch.uint8)
    unsendable = st.sampled_from([None, threading.Lock(), SlabBatch(torch.eye(3).to_sparse(), labels, ("a",))])
    return raised | unsendable | st.just(SlabBatch(torch.zeros(1), labels, (object(),)))  # type: ignore[arg-type]


def _serve_in_thread(outcomes: Sequence[Any]) -> tuple[socket.socket, threading.Thread]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    keys = [(0, 0, index) for index in range(len(outcomes))]
    thread = threading.Thread(target=processes._serve, args=(theirs, [Streams(outcomes)], keys), daemon=True)
    thread.start()
    return ours, thread


@given(st.lists(slab_batches() | failures(), max_size=4))
def test_every_batch_arrives_or_its_error_does(outcomes: list[Any]) -> None:
    """Each key has one answer, in order: the batch to the last bit, or one line that names it; then the end."""
    channel, thread = _serve_in_thread(outcomes)
    with channel:
        for number, outcome in enumerate(outcomes, start=1):
            got = processes._receive(channel, pin_memory=False)
            if isinstance(got, SlabBatch):
                assert torch.equal(got.images, outcome.images)
                assert got.images.dtype == outcome.images.dtype
                assert torch.equal(got.labels, outcome.labels)
                assert got.cases == outcome.cases
            elif isinstance(outcome, KitsattnError):
                assert str(got) == "it is gone"
            else:
                assert str(got).startswith(f"batch {number} of epoch 1 cannot be ")
                assert len(str(got).splitlines()) == 1
        with pytest.raises(EOFError):
            processes._receive(channel, pin_memory=False)
    thread.join(20)
    assert not thread.is_alive()


@given(slab_batches(), st.floats(0, 1, exclude_max=True))
def test_a_batch_that_is_cut_off_is_an_end(batch: SlabBatch, kept: float) -> None:
    """Wherever the process was killed while it sent: no part is taken for a batch, and nobody waits for the rest."""
    channel, thread = _serve_in_thread([batch])
    with channel:
        sent = b"".join(iter(lambda: channel.recv(1 << 16), b""))
    thread.join(20)
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    with ours, theirs:
        theirs.sendall(sent[: int(kept * len(sent))])
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            processes._receive(ours, pin_memory=False)


def test_a_process_ends_when_the_training_has_gone() -> None:
    """Nothing is left that sends to nobody."""
    batch = SlabBatch(torch.zeros(4, 5, 64, 64), torch.zeros(4, 64, 64, dtype=torch.uint8), ("a",) * 4)
    channel, thread = _serve_in_thread([batch] * 100)
    processes._receive(channel, pin_memory=False)
    channel.close()
    thread.join(20)
    assert not thread.is_alive()
