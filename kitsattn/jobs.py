"""Work over many cases: joblib runs it on this machine, Dask on a cluster, a callback reports it.

A case that fails is one case that failed: the others are worked on. That holds for a process that is killed, too,
which on a cluster or a laptop means that memory ran out.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from kitsattn.errors import KitsattnError

Item = TypeVar("Item")
Result = TypeVar("Result")

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
_ANSWER_SECONDS = 30
"""How long a Dask scheduler may take to answer."""

_log = logging.getLogger(__name__)


def available_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of memory that are free for this process, within the limit of its container if it has one."""
    import psutil  # noqa: PLC0415 - `kitsattn --help` does without

    free = int(psutil.virtual_memory().available)
    for limit, use in zip(_CGROUP_LIMITS, _CGROUP_USES, strict=True):
        try:
            free = min(free, int(Path(limit).read_text("ascii")) - int(Path(use).read_text("ascii")))
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            continue
    return max(free, 0)


def workers_that_fit(bytes_each: int) -> int:
    """Return how many worker processes this machine has cores and memory for, at least one.

    Args:
        bytes_each: What one of them needs for the largest case.
    """
    return max(1, min(available_cores(), available_memory() // bytes_each))


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
    """Run `work` over `cases` and stop at the first that fails.

    Args:
        work: A function of one case; with more than one worker it must be picklable.
        cases: What to run it on.
        workers: Number of processes; 1 runs in this one.
        label: What the progress is called.
        progress: Called after each finished case.

    Returns:
        The results in the order of `cases`.

    Raises:
        KitsattnError: What `work` raised, or that a worker process was killed.
    """
    results = []
    stream = _on_this_machine(_Careful(work), cases, workers)
    for result in _told(stream, len(cases), label, progress):
        if isinstance(result, KitsattnError):
            raise result
        results.append(result)
    return results


def try_cases(
    work: Callable[[Item], Result],
    cases: Sequence[Item],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    label: str = "cases",
    progress: Progress = silent,
) -> list[Result | KitsattnError]:
    """Run `work` over all `cases`, whatever becomes of some of them.

    A process that is killed takes no other case with it: the cases that were under way are run again, one at a time,
    and the one that kills its process again is the one that fails.

    Args:
        work: A function of one case; with more than one worker or a scheduler it must be picklable.
        cases: What to run it on; `str` of a case is its name in messages.
        workers: Number of processes on this machine; 1 runs in this one.
        scheduler: Address of a Dask scheduler, such as `tcp://host:8786`, whose workers run the cases instead.
        label: What the progress is called.
        progress: Called after each finished case.

    Returns:
        For each case, in their order, its result, or the error it failed with.

    Raises:
        KitsattnError: If the scheduler does not answer, or Dask is not installed.
    """
    careful = _Careful(work)
    stream = _on_cluster(careful, cases, scheduler) if scheduler else _on_this_machine(careful, cases, workers)
    return list(_told(stream, len(cases), label, progress))


def _told(stream: Iterable[tuple[Any, list[logging.LogRecord]]], total: int, label: str, progress: Progress) -> Any:  # noqa: ANN401 - results
    """Yield the results in `stream`, log here what the package logged there, and report the progress."""
    progress(label, 0, total)
    for done, (result, messages) in enumerate(stream, start=1):
        for message in messages:
            logging.getLogger(message.name).handle(message)
        yield result
        progress(label, done, total)


class _Careful:
    """The work on a case, with its errors and log messages as values: another process can only send values."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __call__(self, case: Any) -> tuple[Any, list[logging.LogRecord]]:  # noqa: ANN401 - whatever the cases are
        logger = logging.getLogger("kitsattn")
        messages: SimpleQueue[logging.LogRecord] = SimpleQueue()
        before = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [QueueHandler(messages)], False
        result: Any
        try:
            result = self.work(case)
        except KitsattnError as error:
            result = error
        except MemoryError:
            result = _out_of_memory(case)
        finally:
            logger.handlers, logger.propagate = before
        return result, [messages.get() for _ in range(messages.qsize())]


def _on_this_machine(work: _Careful, cases: Sequence[Any], workers: int) -> Iterator[tuple[Any, list[Any]]]:
    """Run cases in this process, or in several; go on with the others where one of these is killed."""
    if workers == 1:
        yield from map(work, cases)
        return
    done, alone_until = 0, 0
    while done < len(cases):
        alone = done < alone_until
        batch = cases[done:alone_until] if alone else cases[done:]
        try:
            for outcome in _in_processes(work, batch, workers, at_once=1 if alone else workers):
                yield outcome
                done += 1
        except BrokenProcessPool:
            if alone:
                yield _out_of_memory(cases[done]), []
                done += 1
            else:
                alone_until = min(done + 2 * workers, len(cases))
                _log.warning(
                    "a worker process was killed, most likely because memory ran out: its cases are run one at a time"
                )


def _in_processes(work: _Careful, cases: Sequence[Any], workers: int, at_once: int) -> Iterable[Any]:
    from joblib import Parallel, delayed  # noqa: PLC0415 - brings numpy, which `kitsattn --help` does without

    parallel = Parallel(n_jobs=workers, return_as="generator", pre_dispatch=at_once, batch_size=1)
    with deaf_children():
        outcomes: Iterable[Any] = parallel(delayed(work)(case) for case in cases)
    return outcomes


def _on_cluster(work: _Careful, cases: Sequence[Any], scheduler: str) -> Iterator[tuple[Any, list[Any]]]:
    """Run cases on the workers of a Dask cluster, which gives what a dead worker left to another one."""
    try:
        from distributed import Client, KilledWorker  # noqa: PLC0415 - an extra
    except ImportError as error:
        msg = f"--scheduler {scheduler} needs Dask: pip install 'kitsattn[cluster]'"
        raise KitsattnError(msg) from error
    try:
        client = Client(scheduler, timeout=_ANSWER_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        msg = (
            f"no Dask scheduler answers at {scheduler} ({error}): start one with `dask scheduler`, or mend the address"
        )
        raise KitsattnError(msg) from error
    with client:
        for case, future in zip(cases, client.map(work, cases, pure=False), strict=True):
            try:
                yield future.result()
            except KilledWorker:
                yield _out_of_memory(case), []
            except RuntimeError as error:
                if not isinstance(error.__cause__, ImportError):
                    raise
                msg = f"the cluster at {scheduler} lacks something ({error.__cause__}): install the same kitsattn there"
                raise KitsattnError(msg) from error


def _out_of_memory(case: object) -> KitsattnError:
    return KitsattnError(
        f"{case}: its worker process was killed, most likely because memory ran out: "
        "close other programs, lower --workers, or use a machine with more memory"
    )


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
