"""What a command or a call costs on Linux: wall and CPU time, peak memory, and what other processes used meanwhile.

It needs the standard library alone, so that a peer's interpreter can import it too.
"""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_PAUSE_S = 0.02
_PAUSE_PER_SAMPLE = 20
"""Pauses are so many times as long as the sample before: adding up 4 GB of pages takes the kernel 10 ms and more."""


@dataclass(frozen=True)
class Cost:
    """What something cost.

    Attributes:
        wall_s: Seconds from start to end; longer where others wanted the same cores.
        cpu_s: Seconds of all cores: the robust number on a shared machine.
        others: Cores that all other processes used on average, and that a hypervisor took away.
        peak_pss_mib: Greatest sum over the process and its descendants, shared pages counted once; sampled.
        peak_rss_mib: Greatest resident size that one process of them ever had, as the kernel kept it.
    """

    wall_s: float
    cpu_s: float
    others: float
    peak_pss_mib: float | None = None
    peak_rss_mib: float | None = None

    @property
    def peak_mib(self) -> float | None:
        """The peak of all processes together: a sampled one may have missed that of the largest."""
        return max((peak for peak in (self.peak_pss_mib, self.peak_rss_mib) if peak is not None), default=None)


def cost_of_call(work: Callable[[], Result]) -> tuple[Result, Cost]:
    """Call a function in this process and return its result and cost, without memory."""
    busy, cpu, start = _busy_s(), time.process_time(), time.perf_counter()
    result = work()
    wall, cpu, busy = time.perf_counter() - start, time.process_time() - cpu, _busy_s() - busy
    return result, Cost(wall, cpu, max(0.0, busy - cpu) / wall)


def cost_of_command(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end and return what it and its descendants cost.

    The kernel hands the peak of this process on to those it starts, so it must itself stay small.

    Args:
        command: Program and arguments.
        log: Gets its output.
        environment: Variables that are set for it beside those of this process.

    Raises:
        SystemExit: If it fails, with the end of its output.
    """
    busy, own, start = _busy_s(), time.process_time(), time.perf_counter()
    peak = 0.0
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            sampled = time.thread_time()
            peak = max(peak, sum(map(_pss_mib, _tree(process.pid))))
            time.sleep(max(_PAUSE_S, _PAUSE_PER_SAMPLE * (time.thread_time() - sampled)))
    wall, own, busy = time.perf_counter() - start, time.process_time() - own, _busy_s() - busy
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = log.read_text(errors="replace")[-3000:]
        msg = f"{' '.join(command)} failed with {process.returncode}:\n{end}"
        raise SystemExit(msg)
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(wall, cpu, max(0.0, busy - own - cpu) / wall, peak, usage.ru_maxrss / 1024)


def median_cost(costs: Sequence[Cost]) -> Cost:
    """Return the median of each number on its own."""
    pss = [cost.peak_pss_mib for cost in costs if cost.peak_pss_mib is not None]
    rss = [cost.peak_rss_mib for cost in costs if cost.peak_rss_mib is not None]
    return Cost(
        statistics.median(cost.wall_s for cost in costs),
        statistics.median(cost.cpu_s for cost in costs),
        statistics.median(cost.others for cost in costs),
        statistics.median(pss) if pss else None,
        statistics.median(rss) if rss else None,
    )


def summed_cost(costs: Sequence[Cost]) -> Cost:
    """Return the cost of steps that run one after another; the load of others is their mean over time."""
    wall = sum(cost.wall_s for cost in costs)
    return Cost(
        wall,
        sum(cost.cpu_s for cost in costs),
        sum(cost.others * cost.wall_s for cost in costs) / wall,
        max((cost.peak_pss_mib for cost in costs if cost.peak_pss_mib is not None), default=None),
        max((cost.peak_rss_mib for cost in costs if cost.peak_rss_mib is not None), default=None),
    )


def machine() -> dict[str, object]:
    """Return what the figures depend on: processor, cores, and the settings of threads that the environment holds."""
    names = Path("/proc/cpuinfo").read_text().splitlines()
    settings = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "BLIS", "GOTO", "BLOSC")
    return {
        "processor": next((line.split(":")[1].strip() for line in names if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "settings": {key: value for key, value in sorted(os.environ.items()) if key.startswith(settings)},
    }


def blas() -> list[str]:
    """Return the BLAS that is loaded in this process, with its kernel and number of threads."""
    try:
        from threadpoolctl import threadpool_info  # type: ignore[import-untyped]
    except ImportError:
        return ["unknown, threadpoolctl is not installed"]
    return [
        "{internal_api} {version}, kernel {architecture}, {num_threads} threads".format_map(pool)
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


def _busy_s() -> float:
    """Return seconds that all cores together were not idle since the start of the machine."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (
        int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants; those that end meanwhile are left out."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _pss_mib(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0  # it has ended
    return next((int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0.0)
