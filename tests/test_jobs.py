"""Work over cases."""

import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from kitsattn import jobs, machine
from kitsattn.errors import KitsattnError
from kitsattn.jobs import Workers, deaf_children, run_cases, try_cases
from kitsattn.machine import available_memory, workers_that_fit


def test_results_keep_the_order_and_progress_counts_them() -> None:
    """One worker runs in this process, and every finished case is reported."""
    seen = []
    results = run_cases(lambda value: (2 * value, os.getpid()), [3, 1, 2], progress=lambda *report: seen.append(report))
    assert [value for value, _ in results] == [6, 2, 4]
    assert {process for _, process in results} == {os.getpid()}
    assert seen == [("cases", done, 3) for done in (0, 1, 2, 3)]


def test_several_workers_give_the_same_results_from_other_processes() -> None:
    """The order does not depend on the number of workers."""
    results = run_cases(lambda value: (2 * value, os.getpid()), list(range(6)), workers=Workers(2))
    assert [value for value, _ in results] == [0, 2, 4, 6, 8, 10]
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize("workers", [1, 2])
def test_messages_of_the_work_are_logged_in_this_process(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """What another process warns of is not lost, and a message is logged once, under its own name."""

    def work(case: int) -> int:

        logging.getLogger("kitsattn.somewhere").warning("case %d is odd", case)
        return case

    assert run_cases(work, [1, 3], workers=Workers(workers)) == [1, 3]
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
    assert run_cases(ignores, [0, 1], workers=Workers(2)) == [True, True]
    assert run_cases(ignores, [0], workers=Workers(1)) == [before is signal.SIG_IGN]
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


def killer(fatal: int) -> Callable[[int], int]:
    """Return work that doubles, and that at `fatal` is killed as by a system that has run out of memory."""

    # A function of its own here and below: other processes cannot import this file.
    def work(value: int) -> int:
        if value == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * value

    return work


def refuser() -> Callable[[int], int]:
    """Return work that refuses odd values, and runs out of memory at 4."""

    def work(value: int) -> int:
        if value % 2:
            msg = f"{value} is odd"
            raise KitsattnError(msg)
        if value == 4:
            raise MemoryError
        return value

    return work


def divider() -> Callable[[int], float]:
    """Return work that fails at 0 in a way that nobody foresaw."""

    def divide(value: int) -> float:
        return 1 / value

    return divide


@pytest.mark.parametrize("workers", [1, 2])
def test_a_case_that_fails_is_told_among_the_results_of_the_others(workers: int) -> None:
    """Each case has its own outcome; memory that runs out is one, too."""
    results = try_cases(refuser(), [0, 1, 2, 4, 6], workers=Workers(workers))

    assert [result for result in results if not isinstance(result, KitsattnError)] == [0, 2, 6]
    assert str(results[1]) == "1 is odd"
    assert "memory ran out" in str(results[3])


@pytest.mark.parametrize("workers", [1, 2])
def test_running_cases_stops_at_the_first_that_fails(workers: int) -> None:
    """Where all results are needed the first error is raised."""
    with pytest.raises(KitsattnError, match="1 is odd"):
        run_cases(refuser(), [0, 1, 2], workers=Workers(workers))


def test_no_case_is_at_work_or_begun_once_the_error_of_another_arrives(tmp_path: Path) -> None:
    """The error is not left to the collection of garbage, in whatever thread that were; it comes when all is quiet."""

    def work(value: int) -> None:
        (tmp_path / f"begun{value}").touch()
        if value == 0:
            msg = "no"
            raise KitsattnError(msg)
        time.sleep(0.5)
        (tmp_path / f"ended{value}").touch()

    with pytest.raises(KitsattnError, match=r"^no$"):
        run_cases(work, list(range(9)), workers=Workers(2))

    at_once = sorted(tmp_path.iterdir())
    time.sleep(0.7)
    begun, ended = ({int(path.name[5:]) for path in tmp_path.glob(f"{word}*")} for word in ("begun", "ended"))
    assert sorted(tmp_path.iterdir()) == at_once
    assert begun - {0} == ended
    assert begun <= {0, 1, 2, 3}  # joblib draws as many ahead as there are workers


@pytest.mark.parametrize("fatal", [0, 3, 7])
def test_a_killed_process_is_blamed_on_its_case_and_loses_no_other(
    fatal: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The case that kills its process twice is named with the likely reason; all others have their results."""
    seen: list[tuple[str, int, int]] = []

    results = try_cases(killer(fatal), list(range(8)), workers=Workers(2), progress=lambda *report: seen.append(report))

    error = results.pop(fatal)
    assert isinstance(error, KitsattnError)
    assert str(error).startswith(f"{fatal}: its worker process was killed, most likely because memory ran out")
    assert results == [2 * value for value in range(8) if value != fatal]
    assert seen[-1] == ("cases", 8, 8)
    assert "run one at a time" in caplog.text


def test_a_single_worker_may_be_another_process() -> None:
    """One that is killed is then no end of this one."""
    results = try_cases(killer(1), [0, 1, 2], workers=Workers(apart=True))

    assert (results[0], results[2]) == (0, 4)
    assert str(results[1]).startswith("1: its worker process was killed")


def test_an_innocent_case_is_not_blamed_where_results_are_taken_slowly() -> None:
    """While a progress bar hangs, no further case is begun beside the one that is run alone."""
    results = try_cases(killer(3), list(range(6)), workers=Workers(2), progress=lambda *_: time.sleep(0.2))

    assert [str(result)[:2] for result in results if isinstance(result, KitsattnError)] == ["3:"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_nobody_foresaw_costs_one_case(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """The case is named with the defect, and the log of -v has the traceback; where all are needed it is raised."""
    caplog.set_level(logging.DEBUG, logger="kitsattn")

    first, second = try_cases(divider(), [0, 1], workers=Workers(workers))

    assert str(first).startswith("0: ZeroDivisionError: division by zero (kitsattn -v shows where")
    assert second == 1
    assert "in divide" in caplog.text
    with pytest.raises(Exception, match="division by zero"):
        run_cases(divider(), [0, 1], workers=Workers(workers))


def test_messages_of_threads_are_not_mixed() -> None:
    """A worker of a cluster may run several cases at a time; each sends its own messages and leaves nothing behind."""

    def work(value: int) -> int:
        barrier.wait()
        logging.getLogger("kitsattn.somewhere").warning("value %d", value)
        barrier.wait()
        return value

    barrier = threading.Barrier(3)
    logger = logging.getLogger("kitsattn")
    before = list(logger.handlers), logger.propagate
    try:
        with ThreadPoolExecutor(3) as pool:
            outcomes = list(pool.map(jobs._Sent(work), range(3)))
        assert logger.handlers == before[0]
    finally:
        logger.propagate = before[1]
    assert [(value, [record.getMessage() for record in records]) for value, records in outcomes] == [
        (value, [f"value {value}"]) for value in range(3)
    ]


def test_without_processes_the_cases_are_run_in_this_one(capfd: pytest.CaptureFixture[str]) -> None:
    """Where the system has no semaphores joblib makes none; what the work logs is told once all the same."""
    script = (
        "import logging; from kitsattn.jobs import Workers, try_cases\n"
        "logging.basicConfig(format='%(message)s')\n"
        "def work(number):\n"
        "    logging.getLogger('kitsattn').warning('case %d', number); return number\n"
        "print(try_cases(work, [1, 2, 3], workers=Workers(2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "JOBLIB_MULTIPROCESSING": "0"}, check=True)
    out, err = capfd.readouterr()
    assert done.returncode == 0
    assert out == "[1, 2, 3]\n"
    assert err.count("case 2") == 1


def test_errors_of_a_kind_of_their_own_come_back_from_other_processes() -> None:
    """What they are made of stays there, what they say does not."""

    def work(number: int) -> int:
        class PickyError(KitsattnError):
            def __init__(self, one: str, two: str) -> None:
                super().__init__(one + two)

        msg = "wrong "
        raise PickyError(msg, str(number))

    outcomes = try_cases(work, [1, 2, 3], workers=Workers(2))
    assert [str(outcome) for outcome in outcomes] == ["wrong 1", "wrong 2", "wrong 3"]


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """After SIGKILL of this process its workers begin no further case."""
    script = (
        "import sys, time; from pathlib import Path; from kitsattn.jobs import Workers, run_cases\n"
        "def work(number):\n"
        "    Path(sys.argv[1], str(number)).touch(); time.sleep(0.3)\n"
        "work.__module__ = '__main__'\n"
        "run_cases(work, list(range(40)), workers=Workers(2))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as process:
        while process.poll() is None and len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        process.kill()
    time.sleep(0.5)
    begun = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == begun < 10


def test_workers_are_as_many_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three gigabytes hold three workers of one; there are never more than cores, nor less than one."""
    monkeypatch.setattr(machine, "available_memory", lambda: 3_500_000_000)
    monkeypatch.setattr(machine, "available_cores", lambda: 4)

    assert [workers_that_fit(size) for size in (1, 10**9, 5 * 10**9)] == [4, 3, 1]


def test_memory_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A control group with a limit of 1000 bytes, 400 of them in use, leaves 600; one without a limit leaves all."""
    free = available_memory()
    assert free > 0
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("400\n")
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(tmp_path / "max"),))
    monkeypatch.setattr(machine, "_CGROUP_USES", (str(tmp_path / "current"),))
    assert available_memory() == 600

    (tmp_path / "max").write_text("max\n")
    assert available_memory() > 600


def test_a_cluster_goes_on_when_one_of_its_workers_is_killed(cluster: str, tmp_path: Path) -> None:
    """What a killed Dask worker had begun is done by another one, and every result and message arrives."""

    def work(value: int, killed: Path = tmp_path / "killed") -> int:
        import os
        import signal

        if value == 2 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        logging.getLogger("kitsattn.somewhere").warning("value %d", value)
        return 2 * value

    assert try_cases(work, list(range(6)), workers=Workers(scheduler=cluster)) == [0, 2, 4, 6, 8, 10]
    assert (tmp_path / "killed").exists()


def test_a_case_that_kills_every_worker_of_a_cluster_is_blamed(cluster: str) -> None:
    """After some tries elsewhere the case is given up, with the likely reason; the others have their results."""

    def work(value: int) -> int:
        if value == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    first, second, third = try_cases(work, [0, 1, 2], workers=Workers(scheduler=cluster))

    assert (first, third) == (0, 2)
    assert str(second).startswith("1: its worker process was killed, most likely because memory ran out")


def test_a_cluster_without_the_package_is_told_to_install_it(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that cannot import the work are no traceback."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "strange_work.py").write_text("def work(value):\n    return value\n")
    monkeypatch.syspath_prepend(tmp_path / "mine")
    work = importlib.import_module("strange_work").work

    with pytest.raises(KitsattnError, match=r"No module named 'strange_work'.*: install the same kitsattn there"):
        try_cases(work, [0], workers=Workers(scheduler=cluster))


def test_a_scheduler_that_goes_away_is_told(cluster: str) -> None:
    """A command whose cluster has died ends with a line, and can be run again."""

    def kill_the_scheduler(value: int) -> int:
        parent = psutil.Process().parent()
        while parent is not None and "cluster.py" not in " ".join(parent.cmdline()):
            parent = parent.parent()
        assert parent is not None
        parent.kill()
        time.sleep(60)
        return value

    with pytest.raises(KitsattnError, match=f"the Dask scheduler at {cluster} has gone: start it and run the same"):
        try_cases(kill_the_scheduler, [0], workers=Workers(scheduler=cluster))


@pytest.mark.parametrize("apart", [False, True])
def test_where_no_process_can_be_started_this_one_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, apart: bool
) -> None:
    """Processes need semaphores, which a full /dev/shm has no room for; every case has its outcome all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("joblib.externals.loky.reusable_executor._executor", None)  # an earlier test's processes
    monkeypatch.setattr("joblib.externals.loky.reusable_executor._ReusablePoolExecutor.__init__", refuse)
    results = try_cases(refuser(), [0, 1, 2], workers=Workers(1 if apart else 2, apart=apart))
    assert [str(result) for result in results] == ["0", "1 is odd", "2"]
    (record,) = caplog.records
    assert "cannot be started (No space left on device" in record.getMessage()


@pytest.mark.parametrize("frozen", [False, True], ids=["no worker", "frozen"])
def test_a_cluster_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, frozen: bool
) -> None:
    """Without a worker, or with a scheduler that has stopped: the user is told at once, and later the command ends."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    monkeypatch.setattr(jobs, "_ANSWER_SECONDS", 3)
    monkeypatch.setattr(jobs, "_NO_WORKER_SECONDS", 10)
    address = tmp_path / "address"
    script = (
        "import asyncio, sys; from pathlib import Path; from distributed import Scheduler\n"
        "async def serve():\n"
        "    async with Scheduler(host='127.0.0.1', port=0, dashboard_address=None) as scheduler:\n"
        "        Path(sys.argv[1]).write_text(scheduler.address)\n"
        "        await scheduler.finished()\n"
        "asyncio.run(serve())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(address)], stderr=subprocess.DEVNULL) as process:
        while not address.exists() or not address.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        if frozen:
            threading.Timer(2, process.send_signal, [signal.SIGSTOP]).start()
        problem = "does not answer" if frozen else "has no worker"
        fix = "start it again" if frozen else "start one with `dask worker tcp://"
        with pytest.raises(
            KitsattnError, match=f"the Dask scheduler at tcp://.* {problem} .*{fix}.*run the same command again"
        ):
            try_cases(refuser(), [0], workers=Workers(scheduler=address.read_text()))
        process.kill()
    assert problem in caplog.text


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on port 1, and a word is no address."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    monkeypatch.setattr(jobs, "_ANSWER_SECONDS", 1)

    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(KitsattnError, match=f"no Dask scheduler answers at {address}"):
            try_cases(refuser(), [0], workers=Workers(scheduler=address))


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask is no dependency of those who do not ask for it."""
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(KitsattnError, match=r"needs Dask: pip install 'kitsattn\[cluster\]'"):
        try_cases(refuser(), [0], workers=Workers(scheduler="tcp://127.0.0.1:1"))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's switch")
def test_freed_memory_is_kept_for_the_next_use() -> None:
    """The second array of 100 MB touches no new page; without the switch it faults in all of them again."""
    script = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from kitsattn.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'kept': keep_freed_memory()\n"
        "np.ones(100_000_000, np.uint8)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(100_000_000, np.uint8)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {
        how: int(subprocess.run([sys.executable, "-c", script, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 10 < faults["given back"]
