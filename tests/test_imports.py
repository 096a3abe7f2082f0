"""Who may import whom. A reader finds each equation in one place because these arrows hold."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "a2d_lightning"
KERNELS = {"depthwise", "fused_batch_norm", "native", "optimizers", "pointwise", "unit_frames", "weighted_sum"}
LEAVES = {
    "atomic_file",
    "cores",
    "errors",
    "games",
    "interruption",
    "machine_memory",
    "macs",
    "parking",
    "watchdog",
    *KERNELS,
}


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
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def ours(name: str) -> set[str]:
    """Our modules that module ``name`` imports; ``a2d_lightning.losses.policy_loss`` is an import of ``losses``."""
    path = modules()[name]
    package = ".".join(["a2d_lightning", *path.relative_to(PACKAGE).parent.parts])
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
        ("import torch, callbacks.flops as f", {"torch", "callbacks.flops"}),
        ("from a2d_lightning import losses", {"a2d_lightning.losses"}),
        ("def f():\n    from a2d_lightning.envs import make_env", {"a2d_lightning.envs.make_env"}),
        ("if TYPE_CHECKING:\n    from . import data", {"a2d_lightning.modules.data"}),
        ("from .. import data", {"a2d_lightning.data"}),
        ("from ..data import Rollouts", {"a2d_lightning.data.Rollouts"}),
    ],
)
def test_every_way_to_import_is_seen(source: str, names: set[str]) -> None:
    assert imported_names(source, "a2d_lightning.modules") == names


def test_the_house_is_where_it_is_looked_for() -> None:
    assert {"", "__main__", "cli", "data", "losses", "modules", "modules.actor_critic"} <= modules().keys()
    assert "losses" in ours("modules.actor_critic")
    assert "data" in ours("cli")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("native", {"parking"}),
        ("cores", set()),
        *[(name, {"native"}) for name in sorted(KERNELS - {"native"})],
        ("errors", set()),
        ("atomic_file", set()),
        ("interruption", set()),
        ("parking", {"cores"}),
        ("watchdog", set()),
        ("plain_checkpoints", {"errors"}),
        ("checkpoints", LEAVES | {"plain_checkpoints", "teachers"}),
        ("games", LEAVES),
        ("macs", LEAVES),
        ("normalization", set()),
        ("losses", LEAVES),
        ("schedules", LEAVES),
        ("policy", LEAVES),
        ("search_space", LEAVES),
        ("journal", set()),
        ("optimizer_settings", {"errors"}),
        ("real_run", set()),
        ("run_folder", {"errors"}),
        ("ranks", set()),
        ("circumstances", set()),
        ("heartbeats", {"ranks"}),
        ("finite", LEAVES | {"ranks"}),
        ("envs", LEAVES | {"journal", "rollouts.gymnasium_games"}),
        ("rollouts.gymnasium_games", {"errors", "games", "journal", "rollouts.image_format"}),
        ("rollouts.image_format", {"errors", "games"}),
        ("rollouts.minatar", set()),
        ("collector", LEAVES | {"envs"}),
        ("networks", LEAVES | {"search_space"}),
        ("sampling", LEAVES | {"search_space"}),
        ("nas.derivation", LEAVES),
        ("nas.gradient_noise", set()),
        ("nas.needed_callbacks", {"errors"}),
        ("supernet", LEAVES | {"nas.derivation", "normalization", "search_space", "sampling"}),
        ("costs", LEAVES | {"supernet"}),
        ("schemes", LEAVES | {"networks", "normalization", "ranks", "supernet"}),
        ("algorithms", LEAVES | {"losses", "normalization"}),
        ("collection", LEAVES | {"collector", "envs", "normalization", "policy"}),
        ("ray_collection", LEAVES | {"collection", "normalization", "policy", "ray_worker"}),
        ("ray_worker", {"collector", "normalization"}),
        ("data", LEAVES | {"circumstances", "collection", "envs", "ranks", "ray_collection"}),
        ("evaluation", LEAVES | {"envs"}),
    ],
)
def test_a_module_imports_only_what_it_may(name: str, allowed: set[str]) -> None:
    assert ours(name) <= allowed


def test_modules_and_data_do_not_reach_each_other() -> None:
    lightning_modules = {name for name in modules() if name.split(".")[0] == "modules"}
    assert len(lightning_modules) >= 5
    for name in lightning_modules:
        assert "data" not in reached_from(name), name
    assert not lightning_modules & reached_from("data")


def test_torchrl_is_imported_by_what_plays_alone() -> None:
    # it takes a second, three where Ray is installed, which --help and --print_config do without
    script = "import sys, a2d_lightning.cli; sys.exit(any(m in sys.modules for m in ('torchrl', 'ray')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_nothing_imports_callbacks() -> None:
    for name, path in modules().items():
        tops = {imported.split(".")[0] for imported in imported_names(path.read_text(), "a2d_lightning")}
        assert "callbacks" not in tops, name


def test_only_main_imports_the_command_line() -> None:
    assert {name for name in modules() if "cli" in ours(name)} == {"__main__"}
