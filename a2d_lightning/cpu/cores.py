"""The CPU cores that this process may use, and how torch's threads wait on them.

Own code: ``os.process_cpu_count`` needs Python 3.13, and knows no quota of a container.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")

MEMBERSHIP = Path("/proc/self/cgroup")

SPINS = "3000"
"""A thread of GCC's OpenMP that waits for others looks so many times before it sleeps."""


def usable_cores() -> int:
    """Return the number of cores of this process's affinity, at most its container's quota (rounded up)."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """Yield the quotas, in cores, of this process's control groups and those above them (cgroup v1 and v2)."""
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
    """Yield a control group's microseconds of CPU time in a period, divided by the period, if it has a limit."""
    try:
        quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in files).split()
    except (OSError, ValueError):
        return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)


def let_waiting_threads_sleep() -> bool:
    """Have torch's threads sleep soon after they begin to wait for others. Must be called before torch is imported.

    By default they spin for milliseconds, on a core that another process of this machine may need. Does nothing where
    the user has set OpenMP's own variables.

    Returns:
        whether the environment was changed.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return False
    os.environ["GOMP_SPINCOUNT"] = SPINS
    return True
