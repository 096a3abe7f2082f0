"""Cores for the emulators: a thread of theirs on each, and torch's waiting threads asleep while they work."""

import ctypes
import functools
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from a2d_lightning.cpu.cores import usable_cores


def affinity_offset(num_threads: int, process: int, processes: int) -> int:
    """The core of the first of a process's emulator threads, the others following, or -1 to leave them to the system.

    The system often wakes two of them on one core, and the other core waits. They are bound only where this machine's
    processes together have one for each of its cores: fewer of them would keep to the same few cores in every run.

    Args:
        num_threads: of each process.
        process: this one, from 0.
        processes: on this machine.
    """
    return process * num_threads if num_threads * processes == usable_cores() == os.cpu_count() else -1


class ParkedThreads:
    """``with parked:`` around work of other threads: torch's own ones sleep, and do not spin for the next kernel.

    OpenMP's threads spin for milliseconds after each kernel, and one that spins takes an emulator's core. Here they
    wait for a semaphore, in a parallel region that is open until the end of the block; torch inside of it runs on one
    thread. Own code: OpenMP can only end its threads (``omp_pause_resource``), and making them anew costs more than it
    saves. Where torch was not built with GCC's OpenMP it does nothing.

    Args:
        other_threads: that work inside; if they and torch's have a core each, nothing needs to sleep.
    """

    def __init__(self, other_threads: int) -> None:
        self.other_threads = other_threads
        self._openmp = gcc_openmp()
        self._libc: Any = ctypes.PyDLL(None) if self._openmp is not None else None  # Windows knows no None
        self._semaphore = (ctypes.c_long * 8)()  # a sem_t takes 32 bytes
        self._asleep = 0
        self._is_open = False

    def __enter__(self) -> None:
        threads = torch.get_num_threads()
        if self._openmp is None or threads == 1 or threads + self.other_threads <= usable_cores():
            return
        self._libc.sem_init(self._semaphore, 0, 0)
        self._asleep = threads - 1
        self._is_open = True
        # each thread but this one calls sem_wait(semaphore)
        self._openmp.GOMP_parallel_start(self._libc.sem_wait, self._semaphore, threads)

    def wake(self) -> None:
        """To be called before the end of the block: what follows up to there runs while they wake up."""
        for _ in range(self._asleep):
            self._libc.sem_post(self._semaphore)
        self._asleep = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wake()
        if self._is_open:
            self._is_open = False
            assert self._openmp is not None
            self._openmp.GOMP_parallel_end()


@functools.cache
def gcc_openmp() -> ctypes.PyDLL | None:
    """The OpenMP that torch runs on, if it is GCC's."""
    if sys.platform != "linux":
        return None
    try:
        # loaded long since; its symbols are looked for in the libraries that it needs, too
        openmp = ctypes.PyDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = openmp.GOMP_parallel_start, openmp.GOMP_parallel_end
    except (OSError, AttributeError):
        return None
    del found
    return None if hasattr(openmp, "kmp_set_blocktime") else openmp  # that one is LLVM's or Intel's
