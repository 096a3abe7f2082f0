"""Layers with quicker kernels in place of torch's, in one pass over a finished network."""

import os
from typing import TypeVar

from torch import nn

from a2d_lightning.cpu.depthwise import DepthwiseConv5x5
from a2d_lightning.cpu.fused_batch_norm import FusedSequential
from a2d_lightning.cpu.kernels import SWITCH
from a2d_lightning.cpu.pointwise import PointwiseConv

M = TypeVar("M", bound=nn.Module)


def accelerate(network: M) -> M:
    """Give layers of ``network`` that this package has quicker code for the class with that code, and return it.

    Only the classes of layers change: weights, buffers, hooks and names in the state dict stay. A layer of a subclass
    is left alone. The new classes compute what torch's do, up to rounding, and fall back to torch's own code wherever
    they do not fit (other devices, other types, tracing). Nothing is changed where the environment variable
    :data:`~a2d_lightning.cpu.kernels.SWITCH` is ``0``.

    Args:
        network: built from plain layers of torch.
    """
    if os.environ.get(SWITCH) == "0":
        return network
    for layer in network.modules():
        if type(layer) is nn.Sequential:
            layer.__class__ = FusedSequential
        elif type(layer) is nn.Conv2d and PointwiseConv.replaces(layer):
            layer.__class__ = PointwiseConv
        elif type(layer) is nn.Conv2d and DepthwiseConv5x5.replaces(layer):
            layer.__class__ = DepthwiseConv5x5
    return network
