"""Random networks, the control of a search."""

from collections import Counter
from itertools import product

import pytest
import torch

from a2d_lightning import random_architecture as module
from a2d_lightning.errors import SettingError
from a2d_lightning.macs import count_macs
from a2d_lightning.random_architecture import draw_like, random_architecture
from a2d_lightning.search_space import OPERATORS, Architecture, Plan

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


def test_the_command_writes_a_file_that_retraining_reads(tmp_path, capsys) -> None:
    searched().save(tmp_path / "last.json")
    output = tmp_path / "controls" / "random.json"
    random_architecture(["--like", str(tmp_path / "last.json"), "--seed", "3", "--output", str(output)])
    assert Architecture.load(output) == draw_like(searched(), 3)
    assert str(output) in capsys.readouterr().out


def test_a_cost_that_no_network_has_is_refused() -> None:
    too_dear = Architecture(("conv_k5", "conv_k5"), PLAN, SHAPE, 10**9, 1)
    with pytest.raises(SettingError, match=r"none of .* random networks costs nearly 1,000,000,000 MACs"):
        draw_like(too_dear, 0)
