"""Supernets small enough to be looked into, and networks and costs that are worked out without their help."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import count_parameters
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.sampling import Sampling
from a2d_lightning.nas.search_space import Plan, operator_macs
from a2d_lightning.nas.supernet import MixedCell, Supernet

PLAN = Plan((2, 2, 1), (4, 6, 5))
FRAME = (3, 37, 29)  # odd all the way: 19x15, 10x8, 5x4


def make_supernet(
    plan: Plan = PLAN, seed: int = 0, frame: tuple[int, int, int] = FRAME, sampling: Sampling | None = None
) -> Supernet:
    """A supernet as if it had been trained, under a draw."""
    torch.manual_seed(seed)
    supernet = Supernet(plan, frame, sampling)
    with torch.no_grad():
        supernet.alpha_logits.normal_()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            # as if it had been trained: no norm is the identity
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    supernet.draw(torch.Generator().manual_seed(seed))
    return supernet


def decide(supernet: Supernet, seed: int) -> tuple[str, ...]:
    """One-hot alpha at random operators: the others' shares underflow to 0."""
    chosen = torch.randint(len(tuple(OPERATORS)), (len(supernet.cells),), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        supernet.alpha_logits.fill_(-1e3)
        supernet.alpha_logits[torch.arange(len(chosen)), chosen] = 1e3
        supernet.tau.fill_(0.05)
    return tuple(tuple(OPERATORS)[i] for i in chosen)


def random_pixels(batch: int, frame: tuple[int, int, int] = FRAME) -> Tensor:
    """Frames uint8, the same ones each time."""
    return torch.randint(256, (batch, *frame), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def macs_of(operators: Sequence[str], plan: Plan = PLAN, frame: tuple[int, int, int] = FRAME) -> int:
    """MACs of a network that is really built and counted as a whole."""
    return count_macs(Architecture(tuple(operators), plan, frame, 0, 0).build(frame), torch.Size(frame))


def eq11(alpha_logits: Tensor, gumbel: Tensor, tau: Tensor | float) -> Tensor:
    """y, written out: alpha_i^(1/tau) exp(g_i / tau), normalized in each cell."""
    alpha = alpha_logits.exp() / alpha_logits.exp().sum(-1, keepdim=True)
    terms = alpha ** (1 / tau) * (gumbel / tau).exp()
    return terms / terms.sum(-1, keepdim=True)


def mixed_by_hand(supernet: Supernet, frames: Tensor, weights: Tensor, learning: Tensor) -> Tensor:
    """Features of a supernet that computes every operator: sum_i w_i O_i in each cell.

    Args:
        supernet: whose layers.
        frames: float ``[B, stack, h, w]``.
        weights: w, ``[cells, operators]``.
        learning: bool ``[cells, operators]``, the operators that a gradient goes through.
    """
    x, cell = frames, 0
    for layer in supernet.body:
        if isinstance(layer, MixedCell):
            outputs = [operator(x) for operator in layer.operators]
            kept = [out if learns else out.detach() for out, learns in zip(outputs, learning[cell], strict=True)]
            x = sum(w * out for w, out in zip(weights[cell], kept, strict=True))
            cell += 1
        else:
            x = layer(x)
    return x


def counted(operators: tuple[str, ...], plan: Plan, frame_shape: FrameShape) -> Architecture:
    """An architecture with the MACs and parameters of its operators, as files must have them."""
    table, fixed = operator_macs(plan, frame_shape)
    names = list(OPERATORS)
    macs = fixed + sum(int(table[cell, names.index(name)]) for cell, name in enumerate(operators))
    draft = Architecture(operators, plan, frame_shape, macs, 0)
    return replace(draft, parameters=count_parameters(draft.build(frame_shape)))
