"""Checks that refuse sizes beyond this machine's memory before anything is built."""

import os
from pathlib import Path

from a2d_lightning.runtime.errors import SettingError

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total_memory() -> float:
    """Return the memory in bytes that this process may use (physical memory, cgroup limit); infinity if unknown."""
    limits = []
    for path in CGROUP_LIMITS:
        try:
            limits.append(float(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    if hasattr(os, "sysconf"):
        limits.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    return min(limits, default=float("inf"))


def check_fits(num_bytes: float, what: str) -> None:
    """Raise if a size exceeds :func:`total_memory`.

    Args:
        num_bytes: Lower bound of the memory needed, in bytes.
        what: The settings and their values, for the message.

    Raises:
        SettingError: If ``num_bytes`` exceeds the memory.
    """
    total = total_memory()
    if num_bytes > total:
        raise SettingError(
            f"{what}: needs at least {num_bytes / 2**30:,.0f} GiB of memory, but only {total / 2**30:,.0f} GiB are "
            "available; choose smaller values."
        )
