"""Random networks, the control of a search."""

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from a2d_lightning.cli import random_architecture as module
from a2d_lightning.cli.random_architecture import draw_like, random_architecture
from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.errors import SettingError

SHAPE = (2, 21, 21)
PLAN = Plan((1, 1), (4, 8))


def costs(operators: tuple[str, ...]) -> tuple[int, int]:
    """MACs and parameters of the built network."""
    backbone = Architecture(operators, PLAN, SHAPE, 0, 0).build(SHAPE)
    return count_macs(backbone, torch.Size(SHAPE)), sum(p.numel() for p in backbone.parameters())


def searched() -> Architecture:
    return Architecture(
        ("ir_k3_e3", "ir_k5_e3"), PLAN, SHAPE, *costs(("ir_k3_e3", "ir_k5_e3")), teacher="t", env_steps=5
    )


def test_a_random_network_costs_what_the_searched_one_does() -> None:
    for seed in range(3):
        drawn = draw_like(searched(), seed)
        assert (drawn.macs, drawn.parameters) == costs(drawn.operators)
        assert 0.95 * searched().macs <= drawn.macs <= searched().macs
        assert (drawn.plan, drawn.frame_shape, drawn.teacher, drawn.env_steps) == (PLAN, SHAPE, "", 0)


def test_all_networks_that_are_as_dear_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    like, table = searched(), module.operator_macs(PLAN, SHAPE)
    monkeypatch.setattr(module, "operator_macs", lambda *_: table)  # counting takes longer than drawing
    possible = {x for x in product(OPERATORS, repeat=2) if 0.95 * like.macs <= costs(x)[0] <= like.macs}
    tries = 60 * len(possible)
    drawn = Counter(draw_like(like, seed).operators for seed in range(tries))
    assert drawn.keys() == possible
    # 60 each are expected, with a standard deviation below 8
    assert max(drawn.values()) < 60 + 5 * 8
    assert min(drawn.values()) > 60 - 5 * 8


def test_the_command_writes_a_file_that_retraining_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched().save(tmp_path / "last.json")
    output = tmp_path / "controls" / "random.json"
    random_architecture(["--like", str(tmp_path / "last.json"), "--seed", "3", "--output", str(output)])
    assert Architecture.load(output) == draw_like(searched(), 3)
    assert str(output) in capsys.readouterr().out


def test_a_cost_that_no_network_has_is_refused() -> None:
    too_dear = Architecture(("conv_k5", "conv_k5"), PLAN, SHAPE, 10**9, 1)
    with pytest.raises(SettingError, match=r"none of .* random networks costs nearly 1,000,000,000 MACs"):
        draw_like(too_dear, 0)


def test_a_window_is_drawn_from_uniformly() -> None:
    table, _ = module.operator_macs(PLAN, SHAPE)
    none = torch.empty(0, 2, dtype=torch.int64)
    every = {x: float(table[0, x[0]] + table[1, x[1]]) for x in product(range(len(OPERATORS)), repeat=2)}
    for low_part, high_part in ((0.1, 0.25), (0.4, 0.5), (0.7, 0.95)):  # tilted to cheap, hardly, to expensive
        low, high = low_part * max(every.values()), high_part * max(every.values())
        possible = {x for x, macs in every.items() if low <= macs <= high}
        assert 3 <= len(possible) < 40
        generator = torch.Generator().manual_seed(1)
        tries = 60 * len(possible)
        draws: list[Any] = [module.draw_in_window(table, low, high, none, generator) for _ in range(tries)]
        drawn = Counter(tuple(draw.tolist()) for draw in draws)
        assert drawn.keys() == possible
        # 60 each are expected, with a standard deviation below 8
        assert max(drawn.values()) < 60 + 5 * 8
        assert min(drawn.values()) > 60 - 5 * 8


def test_a_folder_of_networks_spreads_over_the_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--plan.cells_per_group", "[2,2]", "--plan.channels", "[4,8]", "--frame_shape", "[2,21,21]"]
    random_architecture(["--count", "12", *plan, "--macs", "[2e4,2e5]", "--output", str(tmp_path)])
    files = sorted(tmp_path.glob("*.json"))
    assert [path.name for path in files] == [f"random_{i:03d}.json" for i in range(12)]
    networks = [Architecture.load(path) for path in files]
    assert len({network.operators for network in networks}) == 12
    for i, network in enumerate(networks):
        assert network.plan == Plan((2, 2), (4, 8))
        backbone = network.build(SHAPE)
        assert network.macs == count_macs(backbone, torch.Size(SHAPE))
        assert network.parameters == sum(p.numel() for p in backbone.parameters())
        assert 2e4 * 10 ** (i / 12) <= network.macs <= 2e4 * 10 ** ((i + 1) / 12)


def test_a_folder_of_networks_as_expensive_as_a_searched_one(tmp_path: Path) -> None:
    searched().save(tmp_path / "last.json")
    random_architecture(["--like", str(tmp_path / "last.json"), "--count", "2", "--output", str(tmp_path / "out")])
    networks = [Architecture.load(path) for path in sorted((tmp_path / "out").glob("*.json"))]
    assert len({network.operators for network in networks}) == 2
    assert all(0.95 * searched().macs <= network.macs <= searched().macs for network in networks)
    with pytest.raises(SettingError, match="--count: 9 different networks with such MACs do not exist"):
        random_architecture(["--like", str(tmp_path / "last.json"), "--count", "9", "--output", str(tmp_path / "out")])


def test_a_window_without_a_network_is_widened() -> None:
    cheapest, _ = module.macs_range(PLAN, SHAPE)
    window = cheapest * 1.0001, cheapest * 1.0002
    (drawn,) = module.draw_spread(PLAN, SHAPE, [window], 0)
    assert drawn.macs < 1.5 * cheapest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--macs", "[2e5,1e5]"], r"--macs: \[200000, 100000\] must be \[LOW, HIGH\]"),
        (["--macs", "[1e8,2e8]"], "lies outside the search space"),
        (["--count", "82"], "82 different networks with such MACs do not exist"),
        (["--count", "0"], "--count: 0 must be positive"),
    ],
)
def test_costs_and_counts_that_cannot_be_are_refused(settings: list[str], message: str, tmp_path: Path) -> None:
    plan = ["--plan.cells_per_group", "[1,1]", "--plan.channels", "[4,8]", "--frame_shape", "[2,21,21]"]
    with pytest.raises(SettingError, match=message):
        random_architecture([*plan, *settings, "--output", str(tmp_path)])
