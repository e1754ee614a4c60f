"""What this machine has: cores and memory for this process, and how the C library keeps memory."""

import ctypes
import os
import sys
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""What glibc's mallopt sets, by the numbers of its malloc.h."""


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


def keep_freed_memory() -> None:
    """Let the C library keep the memory that this process frees, for its own next use.

    glibc maps every large tensor again and unmaps it when it is freed, page by page: on a CPU that is a third of
    a training step, and two fifths of a prediction. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def workers_that_fit(bytes_each: int) -> int:
    """Return how many worker processes this machine has cores and memory for, at least one.

    Args:
        bytes_each: What one of them needs for the largest case.
    """
    return max(1, min(available_cores(), available_memory() // bytes_each))
