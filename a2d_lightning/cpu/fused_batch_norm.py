"""Batch norm fused with a following ReLU into one operation on CPUs.

Separate operations make fourteen passes over the activations in a training step, limited by memory bandwidth, and take
40 % of the time of a soft-sum search. The fused operation makes eight passes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.cpu.kernels import Kernels, are_plain, kernels


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that fuses conventional batch norm in train mode with a following ReLU.

    The C kernel (:mod:`a2d_lightning.cpu.kernels`) handles float32 in channels_last on CPUs, with or without a ReLU.
    All other inputs, and layers with hooks, are computed layer by layer. Names, weights and statistics are the same as
    in ``nn.Sequential``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order.

        Args:
            x: Input of the first layer.

        Returns:
            Output of the last layer.
        """
        layers = list(self)
        fused = False
        for position, layer in enumerate(layers):
            if fused:
                fused = False
            elif type(layer) is nn.BatchNorm2d and (lib := _kernels_for(layer, x)) is not None:
                following = layers[position + 1] if position + 1 < len(layers) else None
                fused = type(following) is nn.ReLU and not _hooked(following)
                x = _normalized(lib, layer, x, fused)
            else:
                x = layer(x)
        return x


def _kernels_for(norm: nn.BatchNorm2d, x: Tensor) -> Kernels | None:
    """Return the kernels, or None if they cannot compute ``norm(x)``."""
    fits = (
        norm.training
        and norm.momentum is not None
        and x.dtype == torch.float32 == norm.weight.dtype
        and x.dim() == 4
        and x.numel() > x.shape[1] == norm.num_features
        and are_plain(x, norm.weight, norm.bias)
        and x.is_contiguous(memory_format=torch.channels_last)
        and not _hooked(norm)
    )
    return kernels() if fits else None


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _normalized(lib: Kernels, norm: nn.BatchNorm2d, x: Tensor, relu: bool) -> Tensor:
    """Return ``norm(x)`` in train mode, or ``relu(norm(x))``; update the running statistics if they are tracked."""
    if norm.track_running_stats:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
    if torch.is_grad_enabled():
        out: Tensor = _BatchNorm.apply(x, norm.weight, norm.bias, lib, norm, relu)
        return out
    return _forward(x, norm.weight, norm.bias, lib, norm, relu)[0]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, lib: Kernels, norm: nn.BatchNorm2d, relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the output, and the batch's mean and inverse standard deviation, ``[2, C]``."""
    channels = norm.num_features
    elements = x.numel()
    moved: tuple[int | None, int | None] = (None, None)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        moved = (norm.running_mean.data_ptr(), norm.running_var.data_ptr())
    out, statistics = torch.empty_like(x), weight.new_empty(2, channels)
    lib.batch_norm(
        elements, elements // channels, channels, relu, norm.eps, norm.momentum, x.data_ptr(), weight.data_ptr(),
        bias.data_ptr(), *moved, statistics.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out, statistics


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, lib: Kernels, norm: nn.BatchNorm2d, relu: bool
    ) -> Tensor:
        out, statistics = _forward(x, weight, bias, lib, norm, relu)
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.lib, ctx.eps, ctx.relu = lib, norm.eps, relu
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, statistics = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward
            out = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
            out = out.relu() if ctx.relu else out
            return *torch.autograd.grad(out, (x, weight, bias), gradient, create_graph=True), None, None, None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        grad_x, grad_affine = torch.empty_like(x), torch.empty_like(statistics)
        ctx.lib.batch_norm_backward(
            x.numel(), x.numel() // len(weight), len(weight), ctx.relu, x.data_ptr(), weight.data_ptr(),
            bias.data_ptr(), statistics.data_ptr(), gradient.data_ptr(), grad_x.data_ptr(), grad_affine.data_ptr(),
        )  # fmt: skip
        return grad_x, *grad_affine, None, None, None
