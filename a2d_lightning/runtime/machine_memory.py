"""Refuse sizes that cannot fit this machine's memory, before anything is built."""

import os
from pathlib import Path

from a2d_lightning.runtime.errors import SettingError

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total_memory() -> float:
    """Compute the bytes of memory that this process may use; infinite where nobody says."""
    limits = []
    for path in CGROUP_LIMITS:
        try:
            limits.append(float(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    if hasattr(os, "sysconf"):
        limits.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    return min(limits, default=float("inf"))


def check_fits(num_bytes: float, what: str) -> None:
    """Check that memory for ``num_bytes`` is there at all.

    Args:
        num_bytes: at least needed.
        what: names the settings and their values.

    Raises:
        SettingError: there is not.
    """
    total = total_memory()
    if num_bytes > total:
        raise SettingError(f"{what}: needs {num_bytes / 2**30:,.0f} GiB at least, and there are {total / 2**30:,.0f}.")
