"""Which layers get quicker classes, and that nothing but the class changes."""

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from a2d_lightning.cpu.accelerate import accelerate
from a2d_lightning.cpu.depthwise import DepthwiseConv5x5
from a2d_lightning.cpu.fused_batch_norm import FusedSequential
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet

CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}


class Mine(nn.Conv2d):
    """A layer of a user's own."""


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False), DepthwiseConv5x5),
        (nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False), DepthwiseConv5x5),
        (nn.Conv2d(8, 8, 5, 1, 1, groups=8, bias=False), nn.Conv2d),
        (nn.Conv2d(8, 8, 5, 1, 2, 2, groups=8, bias=False), nn.Conv2d),
        (nn.Conv2d(8, 16, 5, 1, 2, groups=8, bias=False), nn.Conv2d),
        (nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.Conv2d),
        (nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False, padding_mode="reflect"), nn.Conv2d),
        (nn.Sequential(), FusedSequential),
        (nn.ModuleList(), nn.ModuleList),
        (Mine(8, 8, 5, 1, 2, groups=8, bias=False), Mine),
    ],
)
def test_layers_of_known_kinds_are_replaced(layer: nn.Module, kind: type[nn.Module]) -> None:
    assert type(accelerate(nn.ModuleList([layer]))[0]) is kind


def test_weights_names_and_outputs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = (4, 24, 24)
    plain = Supernet(Plan((2, 1), (8, 16)), shape)
    fast = accelerate(copy.deepcopy(plain))
    assert [*fast.state_dict()] == [*plain.state_dict()]
    assert not [layer for layer in plain.modules() if isinstance(layer, FusedSequential)]
    assert {type(layer) for layer in fast.modules()} >= {FusedSequential, DepthwiseConv5x5}
    for net in (plain, fast):
        net.draw(torch.Generator().manual_seed(0))
    frames = torch.rand(6, *shape).to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(frames), plain.to(**CHANNELS_LAST)(frames), rtol=1e-4, atol=1e-5)


def test_agents_are_accelerated_unless_it_is_switched_off() -> None:
    agent = ActorCritic(nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Flatten()), (4, 3, 3), 2)
    assert type(agent.backbone) is FusedSequential
    script = (
        "import torch; from torch import nn; from a2d_lightning.cpu.accelerate import accelerate; "
        "from a2d_lightning.cpu.kernels import kernels; "
        "assert type(accelerate(nn.Sequential())) is nn.Sequential; assert kernels() is None"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "A2D_NATIVE": "0"}, check=True)
