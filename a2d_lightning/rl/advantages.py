"""Advantages delta_t and value targets of a rollout: one class per estimator, chosen in YAML; TorchRL computes."""

from abc import ABC, abstractmethod

from torch import Tensor

from a2d_lightning.runtime.errors import SettingError


class AdvantageEstimator(ABC):
    """Turns a rollout's values into advantages and value targets.

    All arguments are ``[num_envs, T]``; ``reward`` float, ``value`` V(s_t), ``next_value`` V(s_t+1), ``terminated``
    bool (no bootstrap past it), ``done`` bool (the trace is cut there; includes ``terminated``). Returns
    ``(advantage, value_target)``, each float ``[num_envs, T]``, not differentiable.
    """

    @abstractmethod
    def __call__(
        self, gamma: float, value: Tensor, next_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""


class TDError(AdvantageEstimator):
    """Eq. 4: delta_t = r_t + gamma V(s_t+1) - V(s_t)."""

    def __call__(
        self, gamma: float, value: Tensor, next_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`AdvantageEstimator`."""
        from torchrl.objectives.value.functional import td0_return_estimate  # noqa: PLC0415 (slow to import)

        target = td0_return_estimate(gamma, next_value.detach()[..., None], reward[..., None], terminated[..., None])
        target = target[..., 0]
        return target - value.detach(), target


class GAE(AdvantageEstimator):
    """Generalized advantage estimation (arXiv 1506.02438): sum_k (gamma lambda)^k delta_t+k.

    Args:
        lmbda: lambda in [0, 1]; 0 is :class:`TDError`, 1 is :class:`NStep`.
    """

    def __init__(self, lmbda: float = 0.95) -> None:
        if not 0.0 <= lmbda <= 1.0:
            raise SettingError(f"advantage.lmbda: {lmbda} is outside [0, 1]; 0.95 is usual.")
        self.lmbda = lmbda

    def __call__(
        self, gamma: float, value: Tensor, next_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`AdvantageEstimator`."""
        from torchrl.objectives.value.functional import generalized_advantage_estimate  # noqa: PLC0415 (slow to import)

        advantage, target = generalized_advantage_estimate(
            gamma,
            self.lmbda,
            value.detach()[..., None],
            next_value.detach()[..., None],
            reward[..., None],
            done[..., None],
            terminated[..., None],
        )
        return advantage[..., 0], target[..., 0]


class NStep(GAE):
    """n-step returns up to the rollout's end, bootstrapped there: sum_k gamma^k r_t+k + gamma^n V(s_t+n) - V(s_t)."""

    def __init__(self) -> None:
        super().__init__(lmbda=1.0)
