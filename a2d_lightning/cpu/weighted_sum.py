"""The weighted sum of Eq. 10 in one pass on CPUs; adding term by term reads and writes the sum nine times."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from a2d_lightning.cpu.kernels import Kernels, addresses, are_plain, kernels


def weighted_sum(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """Return sum_i y_i O_i (Eq. 10).

    A C kernel (:mod:`a2d_lightning.cpu.kernels`) computes float32 sums in channels_last on CPUs, if all frames have the
    same weights.

    Args:
        weights: y, ``[terms]``, or ``[B, terms]`` for one mixture per frame.
        terms: O_i, each ``[B, C, h, w]``.

    Returns:
        The sum ``[B, C, h, w]``.
    """
    first = terms[0]
    fits = (
        weights.ndim == 1
        and weights.dtype == torch.float32
        and all(term.dtype == torch.float32 for term in terms)
        and are_plain(weights, *terms)
        and first.is_contiguous(memory_format=torch.channels_last)
        and all(term.stride() == first.stride() and term.shape == first.shape for term in terms)
    )
    lib = kernels() if fits else None
    if lib is None:
        return _term_by_term(weights, terms)
    if torch.is_grad_enabled():
        out: Tensor = _WeightedSum.apply(lib, weights, *terms)
        return out
    return _forward(lib, weights.contiguous(), terms)


def _term_by_term(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    first, *others = weights.unbind(-1) if weights.ndim == 1 else weights[..., None, None, None].unbind(1)
    out = first * terms[0]
    for weight, term in zip(others, terms[1:], strict=True):
        # addcmul avoids the full-size product that a separate multiplication would write and read again
        out = torch.addcmul(out, weight, term)
    return out


def _forward(lib: Kernels, weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    out = torch.empty_like(terms[0])
    elements = out.numel()
    lib.weighted_sum(elements, elements, len(terms), weights.data_ptr(), addresses(terms), out.data_ptr())
    return out


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lib: Kernels, weights: Tensor, *terms: Tensor) -> Tensor:
        weights = weights.contiguous()
        ctx.lib = lib
        ctx.save_for_backward(weights, *terms)
        return _forward(lib, weights, terms)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *terms = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward
            grad_weights = torch.stack([(gradient * term).sum() for term in terms])
            return None, grad_weights, *[weight * gradient for weight in weights]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        grad_weights, grad_terms = torch.empty_like(weights), [torch.empty_like(term) for term in terms]
        ctx.lib.weighted_sum_backward(
            gradient.numel(), gradient.numel(), len(terms), weights.data_ptr(), addresses(terms),
            gradient.data_ptr(), grad_weights.data_ptr(), addresses(grad_terms),
        )  # fmt: skip
        return None, grad_weights, *grad_terms
