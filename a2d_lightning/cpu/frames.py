"""Conversion of byte frames to network input: floats in [0, 1] in channels_last, in one pass on CPUs."""

import torch
from torch import Tensor

from a2d_lightning.cpu.kernels import are_plain, kernels


def unit_frames(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``pixels / 255`` in channels_last.

    On CPUs, a C kernel (:mod:`a2d_lightning.cpu.kernels`) computes float32 results, bit for bit the same as torch's.

    Args:
        pixels: uint8 ``[B, stack, h, w]``.
        dtype: Floating-point dtype of the result.

    Returns:
        ``[B, stack, h, w]`` with values in [0, 1].
    """
    fits = pixels.dtype == torch.uint8 and dtype == torch.float32 and are_plain(pixels) and pixels.is_contiguous()
    lib = kernels() if fits else None
    if lib is None:
        return pixels.to(dtype, memory_format=torch.channels_last) / 255.0
    out = torch.empty(pixels.shape, dtype=dtype, memory_format=torch.channels_last)
    images, stack, height, width = pixels.shape
    lib.unit_frames(out.numel(), images, stack, height * width, pixels.data_ptr(), out.data_ptr())
    return out
