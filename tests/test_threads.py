"""Threads on a CPU that others use too."""

import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kitsattn import threads
from kitsattn.jobs import silent
from kitsattn.threads import threads_beside_others, threads_left


@pytest.mark.parametrize(
    ("most", "cores", "taken", "left"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.3, 2),  # a desktop
        (2, 2, 0.67, 1),  # one busy process that shares two cores with two threads
        (2, 2, 1.0, 1),
        (2, 2, 2.0, 1),
        (16, 16, 0.94, 15),
        (13, 16, 3.8, 12),
        (4, 16, 8.0, 4),  # there is room for all
        (4, 3, 0.0, 3),
    ],
)
def test_a_core_that_others_take_gets_no_thread(most: int, cores: int, taken: float, left: int) -> None:
    """Worked out by hand for machines that others use."""
    assert threads_left(most, cores, taken) == left


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 64))
def test_the_number_of_threads_settles(most: int, cores: int, others: int) -> None:
    """Where each core is shared equally, the number comes to rest, with a core for each thread if there is one."""
    most, count = min(most, cores), min(most, cores)
    for _ in range(70):
        taken = min(float(others), cores * others / (others + count))
        count = threads_left(most, cores, taken)
    assert count == threads_left(most, cores, min(float(others), cores * others / (others + count)))
    assert count == max(1, min(most, cores - others)) or others + count > cores


@pytest.mark.parametrize(("used", "own", "left"), [(4.0, 4.0, 4), (3.0, 2.0, 3), (4.0, 1.5, 1), (1.2, 0.0, 3)])
def test_threads_are_given_up_while_others_are_busy(
    monkeypatch: pytest.MonkeyPatch, used: float, own: float, left: int
) -> None:
    """Of four cores, by what is used beyond this process's own; every call is passed on, and the end is as before."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    monkeypatch.setattr(threads, "_measure", lambda: threads._Usage(clock[0], used * clock[0], own * clock[0]))
    calls = []
    before = torch.get_num_threads()
    with threads_beside_others(lambda *call: calls.append(call), 4) as progress:
        for step in range(4):
            assert torch.get_num_threads() == (left if step > 1 else 4)
            clock[0] += 0.9
            progress("fold 0", step, 4)
    assert torch.get_num_threads() == before
    assert calls == [("fold 0", step, 4) for step in range(4)]


@pytest.mark.parametrize("alone", ["torchrun", "one thread"])
def test_nobody_is_measured_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch, alone: str) -> None:
    """One thread cannot be given up, and processes of torchrun share the cores already."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2" if alone == "torchrun" else "1")
    monkeypatch.setattr(threads, "_LOOK_S", -1.0)
    monkeypatch.delattr(threads, "_measure")
    with threads_beside_others(silent, 1 if alone == "one thread" else 2) as progress:
        progress("fold 0", 1, 2)


def test_a_busy_process_is_told_from_this_one() -> None:
    """What the threads of this process use is its own; what another process uses is not."""
    begin = threads._measure()
    spun = time.process_time() + 0.3
    while time.process_time() < spun:
        pass
    assert threads._measure().own_s - begin.own_s >= 0.25

    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.5)
        begin = threads._measure()
        time.sleep(1.5)
        assert threads._measure().taken_since(begin) > 0.3
        process.kill()
