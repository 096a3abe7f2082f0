"""MACs by ptflops against closed forms and, for whole backbones, against PyTorch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import BACKBONES, make_backbone
from a2d_lightning.runtime.errors import SettingError


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_costs_out_height_width_times_in_times_kernel(bias: bool) -> None:
    # 9x11 at stride 2, kernel 3, padding 1: 5x6. A bias is an addition, no multiply-accumulate.
    assert count_macs(nn.Conv2d(3, 8, 3, 2, 1, bias=bias), torch.Size((3, 9, 11))) == 5 * 6 * 8 * 3 * 3 * 3


def test_a_depthwise_convolution_costs_channels_times_kernel_only() -> None:
    assert count_macs(nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False), torch.Size((8, 7, 7))) == 7 * 7 * 8 * 5 * 5


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_costs_in_times_out(bias: bool) -> None:
    assert count_macs(nn.Linear(64, 256, bias=bias), torch.Size((64,))) == 64 * 256


def test_nothing_but_convolutions_and_linear_layers_counts() -> None:
    free = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert count_macs(free, torch.Size((3, 8, 8))) == 0
    assert count_macs(nn.Identity(), torch.Size((3, 8, 8))) == 0


def test_layers_add_up_and_a_layer_used_twice_counts_twice() -> None:
    layer = nn.Linear(5, 5, bias=False)
    assert count_macs(nn.Sequential(layer, nn.ReLU(), layer), torch.Size((5,))) == 2 * 25


@pytest.mark.parametrize("network", BACKBONES)
def test_pytorch_counts_two_for_each_multiply_accumulate(network: str) -> None:
    frame = (4, 42, 42)
    backbone = make_backbone(network, frame).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, *frame))
    assert counter.get_total_flops() == 2 * count_macs(backbone, torch.Size(frame))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_macs_are_the_same_where_no_gradient_is_kept(mode: type) -> None:
    # Lightning validates and tests under these
    with mode():
        assert count_macs(nn.Linear(64, 256, bias=False), torch.Size((64,))) == 64 * 256


def test_counting_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    count_macs(module, torch.Size((3, 8, 8)))
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SettingError, match="Linear") as refusal:
        count_macs(nn.Linear(5, 5), torch.Size((6,)))
    assert "\n" not in str(refusal.value)
