"""How many threads PyTorch uses on a CPU whose cores other processes use too.

Threads that share an operation wait for the slowest of them. Where another process has the core of one, it is late in
every operation, and the others spin: beside one busy process on two cores, two threads train at a third to a tenth of
the speed of one. So a core that others take gets no thread.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from kitsattn.jobs import Progress
from kitsattn.machine import available_cores

_LOOK_S = 1.0
_LEFT_ALONE = 0.4
"""What others may use of a core that keeps its thread: desktops use a little of every core."""

_log = logging.getLogger(__name__)


@contextmanager
def threads_beside_others(progress: Progress, most: int, *, watch: bool = True) -> Iterator[Progress]:
    """Let PyTorch use some threads, and fewer while other processes take cores.

    On a machine that nobody else uses, their number stays as it is; and so it does where torchrun has started several
    processes, which would take each other for others.

    Args:
        progress: Of the work; every second, before it is called, what others use is measured.
        most: Threads at most; at the end their number is again what it was before.
        watch: Whether to look at other processes at all.

    Yields:
        The progress to call instead.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(most)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    last = _measure() if watch and most > 1 and together == 1 else None

    def adapt(label: str, done: int, total: int, /) -> None:
        nonlocal last
        if last is not None and time.monotonic() - last.time_s > _LOOK_S:
            now = _measure()
            taken = now.taken_since(last)
            last = now
            threads = threads_left(most, available_cores(), taken)
            if threads != torch.get_num_threads():
                _log.debug("other processes use %.1f cores: %d of %d threads", taken, threads, most)
                torch.set_num_threads(threads)
        progress(label, done, total)

    try:
        yield adapt
    finally:
        torch.set_num_threads(before)


def threads_left(most: int, cores: int, taken: float) -> int:
    """Return how many threads have a core of their own, from 1 to `most`.

    Args:
        most: Threads at most.
        cores: Cores that this process may use.
        taken: How many of them other processes use on average, this one's children among them.
    """
    return max(1, min(most, cores - max(0, math.ceil(taken - _LEFT_ALONE))))


@dataclass(frozen=True)
class _Usage:
    """Times in seconds: of the clock, of the cores that this process may use, of all its own threads together."""

    time_s: float
    cores_s: float
    own_s: float

    def taken_since(self, earlier: "_Usage") -> float:
        """Return how many cores other processes have used on average."""
        used = (self.cores_s - earlier.cores_s) - (self.own_s - earlier.own_s)
        return max(0.0, used / (self.time_s - earlier.time_s))


def _measure() -> _Usage:
    cores = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        ours = os.sched_getaffinity(0)
        if max(ours) < len(cores):  # else some are offline, and the list does not say which
            cores = [cores[number] for number in ours]
    return _Usage(time.monotonic(), math.fsum(map(_busy, cores)), time.process_time())


def _busy(core: Any) -> float:  # noqa: ANN401 - a named tuple whose fields differ between systems
    """Return the seconds that a core was used, by a hypervisor's other machines too.

    Those of processes that give way (nice) count only where this one gives way itself.
    """
    times = core._asdict()
    left_out = {"idle", "iowait", "guest", "guest_nice"}  # a guest's time is in `user` and `nice` already
    if sys.platform != "win32" and os.getpriority(os.PRIO_PROCESS, 0) <= 0:
        left_out.add("nice")
    return math.fsum(seconds for name, seconds in times.items() if name not in left_out)
