"""The 1x1 convolution is ``nn.Conv2d``'s, by whichever way it is computed."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from a2d_lightning.cpu.accelerate import accelerate
from a2d_lightning.cpu.pointwise import PointwiseConv
from a2d_lightning.models.macs import count_macs

LAST = torch.channels_last


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    layer = accelerate(nn.Conv2d(inputs, outputs, 1, bias=False))
    assert isinstance(layer, PointwiseConv)
    return layer


def pair(inputs: int, outputs: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """One, and torch's in double precision with the same weights."""
    torch.manual_seed(0)
    layer, plain = pointwise(inputs, outputs).to(memory_format=LAST), nn.Conv2d(inputs, outputs, 1, bias=False)
    plain.load_state_dict(layer.state_dict())
    return layer, plain.double()


def convolves(layer: nn.Module, x: Tensor) -> bool:
    """Whether torch's convolution computes ``layer(x)``."""
    with patch.object(torch.nn.functional, "conv2d", wraps=torch.nn.functional.conv2d) as convolution:
        layer(x)
    return bool(convolution.called)


@pytest.mark.parametrize("shape", [(16, 12, 21, 21), (1, 12, 1, 1), (3, 12, 5, 7)])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_it_is_the_same_product(shape: tuple[int, ...], context: Any) -> None:
    layer, plain = pair(12, 20)
    x = torch.randn(*shape).to(memory_format=LAST)
    with context():
        out = layer(x)
        assert not convolves(layer, x)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(out.double(), plain(x.double()), rtol=1e-5, atol=1e-6)


def test_updates_are_left_to_torch() -> None:
    layer, plain = pair(12, 20)
    x = torch.randn(4, 12, 6, 6).to(memory_format=LAST)
    assert convolves(layer, x)
    layer(x).pow(2).sum().backward()
    plain(x.double()).pow(2).sum().backward()
    torch.testing.assert_close(layer.weight.grad.double(), plain.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "layout", "context"),
    [
        (torch.float64, LAST, nullcontext()),
        (torch.float32, torch.contiguous_format, nullcontext()),
        (torch.float32, LAST, torch.autocast("cpu", torch.bfloat16)),
    ],
    ids=["double", "contiguous", "autocast"],
)
def test_what_does_not_fit_goes_the_usual_way(dtype: torch.dtype, layout: torch.memory_format, context: Any) -> None:
    layer = pointwise(12, 20).to(dtype)
    with torch.no_grad(), context:
        assert convolves(layer, torch.randn(4, 12, 6, 6, dtype=dtype).to(memory_format=layout))


def test_traces_and_compilers_see_a_convolution() -> None:
    layer = pointwise(4, 8)
    x = torch.randn(2, 4, 3, 3).to(memory_format=LAST)
    with torch.no_grad():
        assert "convolution" in str(torch.jit.trace(layer, x, check_trace=False).inlined_graph)
        exported = torch.export.export(layer, (x,))
    assert any("conv" in str(node.target) for node in exported.graph.nodes)


def test_its_macs_are_a_convolutions() -> None:
    assert count_macs(pointwise(12, 20), torch.Size((12, 6, 6))) == 12 * 20 * 36
