"""Fixtures that several files share."""

import pytest
import torch

from a2d_lightning.networks import count_parameters
from a2d_lightning.search_space import OPERATORS, Architecture, Plan, operator_macs


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    # torch's threads would spin against the emulator's
    torch.set_num_threads(1)


@pytest.fixture
def small_architecture(tmp_path):
    """Path of a JSON with three cells for 42x42 frames."""
    plan, shape, operators = Plan((1, 1, 1), (8, 16, 32)), (4, 42, 42), ("conv_k3", "ir_k3_e1", "skip")
    table, fixed = operator_macs(plan, shape)
    names = list(OPERATORS)
    macs = int(sum(table[i, names.index(name)] for i, name in enumerate(operators))) + fixed
    draft = Architecture(operators, plan, shape, macs, 0)
    architecture = Architecture(
        operators, plan, shape, macs, count_parameters(draft.build(shape)), "pong", "pong_four_conv_42", 0
    )
    path = tmp_path / "architecture.json"
    architecture.save(path)
    return path
