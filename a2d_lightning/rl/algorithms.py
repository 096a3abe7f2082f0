"""What a rollout teaches the actor: A2C's one update (the paper's), or PPO's several, chosen in YAML."""

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
"""V(s_t) and V(s_t+1), each ``[n, T]``, to (advantage, value target), each ``[n, T]``."""


@dataclass
class Minibatch:
    """Rows of a rollout, with what the student says of them now. N rows, A actions."""

    logits: Tensor  # [N, A], with gradient
    value: Tensor  # [N], with gradient
    action: Tensor  # int64 [N]
    log_prob_acted: Tensor  # [N], of the policy that acted
    advantage: Tensor  # [N]
    value_target: Tensor  # [N]
    rows: Tensor  # int64 [N], positions in the flattened rollout [n * T]


class Algorithm(ABC):
    """How a rollout becomes updates. The caller steps the optimizers after each minibatch that is yielded."""

    @abstractmethod
    def check(self, student: nn.Module, num_envs: int, rollout_length: int) -> None:
        """Whether rollouts of this size can be learned from.

        Raises:
            SettingError: they cannot.
        """

    @abstractmethod
    def minibatches(self, student: nn.Module, rollout: TensorDict, estimate: Estimate) -> Iterator[Minibatch]:
        """Minibatches to update on, one after another."""

    @abstractmethod
    def policy_loss(self, batch: Minibatch) -> Tensor:
        """The actor's loss on one minibatch, a scalar."""


class A2C(Algorithm):
    """Make one update on the whole rollout with Eq. 3, by one joint forward of its T+1 observations."""

    def check(self, student: nn.Module, num_envs: int, rollout_length: int) -> None:
        """Any rollout will do."""

    def minibatches(self, student: nn.Module, rollout: TensorDict, estimate: Estimate) -> Iterator[Minibatch]:
        """Yields the whole rollout once."""
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
        """Eq. 3."""
        return losses.policy_loss(batch.logits, batch.action, batch.advantage)


class PPO(Algorithm):
    """Several epochs of clipped updates a rollout (arXiv 1707.06347), advantages normalized per minibatch.

    Args:
        epochs: passes over the rollout.
        num_minibatches: updates a pass.
        clip_epsilon: range of the ratio around 1.
    """

    def __init__(self, epochs: int = 3, num_minibatches: int = 8, clip_epsilon: float = 0.1) -> None:
        for name, number in (("epochs", epochs), ("num_minibatches", num_minibatches), ("clip_epsilon", clip_epsilon)):
            if number <= 0:
                raise SettingError(f"algorithm.{name}: {number} must be positive.")
        self.epochs = epochs
        self.num_minibatches = num_minibatches
        self.clip_epsilon = clip_epsilon

    def minibatches(self, student: nn.Module, rollout: TensorDict, estimate: Estimate) -> Iterator[Minibatch]:
        """Yields ``epochs * num_minibatches`` random parts; advantages and targets stay those of the first forward."""
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
        """See :class:`Algorithm`."""
        units = len(_units(student, num_envs, rollout_length))
        if self.num_minibatches > units:
            raise SettingError(
                f"algorithm.num_minibatches: {self.num_minibatches} parts of {units} steps; use fewer, or a longer "
                "data.rollout_length."
            )

    def _shuffled(self, student: nn.Module, rollout: TensorDict) -> tuple[Tensor, ...]:
        """Rows of each minibatch."""
        self.check(student, *rollout.shape)
        units = _units(student, *rollout.shape).to(rollout["action"].device)
        order = torch.randperm(len(units), device=units.device)
        return tuple(units[part].flatten() for part in order.tensor_split(self.num_minibatches))

    def policy_loss(self, batch: Minibatch) -> Tensor:
        """The clipped objective."""
        return losses.ppo_policy_loss(
            batch.logits, batch.action, batch.log_prob_acted, batch.advantage, self.clip_epsilon
        )


def _units(student: nn.Module, num_envs: int, rollout_length: int) -> Tensor:
    """Rows that stay together in minibatches, ``[units, rows]``: a time step's where it is normalized together."""
    rows = torch.arange(num_envs * rollout_length)
    return rows.view(num_envs, rollout_length).T if normalizes_by_time_step(student) else rows[:, None]


def joint_forward(network: nn.Module, rollout: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and values of a rollout, and the values that follow, in one forward.

    The T+1 observations are the T that were acted on and the last one's successor; a game that was truncated inside
    the rollout adds its true last observation, since the next one kept is already of a new game.

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
    # time-major, since the frames of a time step acted together; then the observations that only values are needed of
    acted_on = rollout["pixels"].transpose(0, 1).flatten(0, 1)  # [T n, ...]
    with time_steps(network, num_envs, length + 1):
        logits, values = network(torch.cat([acted_on, following[:, -1], following[truncated_inside]]))
    acted = num_envs * length
    value = values[:acted].view(length, num_envs).T
    next_value = torch.cat([value[:, 1:], values[acted : acted + num_envs, None]], dim=1)
    next_value = next_value.masked_scatter(truncated_inside, values[acted + num_envs :])
    return logits[:acted].view(length, num_envs, -1).transpose(0, 1), value, next_value
