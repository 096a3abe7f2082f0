"""Algorithms that make updates from a rollout: A2C with one (the paper's), or PPO with several."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from a2d_lightning.models.normalization import normalizes_by_time_step, time_steps
from a2d_lightning.rl import losses
from a2d_lightning.runtime.errors import SettingError

Estimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function of V(s_t) and V(s_t+1), each ``[n, T]``, to (advantage, value target), each ``[n, T]``."""


@dataclass
class Minibatch:
    """Time steps of a rollout, with the student's current outputs. N rows, A actions."""

    logits: Tensor  # [N, A], with gradient
    value: Tensor  # [N], with gradient
    action: Tensor  # int64 [N]
    log_prob_acted: Tensor  # [N], of the acting policy
    advantage: Tensor  # [N]
    value_target: Tensor  # [N]
    rows: Tensor  # int64 [N], positions in the flattened rollout [n * T]


class Algorithm(ABC):
    """Division of a rollout into minibatches, and the actor's loss on them.

    The caller steps the optimizers after each minibatch that is yielded.
    """

    @abstractmethod
    def check(self, student: nn.Module, num_envs: int, rollout_length: int) -> None:
        """Check that the algorithm can use rollouts of this size.

        Args:
            student: network that is trained; its normalization may keep a time step's rows together.
            num_envs: environments of a rollout.
            rollout_length: time steps of a rollout, T.

        Raises:
            SettingError: If they are too small.
        """

    @abstractmethod
    def minibatches(self, student: nn.Module, rollout: TensorDict, estimate: Estimate) -> Iterator[Minibatch]:
        """Yield the minibatches to update on.

        Args:
            student: pixels to (logits, values).
            rollout: ``[num_envs, T]``.
            estimate: estimator of the advantages and value targets; called once.
        """

    @abstractmethod
    def policy_loss(self, batch: Minibatch) -> Tensor:
        """Compute the actor's loss on one minibatch, a scalar."""


class A2C(Algorithm):
    """One update per rollout with Eq. 3, from one joint forward of the rollout's T+1 observations."""

    def check(self, student: nn.Module, num_envs: int, rollout_length: int) -> None:
        """Accept rollouts of any size."""

    def minibatches(self, student: nn.Module, rollout: TensorDict, estimate: Estimate) -> Iterator[Minibatch]:
        """Yield the whole rollout as one minibatch."""
        logits, value, next_value = joint_forward(student, rollout)
        advantage, target = estimate(value, next_value)
        yield Minibatch(
            logits=logits.flatten(0, 1),
            value=value.flatten(),
            action=rollout["action"].flatten(),
            log_prob_acted=rollout["log_prob"].flatten(),
            advantage=advantage.flatten(),
            value_target=target.flatten(),
            rows=torch.arange(value.numel(), device=value.device),
        )

    def policy_loss(self, batch: Minibatch) -> Tensor:
        """Compute Eq. 3."""
        return losses.policy_loss(batch.logits, batch.action, batch.advantage)


class PPO(Algorithm):
    """Several epochs of clipped updates per rollout (arXiv 1707.06347), with advantages normalized per minibatch.

    Args:
        epochs: passes over each rollout.
        num_minibatches: updates per pass.
        clip_epsilon: eps; the probability ratio is clipped to [1 - eps, 1 + eps].
    """

    def __init__(self, epochs: int = 3, num_minibatches: int = 8, clip_epsilon: float = 0.1) -> None:
        for name, number in (("epochs", epochs), ("num_minibatches", num_minibatches), ("clip_epsilon", clip_epsilon)):
            if number <= 0:
                raise SettingError(f"algorithm.{name}: {number} must be positive.")
        self.epochs = epochs
        self.num_minibatches = num_minibatches
        self.clip_epsilon = clip_epsilon

    def minibatches(self, student: nn.Module, rollout: TensorDict, estimate: Estimate) -> Iterator[Minibatch]:
        """Yield ``epochs * num_minibatches`` random minibatches.

        The advantages and targets of all of them come from one forward before the first update.
        """
        with torch.no_grad():
            _, value, next_value = joint_forward(student, rollout)
        advantage, target = (x.flatten() for x in estimate(value, next_value))
        num_envs, length = rollout.shape
        for _ in range(self.epochs):
            for rows in self._shuffled(student, rollout):
                with time_steps(student, num_envs, len(rows) // num_envs):
                    logits, value = student(rollout["pixels"][rows // length, rows % length])
                chosen = advantage[rows]
                yield Minibatch(
                    logits=logits,
                    value=value,
                    action=rollout["action"].flatten()[rows],
                    log_prob_acted=rollout["log_prob"].flatten()[rows],
                    advantage=(chosen - chosen.mean()) / (chosen.std(correction=0) + 1e-8),
                    value_target=target[rows],
                    rows=rows,
                )

    def check(self, student: nn.Module, num_envs: int, rollout_length: int) -> None:
        """Check that a rollout can be divided into ``num_minibatches``; see :class:`Algorithm`."""
        units = len(_units(student, num_envs, rollout_length))
        if self.num_minibatches > units:
            raise SettingError(
                f"algorithm.num_minibatches: {self.num_minibatches} minibatches cannot be made of {units} steps; use "
                "fewer, or raise data.rollout_length."
            )

    def _shuffled(self, student: nn.Module, rollout: TensorDict) -> tuple[Tensor, ...]:
        """Divide the rollout at random, and return the rows of each minibatch."""
        self.check(student, *rollout.shape)
        units = _units(student, *rollout.shape).to(rollout["action"].device)
        order = torch.randperm(len(units), device=units.device)
        return tuple(units[part].flatten() for part in order.tensor_split(self.num_minibatches))

    def policy_loss(self, batch: Minibatch) -> Tensor:
        """Compute the clipped objective, negated."""
        return losses.ppo_policy_loss(
            batch.logits, batch.action, batch.log_prob_acted, batch.advantage, self.clip_epsilon
        )


def _units(student: nn.Module, num_envs: int, rollout_length: int) -> Tensor:
    """Return the groups of rows that stay together in minibatches, int64 ``[units, rows]``.

    A group is a time step if the student normalizes by time step, otherwise a single row.
    """
    rows = torch.arange(num_envs * rollout_length)
    return rows.view(num_envs, rollout_length).T if normalizes_by_time_step(student) else rows[:, None]


def joint_forward(network: nn.Module, rollout: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the logits and values of a rollout, and the values of the next states, in one forward.

    The T+1 observations are the T that were acted on and the successor of the last one. For a game that was truncated
    inside the rollout, its true last observation is added, because the next observation acted on belongs to a new game.

    Args:
        network: pixels ``[B, ...]`` to (logits ``[B, A]``, values ``[B]``).
        rollout: ``[n, T]`` with ``pixels`` and ``next`` (``pixels``, ``done``, ``terminated``).

    Returns:
        logits ``[n, T, A]``, V(s_t) ``[n, T]``, V(s_t+1) ``[n, T]`` (meaningless where terminated).
    """
    num_envs, length = rollout.shape
    following = rollout["next", "pixels"]
    truncated_inside: Tensor = rollout["next", "done"] & ~rollout["next", "terminated"]  # [n, T]
    truncated_inside[:, -1] = False
    # time-major, because per-step normalization splits the batch by time step; value-only observations come last
    acted_on = rollout["pixels"].transpose(0, 1).flatten(0, 1)  # [T n, ...]
    with time_steps(network, num_envs, length + 1):
        logits, values = network(torch.cat([acted_on, following[:, -1], following[truncated_inside]]))
    acted = num_envs * length
    value = values[:acted].view(length, num_envs).T
    next_value = torch.cat([value[:, 1:], values[acted : acted + num_envs, None]], dim=1)
    next_value = next_value.masked_scatter(truncated_inside, values[acted + num_envs :])
    return logits[:acted].view(length, num_envs, -1).transpose(0, 1), value, next_value
