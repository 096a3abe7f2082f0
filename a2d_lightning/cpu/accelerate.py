"""Replacement of torch's layers by faster ones for CPUs, in one pass over a finished network."""

import os
from typing import TypeVar

from torch import nn

from a2d_lightning.cpu.depthwise import DepthwiseConv5x5
from a2d_lightning.cpu.fused_batch_norm import FusedSequential
from a2d_lightning.cpu.kernels import SWITCH

M = TypeVar("M", bound=nn.Module)


def accelerate(network: M) -> M:
    """Change the class of each layer for which this package has a faster class.

    Weights, buffers, hooks and names in the state dict stay the same. Layers of subclasses are left alone. The new
    classes compute the same results as torch's up to rounding, and fall back to torch's code for other devices, other
    dtypes and tracing. Nothing changes if the environment variable :data:`~a2d_lightning.cpu.kernels.SWITCH` is ``0``.

    Args:
        network: Built from torch's own layers; changed in place.

    Returns:
        The same network.
    """
    if os.environ.get(SWITCH) == "0":
        return network
    for layer in network.modules():
        if type(layer) is nn.Sequential:
            layer.__class__ = FusedSequential
        elif type(layer) is nn.Conv2d and DepthwiseConv5x5.replaces(layer):
            layer.__class__ = DepthwiseConv5x5
    return network
