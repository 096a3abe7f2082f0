"""The cores that a process may use. Oracle: control groups as the kernel's documentation describes them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from a2d_lightning.cpu import cores
from a2d_lightning.cpu.cores import affinity_offset, let_waiting_threads_sleep, usable_cores
from a2d_lightning.rollouts.envs import FrameSettings, make_env


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, dict[str, str]], None]:
    """A machine with eight cores, the given membership file and the given files of control groups."""

    def build(membership: str, files: dict[str, str]) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "cgroup")
        monkeypatch.setattr(cores, "CGROUPS", tmp_path / "fs")
        (tmp_path / "cgroup").write_text(membership)
        for name, content in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return build


V1 = "5:memory:/a\n3:cpu,cpuacct:/pods/a\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/pods/a\n", {"pods/a/cpu.max": "max 100000\n", "pods/cpu.max": "300000 100000\n"}, 3),
        ("0::/pods/a\n", {"pods/a/cpu.max": "400000 100000\n", "pods/b/cpu.max": "100000 100000\n"}, 4),
        (V1, {"cpu,cpuacct/pods/a/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/pods/a/cpu.cfs_period_us": "100000\n"}, 8),
        (V1, {"cpu,cpuacct/pods/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/pods/cpu.cfs_period_us": "50000\n"}, 5),
        (V1, {"memory/a/cpu.max": "100000 100000\n", "cpu.max": "broken\n"}, 8),
    ],
)
def test_a_quota_counts(
    membership: str, files: dict[str, str], expected: int, machine: Callable[[str, dict[str, str]], None]
) -> None:
    machine(membership, files)
    assert usable_cores() == expected


def test_affinity_counts(machine: Callable[[str, dict[str, str]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine("0::/\n", {"cpu.max": "600000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert usable_cores() == 3


def test_machines_without_control_groups(
    machine: Callable[[str, dict[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("", {})
    monkeypatch.setattr(cores, "MEMBERSHIP", Path("/nowhere"))
    assert usable_cores() == 8
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert usable_cores() == 10


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": cores.SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_the_user_decides_how_threads_wait(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    assert let_waiting_threads_sleep() == (given == {})
    assert os.environ == expected


COUNT = """
import os, sys
os.sched_getaffinity = lambda _: {0}
import torch
torch.set_num_threads(2)
from a2d_lightning.cli.main import main
try:
    main(["nothing"])
except SystemExit:
    print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_torch_has_no_more_threads_than_cores(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_waiting_threads_are_asleep_before_torch_is_there() -> None:
    script = "import sys, os; import a2d_lightning.__main__ as m; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
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
