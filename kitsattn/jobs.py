"""Work over many cases: joblib runs it on this machine, Dask on a cluster, a callback reports it.

A case that fails is one case that failed: the others are worked on. That holds for a process that is killed, too,
which on a cluster or a laptop means that memory ran out.
"""

import itertools
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from kitsattn.errors import KitsattnError

Item = TypeVar("Item")
Result = TypeVar("Result")
_Outcomes = Generator[tuple[Any, list[logging.LogRecord]], None, None]
"""What cases gave or failed with, and what was logged meanwhile. Closed early, the cases under way end first."""

_ANSWER_SECONDS = 30
"""How long a Dask scheduler may take to answer."""
_NO_WORKER_SECONDS = 1800
"""How long a Dask cluster may be without a worker: in the queue of a busy cluster, they come one by one."""

_MORE_MEMORY = "close other programs, lower --workers, or use a machine with more memory"

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Called with a label, the steps done and the steps in all; `cli` draws it, the library only calls it."""

    def __call__(self, label: str, done: int, total: int, /) -> None:
        """Report that `done` of `total` steps of the work named `label` are finished."""


@dataclass(frozen=True)
class Workers:
    """Who works on cases.

    Attributes:
        processes: Processes on this machine at most, one a case; 1 is this one.
        apart: Whether a single process is another than this one, which survives it then.
        scheduler: Address of a Dask scheduler, such as `tcp://host:8786`, whose workers run the cases instead.
    """

    processes: int = 1
    apart: bool = False
    scheduler: str | None = None


HERE = Workers()
"""This process."""


def silent(label: str, done: int, total: int, /) -> None:
    """Report nothing: the default progress callback."""


def run_cases(
    work: Callable[[Item], Result],
    cases: Sequence[Item],
    *,
    workers: Workers = HERE,
    label: str = "cases",
    progress: Progress = silent,
) -> list[Result]:
    """Run `work` over `cases` and begin no other after the first that fails.

    Args:
        work: A function of one case; for other processes than this one it must be picklable.
        cases: What to run it on.
        workers: Who does it.
        label: What the progress is called.
        progress: Called after each finished case.

    Returns:
        The results in the order of `cases`.

    Raises:
        KitsattnError: What `work` raised, that a worker process was killed, or that the scheduler does not answer.
    """
    results = []
    with closing(_run(work, cases, workers)) as stream:
        for result in _told(stream, len(cases), label, progress):
            if isinstance(result, Exception):
                raise result
            results.append(result)
    return results


def try_cases(
    work: Callable[[Item], Result],
    cases: Sequence[Item],
    *,
    workers: Workers = HERE,
    label: str = "cases",
    progress: Progress = silent,
) -> list[Result | KitsattnError]:
    """Run `work` over all `cases`, whatever becomes of some of them.

    A process that is killed takes no other case with it: the cases that were under way are run again, one at a time,
    and the one that kills its process again is the one that fails.

    Args:
        work: A function of one case; for other processes than this one it must be picklable.
        cases: What to run it on; `str` of a case is its name in messages.
        workers: Who does it.
        label: What the progress is called.
        progress: Called after each finished case.

    Returns:
        For each case, in their order, its result, or the error it failed with.

    Raises:
        KitsattnError: If the scheduler does not answer or goes away, or Dask is not installed there or here.
    """
    results: list[Result | KitsattnError] = []
    with closing(_run(work, cases, workers)) as stream:
        for case, result in zip(cases, _told(stream, len(cases), label, progress), strict=True):
            if isinstance(result, Exception) and not isinstance(result, KitsattnError):
                results.append(unforeseen(case, result))
            else:
                results.append(result)
    return results


def unforeseen(case: object, error: Exception) -> KitsattnError:
    """Return the message for an unforeseen error: whatever is wrong with one file, or with the program, costs one case.

    Args:
        case: `str` of it is its name.
        error: What the work on it raised; its traceback is logged for `kitsattn -v`.
    """
    if isinstance(error, MemoryError):
        return KitsattnError(f"{case}: memory ran out: {_MORE_MEMORY}")
    _log.debug("%s", case, exc_info=error)
    return KitsattnError(f"{case}: {_summary(error)} (kitsattn -v shows where; if the file is sound, report it)")


def _told(stream: _Outcomes, total: int, label: str, progress: Progress) -> Iterator[Any]:
    """Yield the results in `stream`, log here what the package logged there, and report the progress."""
    progress(label, 0, total)
    for done, (result, messages) in enumerate(stream, start=1):
        for message in messages:
            logging.getLogger(message.name).handle(message)
        yield result
        progress(label, done, total)


def _attempt(work: Callable[[Any], Any], case: Any) -> Any:  # noqa: ANN401 - whatever the cases are
    """Return the result of a case, or what went wrong: what a case raises is one of its outcomes."""
    try:
        return work(case)
    except MemoryError as error:
        return unforeseen(case, error)
    except Exception as error:  # noqa: BLE001 - any: the caller decides what it means for the other cases
        return error


class _RemoteError(Exception):
    """Something unforeseen in another process; its traceback is a note, for not all exceptions can be sent."""


def _summary(error: Exception) -> str:
    text = str(error) if isinstance(error, _RemoteError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0]


class _Sent:
    """The work on a case in another process, which sends back the outcome and what the package logged meanwhile."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __call__(self, case: Any) -> tuple[Any, list[logging.LogRecord]]:  # noqa: ANN401 - see above
        logger = logging.getLogger("kitsattn")
        logger.propagate = False
        messages: SimpleQueue[logging.LogRecord] = SimpleQueue()
        handler = QueueHandler(messages)
        thread = threading.get_ident()
        # A worker of a cluster may have several threads, each with a case of its own.
        handler.addFilter(lambda record: record.thread == thread)
        logger.addHandler(handler)
        try:
            outcome = _attempt(self.work, case)
        finally:
            logger.removeHandler(handler)
        if isinstance(outcome, KitsattnError):
            outcome = KitsattnError(str(outcome))  # a kind of its own may need more arguments than a message
        elif isinstance(outcome, Exception):
            remote = _RemoteError(_summary(outcome))
            remote.add_note("".join(traceback.format_exception(outcome)))
            outcome = remote
        return outcome, [messages.get() for _ in range(messages.qsize())]


class _Child(_Sent):
    """The same in a child of this process, which ends with it: the next run must not find it still at work."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        super().__init__(work)
        self.parent = os.getpid()

    def __call__(self, case: Any) -> tuple[Any, list[logging.LogRecord]]:  # noqa: ANN401 - see above
        if os.getpid() == self.parent:  # joblib has no processes where the system has no semaphores
            return _attempt(self.work, case), []
        if os.getppid() != self.parent:
            os._exit(1)
        return super().__call__(case)


def _run(work: Callable[[Any], Any], cases: Sequence[Any], workers: Workers) -> _Outcomes:
    if workers.scheduler is None:
        return _on_this_machine(work, cases, workers)
    return _on_cluster(work, cases, workers.scheduler)


def _on_this_machine(work: Callable[[Any], Any], cases: Sequence[Any], workers: Workers) -> _Outcomes:
    """Run cases in this process, or in several; go on with the others where one of these is killed."""
    processes = max(1, min(workers.processes, len(cases)))
    if processes == 1 and not workers.apart:
        yield from ((_attempt(work, case), []) for case in cases)
        return
    from joblib.externals.loky.process_executor import TerminatedWorkerError  # noqa: PLC0415 - brings numpy, see below

    child = _Child(work)
    done, alone_until, warned = 0, 0, False
    while done < len(cases):
        alone = processes == 1 or done < alone_until
        batch = cases[done : done + 1] if alone else cases[done:]
        try:
            with closing(_in_processes(child, batch, processes)) as outcomes:
                for outcome in outcomes:
                    yield outcome
                    done += 1
        except OSError as error:  # of the processes themselves: what a case raises is its outcome
            _log.warning(
                "worker processes cannot be started (%s; they need a few kB of /dev/shm): the cases are run in this "
                "process, as with --workers 1",
                error.strerror or error,
            )
            yield from ((_attempt(work, case), []) for case in cases[done:])
            return
        except TerminatedWorkerError:
            if alone:
                yield _killed(cases[done]), []
                done += 1
            else:
                alone_until = min(done + 2 * processes, len(cases))
                _log.log(
                    logging.DEBUG if warned else logging.WARNING,
                    "a worker process was killed, most likely because memory ran out: its cases are run one at a time",
                )
                warned = True


def _in_processes(work: _Child, cases: Sequence[Any], processes: int) -> _Outcomes:
    from joblib import Parallel, delayed  # noqa: PLC0415 - brings numpy, which `kitsattn --help` does without
    from joblib.externals.loky.process_executor import TerminatedWorkerError  # noqa: PLC0415 - the same

    # One process would be this one; of two, the other has nothing to do.
    parallel = Parallel(n_jobs=max(processes, 2), return_as="generator", pre_dispatch=processes, batch_size=1)
    wanted = True
    with deaf_children():
        outcomes = parallel(delayed(work)(case) for case in itertools.takewhile(lambda _: wanted, cases))
    try:
        for outcome in outcomes:  # noqa: UP028 - `yield from` would close them, and joblib cut short what is under way
            yield outcome
    finally:
        wanted = False
        with suppress(TerminatedWorkerError):
            for _ in outcomes:
                pass


def _on_cluster(work: Callable[[Any], Any], cases: Sequence[Any], scheduler: str) -> _Outcomes:
    """Run cases on the workers of a Dask cluster, which gives what a dead worker left to another one."""
    try:
        from distributed import CancelledError, Client, KilledWorker  # noqa: PLC0415 - an extra
    except ImportError as error:
        msg = f"--scheduler {scheduler} needs Dask: pip install 'kitsattn[cluster]'"
        raise KitsattnError(msg) from error
    try:
        client = Client(scheduler, timeout=_ANSWER_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        msg = f"no Dask scheduler answers at {scheduler} ({error}): start one with `dask scheduler`, or fix the address"
        raise KitsattnError(msg) from error
    try:
        for case, future in zip(cases, client.map(_Sent(work), cases, pure=False), strict=True):
            try:
                yield _await_cluster(client, future, scheduler)
            except KilledWorker:
                yield _killed(case), []
            except CancelledError as error:
                msg = (
                    f"the Dask scheduler at {scheduler} has gone: start it and run the same command again; it "
                    "continues where it stopped"
                )
                raise KitsattnError(msg) from error
            except RuntimeError as error:
                if not isinstance(error.__cause__, ImportError):
                    raise
                msg = f"the cluster at {scheduler} lacks something ({error.__cause__}): install the same kitsattn there"
                raise KitsattnError(msg) from error
    finally:
        with suppress(TimeoutError):  # of a scheduler that no longer answers
            client.close(timeout=_ANSWER_SECONDS)  # type: ignore[no-untyped-call]


def _await_cluster(client: Any, future: Any, scheduler: str) -> Any:  # noqa: ANN401 - Dask's, and whatever cases give
    """Return the result of a case; wait while the cluster has workers, and for a while if it has none or is silent."""
    seen, warned = time.monotonic(), ""
    while True:
        try:
            return future.result(timeout=_ANSWER_SECONDS)
        except TimeoutError as error:
            workers = _count_workers(client)
            if workers:
                seen, warned = time.monotonic(), ""
                continue
            missing_s = time.monotonic() - seen
            problem = "does not answer" if workers is None else "has no worker"
            fix = "start it again" if workers is None else f"start one with `dask worker {scheduler}`"
            if missing_s > _NO_WORKER_SECONDS:
                msg = (
                    f"the Dask scheduler at {scheduler} {problem} ({missing_s / 60:.0f} minutes): {fix} and run the "
                    "same command again; it continues where it stopped"
                )
                raise KitsattnError(msg) from error
            if warned != problem:
                warned = problem
                _log.warning("the Dask scheduler at %s %s: %s", scheduler, problem, fix)


def _count_workers(client: Any) -> int | None:  # noqa: ANN401 - Dask's
    """Return how many workers a cluster has; None if its scheduler does not say in time."""
    try:
        identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=_ANSWER_SECONDS)
    except (TimeoutError, OSError):
        return None
    return len(identity["workers"])


def _killed(case: object) -> KitsattnError:
    return KitsattnError(f"{case}: its worker process was killed, most likely because memory ran out: {_MORE_MEMORY}")


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
