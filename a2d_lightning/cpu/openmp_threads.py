"""CPU cores for the emulators: one thread bound to each core, and torch's threads asleep while emulators work."""

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


class ParkedThreads:
    """Context manager that puts torch's OpenMP threads to sleep while other threads work: ``with parked: ...``.

    OpenMP threads spin for milliseconds after each kernel and take cores from the emulators. Inside the block these
    threads wait for a semaphore, in a parallel region that stays open until the block ends; torch then runs on one
    thread. Nothing happens if torch was not built with GCC's OpenMP.

    Own code: OpenMP can only end its threads (``omp_pause_resource``), and creating them again costs more than the
    pause saves.

    Args:
        other_threads: Number of threads that work inside the block. If there is a core for each of these and of torch's
            threads, none is put to sleep.
    """

    def __init__(self, other_threads: int) -> None:
        self.other_threads = other_threads
        self._openmp = gcc_openmp()
        self._libc: Any = ctypes.PyDLL(None) if self._openmp is not None else None  # PyDLL(None) fails on Windows
        self._semaphore = (ctypes.c_long * 8)()  # room for a sem_t, which takes 32 bytes
        self._asleep = 0
        self._is_open = False

    def __enter__(self) -> None:
        threads = torch.get_num_threads()
        if self._openmp is None or threads == 1 or threads + self.other_threads <= usable_cores():
            return
        self._libc.sem_init(self._semaphore, 0, 0)
        self._asleep = threads - 1
        self._is_open = True
        # each thread except this one runs sem_wait(semaphore)
        self._openmp.GOMP_parallel_start(self._libc.sem_wait, self._semaphore, threads)

    def wake(self) -> None:
        """Wake torch's threads before the end of the block, while this thread runs the rest of the block."""
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
    """Return the OpenMP library that torch uses, or None if it is not GCC's."""
    if sys.platform != "linux":
        return None
    try:
        # already loaded; a symbol is also looked up in the libraries that this one depends on
        openmp = ctypes.PyDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = openmp.GOMP_parallel_start, openmp.GOMP_parallel_end
    except (OSError, AttributeError):
        return None
    del found
    return None if hasattr(openmp, "kmp_set_blocktime") else openmp  # present in LLVM's and Intel's only
