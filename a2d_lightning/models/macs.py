"""Multiply-accumulates by ptflops. The paper's 'FLOPs' can only be these."""

import copy

import torch
from ptflops import get_model_complexity_info
from torch import nn

from a2d_lightning.runtime.errors import SettingError


def count_macs(module: nn.Module, input_shape: torch.Size) -> int:
    """MACs of convolutions and linear layers for one input of ``input_shape`` (no batch dimension).

    ptflops' pytorch backend would count ReLU and pooling twice. Its aten backend counts additions of biases, too, so it
    gets a copy without them; it would leave hooks and evaluation mode behind in the original.

    Raises:
        SettingError: ptflops failed.
    """
    # in inference mode, which Lightning tests in, no operation reaches the counter
    with torch.inference_mode(False), torch.enable_grad():
        counted = copy.deepcopy(module).cpu().float()
        for layer in counted.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.bias = None
        macs, _ = get_model_complexity_info(
            counted,
            tuple(input_shape),
            as_strings=False,
            print_per_layer_stat=False,
            verbose=False,
            backend="aten",
        )
    if macs is None:
        raise SettingError(f"ptflops could not count {type(module).__name__} at input {tuple(input_shape)}.")
    return int(macs)
