"""Search schemes (Fig. 2): which rollouts update the weights theta, and which update alpha."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jsonargparse.typing import PositiveFloat
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import functional_call

from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.models.normalization import scratch_batch_norm_stats
from a2d_lightning.nas.supernet import Draw, Supernet
from a2d_lightning.runtime.distributed import rank_of_processes

Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class DrawnRollout:
    """A rollout ``[num_envs, T]`` and the draw under which it was collected."""

    rollout: TensorDict
    draw: Draw

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints."""
        return {"rollout": self.rollout.to_dict(), "draw": vars(self.draw), "shape": list(self.rollout.shape)}

    @staticmethod
    def from_dict(content: dict[str, Any], device: torch.device) -> "DrawnRollout":
        """Build a rollout on ``device`` from the result of :meth:`to_dict`."""
        rollout = TensorDict(content["rollout"], content["shape"], device=device)
        return DrawnRollout(rollout, Draw(**{name: x.to(device) for name, x in content["draw"].items()}))


class Search(Protocol):
    """The part of the search that a scheme uses."""

    agent: ActorCritic
    gumbel_generator: torch.Generator

    @property
    def supernet(self) -> Supernet:
        """Return the supernet, the agent's backbone."""

    def weights(self) -> list[nn.Parameter]:
        """Return theta."""

    def losses(self, rollout: TensorDict, student: nn.Module) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield L_total, a scalar, and the metrics to log for each minibatch of a rollout."""

    def step_weights(self, total: Tensor) -> Metrics:
        """Step theta down the gradient of ``total``, and return the metrics to log."""

    def step_alpha(self, total: Tensor) -> Metrics:
        """Step alpha down the gradient of ``total + lambda L_cost``, and return the metrics to log."""

    def step_both(self, total: Tensor) -> Metrics:
        """Step theta and alpha from one backward, and return the metrics to log."""


class AgentUnderDraw(nn.Module):
    """The agent under the draw of a rollout, optionally with other weights.

    Args:
        search: the search that owns the agent.
        draw: the rollout's draw.
    """

    def __init__(self, search: Search, draw: Draw) -> None:
        super().__init__()
        self.agent = search.agent
        self.supernet = search.supernet
        self.draw = draw
        self.replaced: dict[str, Tensor] = {}
        """Weights that replace the agent's, by parameter name in the agent."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and values as the agent does."""
        with self.supernet.using_draw(self.draw):
            if not self.replaced:  # functional_call walks through all modules: 4 % of the time of a single-path search
                return self.agent(pixels)
            with scratch_batch_norm_stats(self.agent):  # virtual weights must not change running statistics
                return functional_call(self.agent, self.replaced, (pixels,))


class AgentUnderFrameDraws(AgentUnderDraw):
    """The agent under a new draw for each frame in forwards with gradients, and under the rollout's draw in all others.

    Args:
        search: the search that owns the agent and the generator of draws.
        draw: the rollout's draw.
    """

    def __init__(self, search: Search, draw: Draw) -> None:
        super().__init__(search, draw)
        self.generator = search.gumbel_generator

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and values as the agent does."""
        if not torch.is_grad_enabled():
            return super().forward(pixels)
        # the generator must stay the same on all ranks: each draws for all of them, and takes its own part
        rank, processes = rank_of_processes()
        gumbel = self.supernet.new_gumbel(self.generator, processes, len(pixels))[rank]
        with self.supernet.using_draw(Draw(gumbel, self.draw.tau, self.draw.ranking)):
            logits, value = self.agent(pixels)
        return logits, value


class SearchScheme(ABC):
    """Rule by which rollouts give steps of theta and alpha."""

    rollouts_per_update: int
    """Number of rollouts, collected with the same weights, for one call of :meth:`learn`."""

    @abstractmethod
    def learn(self, search: Search, rollouts: Sequence[DrawnRollout]) -> Metrics:
        """Update on rollouts.

        Args:
            search: computes the losses and takes the steps.
            rollouts: ``rollouts_per_update`` of them.

        Returns:
            The metrics to log.
        """


class OneLevel(SearchScheme):
    """A2D's scheme (Eq. 9): min over theta and alpha together, from one backward on one rollout.

    theta gets L_total, alpha L_total + lambda L_cost. Without distillation, this is the paper's vanilla DNAS.
    """

    rollouts_per_update = 1
    student: type[AgentUnderDraw] = AgentUnderDraw

    def learn(self, search: Search, rollouts: Sequence[DrawnRollout]) -> Metrics:
        """Step theta and alpha on each minibatch of one rollout; see :class:`SearchScheme`."""
        (drawn,) = rollouts  # 1. of Alg. 1, numbered as in SearchModule
        metrics: Metrics = {}
        # 2. and 3. are computed by search.losses
        for total, found in search.losses(drawn.rollout, self.student(search, drawn.draw)):
            metrics |= found | search.step_both(total)  # 4. to 6.
        return metrics


class OneLevelPerFrame(OneLevel):
    """Eq. 9 with a Gumbel draw for each frame of an update. Not in the paper.

    One draw mixes the operators in the same way for all frames of an update. At least half of the noise in alpha's
    gradient then comes from the draw, and more frames do not average it out (docs/minatar.md). With a draw for each
    frame, this part falls with the number of frames. The acting policy still uses one draw per rollout. With PPO, so do
    the advantages, and the ratio accounts for the difference. Needs :class:`~a2d_lightning.nas.sampling.SoftSum`.
    """

    student = AgentUnderFrameDraws


class BiLevel(SearchScheme):
    """First-order DARTS (arXiv 1806.09055): alternate steps of alpha on one rollout and of theta on another.

    Both rollouts are collected with the same weights. theta gets half as many updates as with one level.
    """

    rollouts_per_update = 2

    def learn(self, search: Search, rollouts: Sequence[DrawnRollout]) -> Metrics:
        """Step alpha, then theta, in the order of DARTS; see :class:`SearchScheme`."""
        for_weights, for_alpha = rollouts
        metrics: Metrics = {}
        for total, found in self.alpha_losses(search, for_weights, for_alpha):
            metrics |= {f"alpha_{name}": value for name, value in found.items()} | search.step_alpha(total)
        for total, found in search.losses(for_weights.rollout, AgentUnderDraw(search, for_weights.draw)):
            metrics |= found | search.step_weights(total)
        return metrics

    def alpha_losses(
        self, search: Search, for_weights: DrawnRollout, for_alpha: DrawnRollout
    ) -> Iterator[tuple[Tensor, Metrics]]:
        """Compute L_total(theta, alpha) and the metrics of each minibatch of alpha's rollout."""
        return search.losses(for_alpha.rollout, AgentUnderDraw(search, for_alpha.draw))


class UnrolledBiLevel(BiLevel):
    """Second-order DARTS: alpha descends L_alpha(theta - xi grad_theta L_theta(theta, alpha), alpha).

    The virtual step is plain SGD. Autograd differentiates through it, where DARTS uses finite differences. With several
    processes, each takes the virtual step on its own rollout, and alpha's gradients are averaged.

    Args:
        virtual_learning_rate: xi, learning rate of the virtual step; DARTS uses that of the weights.
    """

    def __init__(self, virtual_learning_rate: PositiveFloat = 1e-3) -> None:
        self.virtual_learning_rate = float(virtual_learning_rate)

    def alpha_losses(
        self, search: Search, for_weights: DrawnRollout, for_alpha: DrawnRollout
    ) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield L_total and metrics of each minibatch of alpha's rollout, after a virtual step on one of theta's."""
        virtual = AgentUnderDraw(search, for_alpha.draw)
        after = search.losses(for_alpha.rollout, virtual)
        for total, _ in search.losses(for_weights.rollout, AgentUnderDraw(search, for_weights.draw)):
            virtual.replaced = self.virtual_weights(search, total)
            yield next(after)  # computed now, with the virtual weights set above

    def virtual_weights(self, search: Search, total: Tensor) -> dict[str, Tensor]:
        """Compute theta' = theta - xi grad_theta L_theta.

        Args:
            search: source of theta.
            total: L_theta, a scalar.

        Returns:
            theta' by parameter name in the agent, differentiable in alpha. Parameters without a gradient are left out.
        """
        trained = {id(parameter) for parameter in search.weights() if parameter.requires_grad}
        weights = {name: p for name, p in search.agent.named_parameters() if id(p) in trained}
        gradients = torch.autograd.grad(total, list(weights.values()), create_graph=True, allow_unused=True)
        return {
            name: weight - self.virtual_learning_rate * gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            if gradient is not None
        }
