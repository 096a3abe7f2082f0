"""The 5x5 depthwise convolution is ``nn.Conv2d``'s: what comes out, every gradient, and what else it is used for."""

import copy
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from a2d_lightning import depthwise
from a2d_lightning.depthwise import DepthwiseConv5x5
from a2d_lightning.macs import count_macs


def gradients(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the sum of cubes: of weights and input, and of the squared norm of the weights' gradient by the input."""
    x = x.clone().requires_grad_()
    total = layer(x).pow(3).sum()
    of_weights, of_x = torch.autograd.grad(total, (layer.weight, x), create_graph=True)
    (second,) = torch.autograd.grad(of_weights.square().sum(), x)
    return of_weights, of_x, second


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (5, 8), (1, 1), (3, 2)])
def test_gradients_are_those_of_a_convolution_in_double_precision(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv5x5(4, stride).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(4, 4, 5, stride, 2, groups=4, bias=False).double()
    plain.weight.data.copy_(layer.weight)
    x = torch.randn(3, 4, *size).to(memory_format=torch.channels_last)
    with (
        patch.object(depthwise, "SLOW_ABOVE", 0),
        patch.object(depthwise, "_of_weights", wraps=depthwise._of_weights) as quick,
    ):
        found = gradients(layer, x)
    assert quick.called
    for mine, expected in zip(found, gradients(plain, x.double()), strict=True):
        torch.testing.assert_close(mine, expected.float(), rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_large_inputs_alone_take_the_quick_way() -> None:
    layer = DepthwiseConv5x5(16, 1)
    with patch.object(depthwise, "_of_weights", wraps=depthwise._of_weights) as quick:
        layer(torch.randn(96, 16, 6, 6)).sum().backward()
        assert quick.call_count == 0
        layer(torch.randn(96, 16, 11, 11)).sum().backward()
        assert quick.call_count == 1


def test_autocast_computes_in_bfloat16_as_ever() -> None:
    layer = DepthwiseConv5x5(16, 1)
    plain = nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(96, 16, 11, 11)
    outs = []
    for each in (layer, plain):
        with torch.autocast("cpu", torch.bfloat16):
            outs.append(each(x))
        outs[-1].float().square().sum().backward()
    assert outs[0].dtype == torch.bfloat16
    assert torch.equal(*outs)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_frozen_weights_get_no_gradient() -> None:
    layer = DepthwiseConv5x5(16, 1).requires_grad_(False)
    x = torch.randn(96, 16, 11, 11, requires_grad=True)
    with patch.object(depthwise, "_of_weights") as quick:
        layer(x).sum().backward()
    assert not quick.called
    assert layer.weight.grad is None
    assert x.grad is not None


def test_it_is_copied_saved_and_counted_as_a_convolution() -> None:
    layer, plain = DepthwiseConv5x5(8, 2), nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False)
    plain.load_state_dict(copy.deepcopy(layer).state_dict())
    # 8 channels of 25 weights at 32 x 32 places; 64 x 64 x 8 is the size of a quick gradient, too, for a batch of 4
    assert count_macs(layer, torch.Size((8, 64, 64))) == count_macs(plain, torch.Size((8, 64, 64))) == 8 * 25 * 32 * 32
