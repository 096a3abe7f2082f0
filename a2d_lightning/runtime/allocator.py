"""Keeps the memory that tensors gave back: glibc returns large blocks to the system, which must clear each page again.

Own code, since torch has no setting for it on CPU and a preloaded allocator is not ours to install. A third of the time
of acting with a supernet and a quarter of the time of learning went into those pages (docs/notes.md).
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
    """Makes malloc of this process reuse freed blocks of any size; its peak of memory stays what it was.

    Does nothing without glibc, or where the user has set ``MALLOC_...`` variables.

    Returns:
        whether it is in force.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    large = mallopt(_M_MMAP_THRESHOLD, _NEVER) or mallopt(_M_MMAP_THRESHOLD, _OLD_GLIBC_LARGEST)
    return bool(large and mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_TOP_PAD, _GROWTH_BYTES))
