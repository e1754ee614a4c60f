"""Work over many cases: joblib runs it, a callback reports it."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Progress(Protocol):
    """Called with a label, the steps done and the steps in all; `cli` draws it, the library only calls it."""

    def __call__(self, label: str, done: int, total: int, /) -> None:
        """Report that `done` of `total` steps of the work named `label` are finished."""


def silent(label: str, done: int, total: int, /) -> None:
    """Report nothing: the default progress callback."""


def run_cases(
    work: Callable[[Item], Result],
    cases: Sequence[Item],
    *,
    workers: int = 1,
    label: str = "cases",
    progress: Progress = silent,
) -> list[Result]:
    """Run `work` over `cases`, in this process or in `workers` local processes.

    What the package logs at work is logged in this process once the case is finished: a process of its own has no log.

    Args:
        work: A function of one case; with more than one worker it must be picklable.
        cases: What to run it on.
        workers: Number of processes; 1 runs in this one.
        label: What the progress is called.
        progress: Called after each finished case.

    Returns:
        The results in the order of `cases`.
    """
    from joblib import Parallel, delayed  # noqa: PLC0415 - brings numpy, which `kitsattn --help` does without

    progress(label, 0, len(cases))
    results: list[Result] = []
    with deaf_children():
        stream: Iterable[tuple[Result, list[logging.LogRecord]]] = Parallel(n_jobs=workers, return_as="generator")(
            delayed(_keep_messages)(work, case) for case in cases
        )
    for result, messages in stream:
        for message in messages:
            logging.getLogger(message.name).handle(message)
        results.append(result)
        progress(label, len(results), len(cases))
    return results


def _keep_messages(work: Callable[[Item], Result], case: Item) -> tuple[Result, list[logging.LogRecord]]:
    """Return the result, and what the package logged meanwhile."""
    logger = logging.getLogger("kitsattn")
    messages: SimpleQueue[logging.LogRecord] = SimpleQueue()
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [QueueHandler(messages)], False
    try:
        result = work(case)
    finally:
        logger.handlers, logger.propagate = before
    return result, [messages.get() for _ in range(messages.qsize())]


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let the processes that are started meanwhile ignore Ctrl-C.

    A terminal sends it to all of them at once. This process alone answers and ends the others; theirs would be
    tracebacks in between. Here a Ctrl-C is lost meanwhile: start processes, and nothing that lasts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
