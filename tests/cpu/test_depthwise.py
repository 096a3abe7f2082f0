"""The 5x5 depthwise convolution is ``nn.Conv2d``'s: what comes out, every gradient, and what else it is used for."""

import copy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from a2d_lightning.cpu import depthwise
from a2d_lightning.cpu.accelerate import accelerate
from a2d_lightning.cpu.depthwise import DepthwiseConv5x5
from a2d_lightning.models.macs import count_macs

CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}


def depthwise_5x5(channels: int, stride: int) -> nn.Conv2d:
    layer = accelerate(nn.Conv2d(channels, channels, 5, stride, 2, groups=channels, bias=False))
    assert isinstance(layer, DepthwiseConv5x5)
    return layer


def gradients(layer: nn.Conv2d, x: Tensor, second: bool = False) -> list[Tensor]:
    """Of the sum of cubes: of weights and input; or those of the squared norm of the weights' gradient."""
    x = x.clone().requires_grad_()
    found = torch.autograd.grad(layer(x).pow(3).sum(), (layer.weight, x), create_graph=second)
    return list(torch.autograd.grad(found[0].square().sum(), (layer.weight, x)) if second else found)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
# vectors are of 16 and of 8 channels
@pytest.mark.parametrize("channels", [8, 40])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (5, 8), (1, 1), (3, 2)])
def test_gradients_are_those_of_a_convolution_in_double_precision(
    size: tuple[int, int], channels: int, stride: int, second: bool
) -> None:
    torch.manual_seed(0)
    layer = depthwise_5x5(channels, stride).to(**CHANNELS_LAST)
    plain = nn.Conv2d(channels, channels, 5, stride, 2, groups=channels, bias=False).double()
    plain.weight.data.copy_(layer.weight)
    x = torch.randn(19, channels, *size).to(memory_format=torch.channels_last)  # 16 shares of the images
    with patch.object(depthwise, "_grad_weight", wraps=depthwise._grad_weight) as quick:
        found = gradients(layer, x, second)
    assert quick.called
    for mine, expected in zip(found, gradients(plain, x.double(), second), strict=True):
        torch.testing.assert_close(mine, expected.float(), rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_gradients_keep_the_layout() -> None:
    layer = depthwise_5x5(16, 1).to(**CHANNELS_LAST)
    x = torch.randn(4, 16, 7, 7).to(memory_format=torch.channels_last)
    grad_x = gradients(layer, x)[1]
    assert grad_x.is_contiguous(memory_format=torch.channels_last)


def test_what_does_not_fit_goes_the_usual_way() -> None:
    with patch.object(depthwise, "_grad_weight") as quick:
        depthwise_5x5(12, 1)(torch.randn(4, 12, 7, 7).to(**CHANNELS_LAST)).sum().backward()  # channels
        depthwise_5x5(16, 1)(torch.randn(4, 16, 7, 7)).sum().backward()  # layout
        depthwise_5x5(16, 1).double()(torch.randn(4, 16, 7, 7).double().to(**CHANNELS_LAST)).sum().backward()
    assert not quick.called


def test_autocast_computes_in_bfloat16_as_ever() -> None:
    layer = depthwise_5x5(16, 1)
    plain = nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(96, 16, 11, 11).to(memory_format=torch.channels_last)
    outs = []
    for each in (layer, plain):
        with torch.autocast("cpu", torch.bfloat16):
            outs.append(each(x))
        outs[-1].float().square().sum().backward()
    assert outs[0].dtype == torch.bfloat16
    assert torch.equal(*outs)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_frozen_weights_get_no_gradient() -> None:
    layer = depthwise_5x5(16, 1).requires_grad_(False)
    x = torch.randn(96, 16, 11, 11).to(memory_format=torch.channels_last).requires_grad_()
    with patch.object(depthwise, "_grad_weight") as quick:
        layer(x).sum().backward()
    assert not quick.called
    assert layer.weight.grad is None
    assert x.grad is not None


def test_it_is_copied_saved_and_counted_as_a_convolution() -> None:
    layer, plain = depthwise_5x5(8, 2), nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False)
    plain.load_state_dict(copy.deepcopy(layer).state_dict())
    # 8 channels of 25 weights at 32 x 32 places
    assert count_macs(layer, torch.Size((8, 64, 64))) == count_macs(plain, torch.Size((8, 64, 64))) == 8 * 25 * 32 * 32
