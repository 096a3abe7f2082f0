"""Freed memory is kept: counted by the page faults of a process that allocates the same block again and again."""

import os
import platform
import subprocess
import sys

_FAULTS = """
import resource, sys
import torch
from a2d_lightning.runtime.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else False)
def block(): torch.empty(16 * 2**20).fill_(1.0)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): block()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(5)))
"""

HAS_GLIBC = platform.libc_ver()[0] == "glibc"


def faults(mode: str, **environment: str) -> tuple[str, int]:
    """What ``keep_freed_memory`` said, and the page faults of ten times 64 MiB: the fewest of five, as what else the
    process and the system do can only add some."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | environment
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, mode], env=variables, capture_output=True, text=True, check=True
    )
    said, count = done.stdout.split()
    return said, int(count)


def test_freed_memory_is_not_cleared_again() -> None:
    # 64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB, and malloc's default gives each block back to the system
    said, kept = faults("kept")
    _, returned = faults("default")
    assert said == str(HAS_GLIBC)
    assert returned >= 10 * 32
    assert (kept < returned / 10) == HAS_GLIBC


def test_variables_of_the_user_are_left_alone() -> None:
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
