"""Multiply-accumulates (MACs), counted by ptflops. The paper's 'FLOPs' can only be MACs."""

import copy

import torch
from ptflops import get_model_complexity_info
from torch import nn

from a2d_lightning.runtime.errors import SettingError


def count_macs(module: nn.Module, input_shape: torch.Size) -> int:
    """Count the MACs of convolutions and linear layers for one input.

    ptflops' pytorch backend would count ReLU and pooling twice. Its aten backend also counts bias additions, and leaves
    hooks and evaluation mode behind. The module is therefore copied, and the copy has no biases.

    Args:
        module: any network or layer.
        input_shape: shape of the input without the batch dimension.

    Raises:
        SettingError: If ptflops fails.
    """
    # the counter sees no operations in inference mode, in which Lightning runs tests
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
