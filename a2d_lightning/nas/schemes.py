"""Search schemes (Fig. 2): which rollouts move the weights theta, which alpha. Classes, chosen in YAML."""

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
    """A rollout ``[num_envs, T]`` and the draw that acted on it."""

    rollout: TensorDict
    draw: Draw

    def to_dict(self) -> dict[str, Any]:
        """Plain tensors, for checkpoints."""
        return {"rollout": self.rollout.to_dict(), "draw": vars(self.draw), "shape": list(self.rollout.shape)}

    @staticmethod
    def from_dict(content: dict[str, Any], device: torch.device) -> "DrawnRollout":
        """The inverse of :meth:`to_dict`."""
        rollout = TensorDict(content["rollout"], content["shape"], device=device)
        return DrawnRollout(rollout, Draw(**{name: x.to(device) for name, x in content["draw"].items()}))


class Search(Protocol):
    """What a scheme asks of the search."""

    agent: ActorCritic
    gumbel_generator: torch.Generator

    @property
    def supernet(self) -> Supernet:
        """The agent's backbone."""

    def weights(self) -> list[nn.Parameter]:
        """theta."""

    def losses(self, rollout: TensorDict, student: nn.Module) -> Iterator[tuple[Tensor, Metrics]]:
        """L_total of each minibatch of a rollout."""

    def step_weights(self, total: Tensor) -> Metrics:
        """theta down the gradient of ``total``."""

    def step_alpha(self, total: Tensor) -> Metrics:
        """alpha down the gradient of ``total + lambda L_cost``."""

    def step_both(self, total: Tensor) -> Metrics:
        """Both from one backward."""


class AgentUnderDraw(nn.Module):
    """The agent as it acted on a rollout: under its draw; with other weights where they are given.

    Args:
        search: whose agent.
        draw: of the rollout.
    """

    def __init__(self, search: Search, draw: Draw) -> None:
        super().__init__()
        self.agent = search.agent
        self.supernet = search.supernet
        self.draw = draw
        self.replaced: dict[str, Tensor] = {}
        """Weights by name in the agent."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As the agent's."""
        with self.supernet.using_draw(self.draw):
            if not self.replaced:  # functional_call walks through all modules, 4 % of a single-path search
                return self.agent(pixels)
            with scratch_batch_norm_stats(self.agent):  # of a policy that never was
                return functional_call(self.agent, self.replaced, (pixels,))


class AgentUnderFrameDraws(AgentUnderDraw):
    """The agent under a new draw for each frame where gradients are recorded, and as it acted where they are not.

    Args:
        search: whose agent and generator of draws.
        draw: of the rollout.
    """

    def __init__(self, search: Search, draw: Draw) -> None:
        super().__init__(search, draw)
        self.generator = search.gumbel_generator

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As the agent's."""
        if not torch.is_grad_enabled():
            return super().forward(pixels)
        # the generator must stay alike on all ranks, and each rank's frames need draws of their own
        rank, processes = rank_of_processes()
        gumbel = self.supernet.new_gumbel(self.generator, processes, len(pixels))[rank]
        with self.supernet.using_draw(Draw(gumbel, self.draw.tau, self.draw.ranking)):
            logits, value = self.agent(pixels)
        return logits, value


class SearchScheme(ABC):
    """How rollouts become steps of theta and alpha."""

    rollouts_per_update: int
    """Rollouts that are collected, with the same weights, before :meth:`learn` gets them."""

    @abstractmethod
    def learn(self, search: Search, rollouts: Sequence[DrawnRollout]) -> Metrics:
        """Updates on ``rollouts_per_update`` rollouts; returns what is worth logging."""


class OneLevel(SearchScheme):
    """A2D's, Eq. 9: min over theta and alpha together, from one backward of one rollout.

    theta gets L_total, alpha L_total + lambda L_cost. Without distillation this is the paper's vanilla DNAS.
    """

    rollouts_per_update = 1
    student: type[AgentUnderDraw] = AgentUnderDraw

    def learn(self, search: Search, rollouts: Sequence[DrawnRollout]) -> Metrics:
        """See :class:`SearchScheme`."""
        (drawn,) = rollouts
        metrics: Metrics = {}
        for total, found in search.losses(drawn.rollout, self.student(search, drawn.draw)):
            metrics |= found | search.step_both(total)
        return metrics


class OneLevelPerFrame(OneLevel):
    """Eq. 9 with a Gumbel draw of its own for each frame that is learned from. Not of the paper.

    One draw mixes the operators alike for all frames of an update. At least half of the noise in alpha's gradient then
    comes from the draw, and no number of frames averages it out (docs/minatar.md). With a draw for each frame this part
    falls with the number of frames. The policy that acts keeps one draw a rollout, and so do its advantages.
    PPO's ratio accounts for the difference. Needs :class:`~a2d_lightning.nas.sampling.SoftSum`.
    """

    student = AgentUnderFrameDraws


class BiLevel(SearchScheme):
    """First-order DARTS (arXiv 1806.09055): alpha on one rollout, theta on another, in turn.

    Both were collected with the same weights. theta gets half of the updates that one-level gives it.
    """

    rollouts_per_update = 2

    def learn(self, search: Search, rollouts: Sequence[DrawnRollout]) -> Metrics:
        """Alpha first, as DARTS does."""
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
        """What alpha descends: L_total(theta, alpha) on its own rollout."""
        return search.losses(for_alpha.rollout, AgentUnderDraw(search, for_alpha.draw))


class UnrolledBiLevel(BiLevel):
    """Second-order DARTS: alpha descends L_alpha(theta - xi grad_theta L_theta(theta, alpha), alpha).

    It is differentiated through the virtual step, plain SGD, automatically rather than by DARTS' finite difference.

    With several processes each takes the virtual step on its own rollout, and alpha's gradients are averaged.

    Args:
        virtual_learning_rate: xi; DARTS takes the weights' learning rate.
    """

    def __init__(self, virtual_learning_rate: PositiveFloat = 1e-3) -> None:
        self.virtual_learning_rate = float(virtual_learning_rate)

    def alpha_losses(
        self, search: Search, for_weights: DrawnRollout, for_alpha: DrawnRollout
    ) -> Iterator[tuple[Tensor, Metrics]]:
        """Each minibatch of alpha's rollout after a virtual step on one of theta's."""
        virtual = AgentUnderDraw(search, for_alpha.draw)
        after = search.losses(for_alpha.rollout, virtual)
        for total, _ in search.losses(for_weights.rollout, AgentUnderDraw(search, for_weights.draw)):
            virtual.replaced = self.virtual_weights(search, total)
            yield next(after)

    def virtual_weights(self, search: Search, total: Tensor) -> dict[str, Tensor]:
        """theta' = theta - xi grad_theta total, by name in the agent, differentiable in alpha."""
        trained = {id(parameter) for parameter in search.weights() if parameter.requires_grad}
        weights = {name: p for name, p in search.agent.named_parameters() if id(p) in trained}
        gradients = torch.autograd.grad(total, list(weights.values()), create_graph=True, allow_unused=True)
        return {
            name: weight - self.virtual_learning_rate * gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            if gradient is not None
        }
