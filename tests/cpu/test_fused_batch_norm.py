"""Batch norm and ReLU in one are what they are apart: values, gradients, statistics, and who else looks at them."""

import copy
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from small_supernets import make_supernet
from torch import Tensor, nn

from a2d_lightning.cpu import fused_batch_norm
from a2d_lightning.cpu.accelerate import accelerate
from a2d_lightning.cpu.fused_batch_norm import FusedSequential
from a2d_lightning.cpu.kernels import kernels
from a2d_lightning.models.normalization import frozen_batch_norm_statistics, recalibrate

CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}


def layers(channels: int, relu: bool) -> list[nn.Module]:
    norm = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))  # negative ones turn the ReLU around
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return [norm, nn.ReLU(inplace=True)] if relu else [norm]


def pair(channels: int, relu: bool) -> tuple[FusedSequential, nn.Sequential]:
    """In one, and apart in double precision."""
    return FusedSequential(*layers(channels, relu)), nn.Sequential(*layers(channels, relu)).double()


def gradients(network: nn.Module, x: Tensor, second: bool = False) -> list[Tensor]:
    """What comes out, and the gradients of input and weights; or the derivatives of the input's gradient."""
    x = x.clone().requires_grad_()
    out = network(x)
    # sums of squares of normalized values have no gradient, powers of what a ReLU closed neither
    total = (out + torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).pow(3).sum()
    wanted = (x, *network.parameters())
    found = torch.autograd.grad(total, wanted, create_graph=second)
    if second:
        return list(torch.autograd.grad(found[0].square().sum(), wanted))
    return [out.detach(), *found]


@pytest.fixture
def calls() -> Iterator[Mock]:
    """Counts the kernels' forwards."""
    run = kernels()
    assert run is not None
    with patch.object(run, "batch_norm", wraps=run.batch_norm) as counted:
        yield counted


def channels_last(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (96, 16, 6, 6), (16, 40, 21, 21), (2, 1, 1, 1), (1, 7, 1, 3)])
def test_values_and_gradients_are_those_of_double_precision(
    shape: tuple[int, int, int, int], relu: bool, calls: Mock
) -> None:
    fused, plain = pair(shape[1], relu)
    x = channels_last(*shape) * 3 + 2
    found, expected = gradients(fused, x), gradients(plain, x.double())
    assert calls.call_count == 1
    for mine, theirs in zip(found, expected, strict=True):
        largest = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-3, atol=1e-4 * largest + 1e-5)
    for name, theirs in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name].double(), theirs.double(), rtol=1e-5, atol=1e-6)


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    x = channels_last(16, 8, 9, 9) + 1000  # squares of 1e6, of which float32 keeps 0.06
    fused, plain = pair(8, False)
    # x itself is rounded to 6e-5, its mean to as much
    torch.testing.assert_close(fused(x), plain(x.double()).float(), rtol=1e-3, atol=1e-3)


def test_nan_goes_through_the_relu() -> None:
    fused, _ = pair(3, True)
    x = channels_last(2, 3, 4, 4)
    x[0, 1, 2, 3] = float("nan")
    x.requires_grad_()
    out = fused(x)
    assert out[:, 1].isnan().all()
    assert not out[:, [0, 2]].isnan().any()
    out.sum().backward()
    assert x.grad is not None
    assert x.grad[:, 1].isnan().all()
    assert not x.grad[:, [0, 2]].isnan().any()


def test_derivatives_of_the_gradient() -> None:
    fused, plain = pair(3, True)
    x = channels_last(4, 3, 5, 7)
    for mine, theirs in zip(gradients(fused, x, second=True), gradients(plain, x.double(), second=True), strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_a_gradient_of_another_layout_is_the_same_gradient() -> None:
    fused, _ = pair(6, True)
    x = channels_last(4, 6, 5, 5)
    gradient = torch.randn(4, 6, 5, 5)
    found: list[Any] = []
    for each in (gradient, gradient.to(memory_format=torch.channels_last)):
        leaf = x.clone().requires_grad_()
        fused(leaf).backward(each)
        found.append(leaf.grad)
    assert torch.equal(*found)


def test_acting_leaves_statistics_alone_and_gives_the_same(calls: Mock) -> None:
    fused, _ = pair(6, True)
    before = copy.deepcopy(fused.state_dict())
    x = channels_last(4, 6, 5, 5)
    with torch.no_grad(), frozen_batch_norm_statistics(fused):
        acted = fused(x)
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert torch.equal(acted, fused(x))
    assert fused[0].num_batches_tracked == 1
    assert calls.call_count == 2


@pytest.mark.parametrize("other", ["evaluation", "bfloat16", "layout", "hook on norm", "autocast", "cumulative"])
def test_everything_else_is_computed_layer_by_layer(other: str, calls: Mock) -> None:
    fused, _ = pair(8, True)
    x = channels_last(4, 8, 6, 6)
    seen: list[Tensor] = []
    if other == "evaluation":
        fused.eval()
    elif other == "bfloat16":
        x = x.bfloat16()
    elif other == "layout":
        x = x.contiguous()
    elif other == "hook on norm":
        fused[0].register_forward_hook(lambda module, inputs, out: seen.append(out.clone()))
    elif other == "autocast":
        fused.insert(0, nn.Conv2d(8, 8, 1).to(**CHANNELS_LAST))
    else:
        recalibrate(fused, [x])
        fused.train()
        norm: Any = fused[0]
        norm.momentum = None
    plain = nn.Sequential(*copy.deepcopy(fused))
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=other == "autocast"):
        out, expected = fused(x), plain(x)
    assert torch.equal(out, expected)
    assert calls.call_count == 0
    assert not seen or len(seen) == 2  # of both


def test_a_hooked_relu_is_called(calls: Mock) -> None:
    fused, plain = pair(8, True)
    x = channels_last(4, 8, 6, 6)
    seen: list[Tensor] = []
    fused[1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    torch.testing.assert_close(fused(x), plain(x.double()).float())
    assert len(seen) == 1
    assert calls.call_count == 1


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        pair(3, True)[0](torch.ones(1, 3, 1, 1))


def test_every_norm_of_a_supernet_is_fused(calls: Mock) -> None:
    supernet = accelerate(make_supernet()).to(**CHANNELS_LAST)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in supernet.modules())
    supernet(channels_last(2, 3, 37, 29))
    assert calls.call_count == norms


def test_names_and_places_are_those_of_a_sequential() -> None:
    fused, plain = pair(8, True)
    assert list(fused.state_dict()) == list(plain.state_dict())
    again = copy.deepcopy(fused)
    x = channels_last(4, 8, 6, 6)
    assert torch.equal(again(x), fused(x))
    with patch.object(fused_batch_norm, "kernels", lambda: None):
        torch.testing.assert_close(again(x), fused(x))
