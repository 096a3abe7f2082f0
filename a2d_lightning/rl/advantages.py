"""Estimators of a rollout's advantages delta_t and value targets, computed by TorchRL."""

from abc import ABC, abstractmethod

from torch import Tensor

from a2d_lightning.runtime.errors import SettingError


class AdvantageEstimator(ABC):
    """Estimator of a rollout's advantages and value targets."""

    @abstractmethod
    def __call__(
        self, gamma: float, value: Tensor, next_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the advantages and value targets of a rollout.

        Args:
            gamma: discount factor.
            value: V(s_t), float ``[num_envs, T]``.
            next_value: V(s_t+1), float ``[num_envs, T]``.
            reward: r_t, float ``[num_envs, T]``.
            done: bool ``[num_envs, T]``; the trace ends there. Includes ``terminated``.
            terminated: bool ``[num_envs, T]``; there is no bootstrap past it.

        Returns:
            Advantage and value target, each float ``[num_envs, T]``, not differentiable.
        """


class TDError(AdvantageEstimator):
    """The paper's advantage (Eq. 4): delta_t = r_t + gamma V(s_t+1) - V(s_t)."""

    def __call__(
        self, gamma: float, value: Tensor, next_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute Eq. 4; see :class:`AdvantageEstimator`."""
        from torchrl.objectives.value.functional import td0_return_estimate  # noqa: PLC0415 (slow to import)

        target = td0_return_estimate(gamma, next_value.detach()[..., None], reward[..., None], terminated[..., None])
        target = target[..., 0]
        return target - value.detach(), target


class GAE(AdvantageEstimator):
    """Generalized advantage estimation (arXiv 1506.02438): sum_k (gamma lambda)^k delta_t+k.

    Args:
        lmbda: lambda in [0, 1]; 0 gives :class:`TDError`, 1 gives :class:`NStep`.
    """

    def __init__(self, lmbda: float = 0.95) -> None:
        if not 0.0 <= lmbda <= 1.0:
            raise SettingError(f"advantage.lmbda: {lmbda} is outside [0, 1]; 0.95 is usual.")
        self.lmbda = lmbda

    def __call__(
        self, gamma: float, value: Tensor, next_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the generalized advantages; see :class:`AdvantageEstimator`."""
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
    """n-step returns with a bootstrap at the rollout's end: sum_k gamma^k r_t+k + gamma^n V(s_t+n) - V(s_t)."""

    def __init__(self) -> None:
        super().__init__(lmbda=1.0)
