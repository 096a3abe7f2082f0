"""Kinds of normalization, most of which give the acting policy and the updated policy the same outputs.

Acting processes the n frames of one time step, an update the n(T+1) frames of a rollout. Conventional batch norm
normalizes each by its own batch, which gives two policies. Every other kind here gives one, up to rounding. Networks in
evaluations and exports normalize by running statistics or without batch statistics, so they play the same at any batch
size.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Normalization = Literal["batch", "running", "per_step", "group", "none"]

M = TypeVar("M", bound=nn.Module)

CHANNELS_PER_GROUP = 8


class RunningBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by running statistics, in train mode too.

    The statistics are not differentiated, and change between rollouts only: :func:`update_running_stats` updates them
    with the batches of a rollout's updates.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.seen: list[Tensor] = []  # (mean, variance) of each batch since the last update, float [2, C]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x ``[B, C, h, w]``."""
        if self.training and self.track_running_stats:
            with torch.no_grad():
                # torch.var_mean is several times slower on channels_last
                mean = x.mean((0, 2, 3))
                count = x.numel() // x.shape[1]
                variance = (x - mean[:, None, None]).square().mean((0, 2, 3)) * (count / (count - 1))
                self.seen.append(torch.stack([mean, variance]))
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class PerStepBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by the batch of one time step: frames that acted together are normalized together in updates.

    :func:`time_steps` declares the time steps of a batch. Without it, the whole batch is one time step, as in acting.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.num_envs = 0
        self.num_steps = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x ``[B, C, h, w]``."""
        if not self.training or self.num_envs == 0:
            return super().forward(x)
        running_mean, running_var = _statistics(self)
        momentum = _momentum(self)
        moved = (running_mean, running_var) if self.track_running_stats else (None, None)
        acted = self.num_envs * self.num_steps
        parts = [
            F.batch_norm(step, moved[0], moved[1], self.weight, self.bias, True, momentum / self.num_steps, self.eps)
            for step in x[:acted].split(self.num_envs)
        ]
        if len(x) > acted:  # last frames of truncated games, which were not acted on
            # copies, because a second forward before the backward changes the statistics
            still = running_mean.clone(), running_var.clone()
            parts.append(F.batch_norm(x[acted:], still[0], still[1], self.weight, self.bias, False, 0.0, self.eps))
        return torch.cat(parts)


class ChannelAffine(nn.Module):
    """Batch norm's scale and shift, without statistics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift x ``[B, C, h, w]``."""
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


_LAYERS: dict[Normalization, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "running": RunningBatchNorm2d,
    "per_step": PerStepBatchNorm2d,
    "group": lambda channels: nn.GroupNorm(channels // math.gcd(channels, CHANNELS_PER_GROUP), channels),
    "none": ChannelAffine,
}


def with_normalization(network: M, normalization: Normalization) -> M:
    """Replace every batch norm of a new network with a fresh layer of another kind, in place, and return the network.

    Args:
        network: newly built, with conventional batch norm (the paper's).
        normalization: ``batch`` (the paper's), ``running`` (running statistics, in training too), ``per_step`` (the
            batch of one time step), ``group`` (groups of 8 channels, or of the largest power of 2 that divides them),
            ``none`` (a scale and a shift).
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _LAYERS[normalization](child.num_features))
    return network


def inference_normalization(normalization: Normalization) -> Normalization:
    """Return the kind to use in inference: ``batch`` for ``running`` and ``per_step``, otherwise the same kind.

    All kinds of batch norm evaluate the same weights in the same way, by running statistics.
    """
    return "batch" if normalization in ("running", "per_step") else normalization


def normalizes_by_time_step(network: nn.Module) -> bool:
    """Return whether minibatches must keep the frames of a time step together."""
    return any(isinstance(layer, PerStepBatchNorm2d) for layer in network.modules())


@contextmanager
def time_steps(network: nn.Module, num_envs: int, num_steps: int) -> Iterator[None]:
    """Declare the time steps of the batches in this context.

    Args:
        network: its per-step layers are set.
        num_envs: frames of a time step.
        num_steps: time steps; the first ``num_steps * num_envs`` frames of a batch, in time-major order.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, PerStepBatchNorm2d)]
    for layer in layers:
        layer.num_envs, layer.num_steps = num_envs, num_steps
    try:
        yield
    finally:
        for layer in layers:
            layer.num_envs = layer.num_steps = 0


@contextmanager
def frozen_batch_norm_statistics(network: nn.Module) -> Iterator[None]:
    """Keep batch norm in train mode from updating its running statistics in this context.

    Batch norm normalizes as before. Rollouts are collected in this context, so the running statistics, which evaluation
    uses, come from the learner's batches only.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def scratch_batch_norm_stats(network: nn.Module) -> Iterator[None]:
    """Let batch norm work on copies of its running statistics in this context, and discard the copies.

    For forwards whose batches must not count, or have already counted.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [dict(norm.named_buffers()) for norm in norms]
    seen = [(norm, norm.seen) for norm in norms if isinstance(norm, RunningBatchNorm2d)]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    for layer, _ in seen:
        layer.seen = []
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
        for layer, batches in seen:
            layer.seen = batches


@torch.no_grad()
def update_running_stats(network: nn.Module, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Update the statistics of ``running`` layers with the batches since the last call.

    Args:
        network: any network.
        mean_over_ranks: float ``[N]`` to its mean over all processes, which keeps the policy the same on all of them.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, RunningBatchNorm2d) and layer.seen]
    if not layers:
        return
    seen = mean_over_ranks(torch.cat([torch.stack(layer.seen).mean(0).flatten() for layer in layers]))
    for layer, statistics in zip(layers, seen.split([2 * layer.num_features for layer in layers]), strict=True):
        mean, variance = statistics.view(2, -1)
        running_mean, running_var = _statistics(layer)
        running_mean.lerp_(mean, _momentum(layer))
        running_var.lerp_(variance, _momentum(layer))
        layer.seen.clear()


@torch.no_grad()
def recalibrate(network: nn.Module, batches: list[Tensor]) -> None:
    """Set the running statistics of conventional batch norm to their means over ``batches``.

    Leaves the network in evaluation mode.

    Args:
        network: called with each batch.
        batches: inputs of the network, at least one.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    network.train()
    for batch in batches:
        network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _statistics(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _momentum(layer: nn.BatchNorm2d) -> float:
    assert layer.momentum is not None
    return layer.momentum
