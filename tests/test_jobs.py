"""Work over cases."""

import os
import signal
import threading

import pytest

from kitsattn.jobs import deaf_children, run_cases


def test_results_keep_the_order_and_progress_counts_them() -> None:
    """One worker runs in this process, and every finished case is reported."""
    seen = []
    results = run_cases(lambda value: (2 * value, os.getpid()), [3, 1, 2], progress=lambda *report: seen.append(report))
    assert [value for value, _ in results] == [6, 2, 4]
    assert {process for _, process in results} == {os.getpid()}
    assert seen == [("cases", done, 3) for done in (0, 1, 2, 3)]


def test_several_workers_give_the_same_results_from_other_processes() -> None:
    """The order does not depend on the number of workers."""
    results = run_cases(lambda value: (2 * value, os.getpid()), list(range(6)), workers=2)
    assert [value for value, _ in results] == [0, 2, 4, 6, 8, 10]
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize("workers", [1, 2])
def test_messages_of_the_work_are_logged_in_this_process(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """What another process warns of is not lost, and a message is logged once, under its own name."""

    def work(case: int) -> int:
        import logging

        logging.getLogger("kitsattn.somewhere").warning("case %d is odd", case)
        return case

    assert run_cases(work, [1, 3], workers=workers) == [1, 3]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("kitsattn.somewhere", "case 1 is odd"),
        ("kitsattn.somewhere", "case 3 is odd"),
    ]


def test_workers_do_not_answer_to_ctrl_c() -> None:
    """A terminal sends it to every process; only this one answers, and as before."""

    def ignores(_: int) -> bool:
        import signal

        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    before = signal.getsignal(signal.SIGINT)
    assert run_cases(ignores, [0, 1], workers=2) == [True, True]
    assert run_cases(ignores, [0], workers=1) == [before is signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) is before


def test_processes_can_be_started_from_any_thread() -> None:
    """Only the main thread may set what Ctrl-C does; elsewhere it is left alone."""
    seen = []

    def start() -> None:
        with deaf_children():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
