"""The number of CPU cores that this process may use, and how long torch's idle threads occupy them.

Own code: ``os.process_cpu_count`` needs Python 3.13 and ignores the quota of a container.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")

MEMBERSHIP = Path("/proc/self/cgroup")

SPINS = "3000"
"""``GOMP_SPINCOUNT``: how many times a waiting thread of GCC's OpenMP checks for work before it sleeps."""


def usable_cores() -> int:
    """Return the number of cores in this process's CPU affinity, or the container's quota (rounded up) if lower."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """Yield the CPU quotas, in cores, of this process's control groups and their ancestors (cgroup v1 and v2)."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _quota(folder, ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if controllers else ["cpu.max"])


def _quota(folder: Path, files: list[str]) -> Iterator[float]:
    """Yield a control group's CPU quota in cores (CPU time per period / period), if there is a limit."""
    try:
        quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in files).split()
    except (OSError, ValueError):
        return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)


def affinity_offset(num_threads: int, process: int, processes: int) -> int:
    """Return the core of a process's first emulator thread; the process's other threads use the following cores.

    The system often wakes two emulator threads on one core while another core is idle. Threads are bound only if the
    processes on this machine together have one emulator thread for each core. With fewer threads, every run would use
    the same few cores.

    Args:
        num_threads: Emulator threads of each process.
        process: Index of this process on this machine, from 0.
        processes: Number of processes on this machine.

    Returns:
        The index of the core, or -1 to leave the threads to the system's scheduler.
    """
    return process * num_threads if num_threads * processes == usable_cores() == os.cpu_count() else -1


def let_waiting_threads_sleep() -> bool:
    """Set how soon torch's waiting threads sleep; must be called before torch is imported.

    By default, waiting threads spin for milliseconds on cores that other processes may need. Nothing changes if the
    user has set ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``.

    Returns:
        Whether the environment was changed.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return False
    os.environ["GOMP_SPINCOUNT"] = SPINS
    return True
