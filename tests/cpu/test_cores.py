"""The cores that a process may use. Oracle: control groups as the kernel's documentation describes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from a2d_lightning.cpu import cores
from a2d_lightning.cpu.cores import let_waiting_threads_sleep, usable_cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
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
def test_a_quota_counts(membership, files, expected, machine):
    machine(membership, files)
    assert usable_cores() == expected


def test_affinity_counts(machine, monkeypatch):
    machine("0::/\n", {"cpu.max": "600000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert usable_cores() == 3


def test_machines_without_control_groups(machine, monkeypatch):
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
def test_the_user_decides_how_threads_wait(given, expected, monkeypatch):
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
def test_torch_has_no_more_threads_than_cores(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_waiting_threads_are_asleep_before_torch_is_there():
    script = "import sys, os; import a2d_lightning.__main__ as m; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
