"""Settings of glibc's malloc that keep freed tensor memory in the process.

By default glibc returns large freed blocks to the system, which zeroes every page of the next allocation. These page
faults took a third of the acting time and a quarter of the learning time of a supernet (docs/experiments.md).

Own code: torch has no setting for this on CPUs, and preloading another allocator is the user's decision.
"""

import ctypes
import os
import platform

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_NEVER = 2**31 - 1
_OLD_GLIBC_LARGEST = 32 * 2**20
_GROWTH_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Make malloc reuse freed blocks of any size; peak memory stays about the same.

    Do nothing without glibc, or if the user has set ``MALLOC_...`` environment variables.

    Returns:
        Whether the settings are in force.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    large = mallopt(_M_MMAP_THRESHOLD, _NEVER) or mallopt(_M_MMAP_THRESHOLD, _OLD_GLIBC_LARGEST)
    return bool(large and mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_TOP_PAD, _GROWTH_BYTES))
