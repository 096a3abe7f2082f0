"""What watches torch's operations (traces, exports, transforms, quantization) sees all of them."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from a2d_lightning.agent_files import bundled_teachers, read_agent
from a2d_lightning.models.networks import ActorCritic, initialize
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.search_space import Plan

FRAME = (4, 42, 42)


def bundled() -> ActorCritic:
    card, weights = read_agent(bundled_teachers()["pong_four_conv_42"])
    agent = card.build()
    agent.load_state_dict(weights)
    return agent.eval()


def derived() -> ActorCritic:
    """A network with every kind of layer that has a kernel, in evaluation."""
    torch.manual_seed(0)
    operators = ("ir_k5_e3", "ir_k3_e5", "conv_k5", "skip")
    backbone = Architecture(operators, Plan((2, 2), (8, 16)), FRAME, macs=0, parameters=0).build(FRAME)
    agent = initialize(ActorCritic(backbone, FRAME, 6))
    with torch.no_grad():
        agent(pixels(8))  # moves the statistics
        agent.actor.weight.mul_(100)  # so that logits differ
    return agent.eval()


def pixels(number: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (number, *FRAME), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def traced(agent: nn.Module) -> Callable[[Tensor], Any]:
    return torch.jit.trace(agent, pixels(3, seed=1))


def traced_by_fx(agent: nn.Module) -> Callable[[Tensor], Any]:
    return make_fx(agent)(pixels(3, seed=1))


def exported(agent: nn.Module) -> Callable[[Tensor], Any]:
    return torch.export.export(agent, (pixels(3, seed=1),)).module()


@pytest.mark.parametrize("make", [bundled, derived])
@pytest.mark.parametrize("watch", [traced, traced_by_fx, exported])
def test_what_watches_an_agent_gives_what_the_agent_gives(make: Any, watch: Any) -> None:
    agent = make()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of traces, about sizes that become constants
        found = watch(agent)(pixels(3))
        for mine, expected in zip(found, agent(pixels(3)), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_tangents_reach_the_features_where_no_gradient_is_recorded() -> None:
    backbone = derived().train().backbone
    x, tangent = (
        torch.rand(4, *FRAME, generator=torch.Generator().manual_seed(seed)).to(memory_format=torch.channels_last)
        for seed in (0, 1)
    )
    with torch.no_grad(), forward_ad.dual_level():
        out = forward_ad.unpack_dual(copy.deepcopy(backbone)(forward_ad.make_dual(x, tangent)))
    assert out.tangent is not None
    steps = [backbone.double()(x.double() + sign * 1e-6 * tangent.double()) for sign in (1, -1)]
    expected = (steps[0] - steps[1]) / 2e-6
    torch.testing.assert_close(out.tangent.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_trained_layer_is_seen_by_a_trace_too() -> None:
    agent = derived().train()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.jit.trace(copy.deepcopy(agent), pixels(4), check_trace=False)(pixels(3, seed=2))
        for mine, expected in zip(found, agent(pixels(3, seed=2)), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [bundled, derived])
def test_dense_layers_can_be_quantized(make: Any) -> None:
    agent = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantized = torch.ao.quantization.quantize_dynamic(agent, {nn.Linear}, dtype=torch.qint8)
    assert type(quantized.actor) is not nn.Linear
    with torch.no_grad():
        logits, expected = quantized(pixels(3))[0], agent(pixels(3))[0]
    # of 8 bits: within a few percent of the spread
    assert (logits - expected).abs().max() < 0.1 * (expected.max() - expected.min())
