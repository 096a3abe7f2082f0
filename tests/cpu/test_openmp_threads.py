"""torch's threads sleep while emulators work, and work as before afterwards; emulators' threads have a core each."""

import multiprocessing
import os
import time
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from a2d_lightning.cpu import openmp_threads as parking
from a2d_lightning.cpu.openmp_threads import ParkedThreads, affinity_offset
from a2d_lightning.rollouts.envs import FrameSettings, make_env

MANY = 10_000
LARGE = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def cpu_seconds_of_waiting(context: AbstractContextManager) -> float:
    """CPU time of all threads while this one sleeps, each time after a parallel kernel."""
    spent = 0.0
    for _ in range(20):
        torch.exp(LARGE)
        with context:
            began = time.process_time()
            time.sleep(0.02)
            spent += time.process_time() - began
    return spent


def spinning_and_parked() -> tuple[float, float]:
    """CPU seconds of waiting as OpenMP waits, and parked."""
    torch.set_num_threads(2)
    return cpu_seconds_of_waiting(nullcontext()), cpu_seconds_of_waiting(ParkedThreads(MANY))


def test_threads_that_wait_take_no_time() -> None:
    # in a process of its own: OpenMP hardly spins where other threads of a process have teams of theirs, as the ones
    # of earlier tests may have, and other threads' work would count here
    with multiprocessing.get_context("spawn").Pool(1) as process:
        spinning, parked = process.apply(spinning_and_parked)
    assert parked < spinning / 3


def test_torch_computes_the_same_inside_and_afterwards() -> None:
    expected = torch.exp(LARGE)
    parked = ParkedThreads(MANY)
    for _ in range(200):
        with parked:
            inside = torch.exp(LARGE[:100_000])
        after = torch.exp(LARGE)
        assert torch.equal(inside, expected[:100_000])
        assert torch.equal(after, expected)
    assert torch.get_num_threads() == 2


def test_the_other_thread_computes_again_afterwards() -> None:
    with ParkedThreads(MANY):
        pass
    everybody, this_one = time.process_time(), time.thread_time()
    for _ in range(200):
        torch.exp(LARGE)
    this_one = time.thread_time() - this_one
    assert time.process_time() - everybody - this_one > this_one / 2


def test_an_error_inside_wakes_them() -> None:
    parked = ParkedThreads(MANY)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), parked:
            raise ZeroDivisionError
        assert torch.exp(LARGE).isfinite().all()


class NeverCalled:
    """An OpenMP that must not be asked."""


@pytest.mark.parametrize(("torch_threads", "others", "cores"), [(1, MANY, 2), (2, 2, 4), (4, 12, 16)])
def test_nothing_happens_where_nobody_is_in_the_way(
    torch_threads: int, others: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "gcc_openmp", NeverCalled)
    monkeypatch.setattr(parking, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads)
    with ParkedThreads(others):
        pass


@pytest.mark.parametrize(
    ("num_threads", "process", "processes", "usable", "expected"),
    [
        (16, 0, 1, 16, 0),
        (8, 1, 2, 16, 8),
        (4, 3, 4, 16, 12),
        (4, 0, 1, 16, -1),  # four runs of four threads each would meet on the first four cores
        (16, 0, 2, 16, -1),
        (8, 0, 1, 8, -1),  # half of the machine: which cores these are is not known to ale-py
    ],
)
def test_threads_are_bound_only_where_they_fill_the_machine(
    num_threads: int, process: int, processes: int, usable: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(parking, "usable_cores", lambda: usable)
    assert affinity_offset(num_threads, process, processes) == expected


def emulator_cores(first: int) -> list[set[int]]:
    """Where each thread of a new environment may run."""
    before = set(os.listdir("/proc/self/task"))
    env = make_env("Pong", 2, FrameSettings(), 0, num_threads=2, noop_max=1, affinity_offset=first)
    found = [os.sched_getaffinity(int(thread)) for thread in sorted(set(os.listdir("/proc/self/task")) - before)]
    env.close()
    return found


def test_each_emulator_thread_has_its_core() -> None:
    everywhere = os.sched_getaffinity(0)
    assert emulator_cores(-1) == [everywhere, everywhere]
    assert emulator_cores(0) == [{0}, {1}]
