"""Who may import whom. A reader finds each equation in one place because these arrows hold."""

import ast
import functools
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "a2d_lightning"
CALLBACKS = ROOT / "callbacks"
"""``a2d_lightning.callbacks`` of an installation."""
FOLDERS = {
    "runtime": set(),
    "cpu": set(),
    "models": {"cpu", "runtime"},
    "rl": {"models", "runtime"},
    "nas": {"models", "cpu", "runtime"},
    "rollouts": {"models", "cpu", "runtime"},
    "agent_files": {"nas", "models", "runtime", "rollouts.games"},
    "data": {"rollouts", "cpu", "runtime"},
    "modules": {
        *("rl", "nas", "models", "agent_files", "runtime"),
        *("rollouts.policy", "rollouts.evaluation", "rollouts.envs"),
    },
    "callbacks": {"modules", "nas", "models", "runtime"},
    "agent": {"agent_files", "models", "rollouts.policy", "runtime"},
    "bundled_teachers": set(),
    "deploy": {"agent_files", "models", "rollouts", "runtime"},
    "onnx_player": set(),
    "cli": {"deploy", "modules", "data", "agent_files", "rollouts", "nas", "models", "cpu", "runtime"},
    "studies": {"__main__", "cli", "modules", "data", "agent_files", "rollouts", "nas", "models", "cpu", "runtime"},
}
"""What each folder (or file) of the package may import of the others: whole folders, or single files."""


def imported_names(source: str, package: str) -> set[str]:
    """Absolute dotted names of everything that ``source``, a module directly in ``package``, imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def modules() -> dict[str, Path]:
    """Our modules by their name within the package: ``losses``, ``modules.search``; a package by its own name."""
    found = {}
    for path in [*sorted(PACKAGE.rglob("*.py")), *sorted(CALLBACKS.glob("*.py"))]:
        parts = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def ours(name: str) -> set[str]:
    """Our modules that module ``name`` imports; ``a2d_lightning.rl.losses.policy_loss`` is an import of ``losses``."""
    path = modules()[name]
    parents = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).parent.parts
    package = ".".join(["a2d_lightning", *parents])
    found = set()
    for imported in imported_names(path.read_text(), package):
        parts = imported.split(".")
        if parts[0] == "a2d_lightning":
            # the longest prefix that is a module; the package itself if none is
            found.add(next((m for i in range(len(parts), 1, -1) if (m := ".".join(parts[1:i])) in modules()), ""))
    return found - {name}


def reached_from(name: str) -> set[str]:
    """Our modules that are loaded by importing ``name``, itself left out."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        new = ours(waiting.pop()) - reached
        reached |= new
        waiting += new
    return reached - {name}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch, a2d_lightning.callbacks.flops as f", {"torch", "a2d_lightning.callbacks.flops"}),
        ("from a2d_lightning import losses", {"a2d_lightning.losses"}),
        ("def f():\n    from a2d_lightning.rollouts.envs import make_env", {"a2d_lightning.rollouts.envs.make_env"}),
        ("if TYPE_CHECKING:\n    from . import data", {"a2d_lightning.modules.data"}),
        ("from .. import data", {"a2d_lightning.data"}),
        ("from ..data import Rollouts", {"a2d_lightning.data.Rollouts"}),
    ],
)
def test_every_way_to_import_is_seen(source: str, names: set[str]) -> None:
    assert imported_names(source, "a2d_lightning.modules") == names


def folder_of(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def test_the_table_names_every_folder() -> None:
    assert {folder_of(name) for name in modules()} - {"", "__main__"} == FOLDERS.keys()
    assert "rl.losses" in ours("modules.actor_critic")
    assert "data" in ours("cli.main")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    for name in modules():
        if folder_of(name) == folder:
            allowed = FOLDERS[folder] | {folder, ""}
            assert not {other for other in ours(name) if not {other, folder_of(other)} & allowed}, name


def test_folders_make_no_circle() -> None:
    above = {folder: {folder_of(name) for name in used} - {"__main__"} for folder, used in FOLDERS.items()}
    list(TopologicalSorter(above).static_order())  # raises CycleError


def test_modules_and_data_do_not_reach_each_other() -> None:
    lightning_modules = {name for name in modules() if folder_of(name) == "modules"}
    assert len(lightning_modules) >= 5
    for name in lightning_modules:
        assert "data" not in reached_from(name), name
    assert not lightning_modules & reached_from("data")


def test_torchrl_is_imported_by_what_plays_alone() -> None:
    # it takes a second, three where Ray is installed, which --help and --print_config do without
    script = "import sys, a2d_lightning.cli.main; sys.exit(any(m in sys.modules for m in ('torchrl', 'ray')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_nothing_imports_callbacks() -> None:
    for name in modules():
        assert folder_of(name) == "callbacks" or "callbacks" not in {folder_of(other) for other in ours(name)}, name


def test_only_main_imports_the_command_line() -> None:
    assert {name for name in modules() if "cli.main" in ours(name)} == {"__main__"}
