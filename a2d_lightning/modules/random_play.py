"""Uniformly random actions: the baseline for the score of every agent."""

from typing import Any

import torch
from torch import Tensor, nn

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.modules.actor_critic import ActorCriticModule


class RandomModule(ActorCriticModule):
    """Player of uniformly random actions, for ``test`` without a checkpoint."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # a backbone without weights; the heads are never used
        backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.agent = ActorCritic(backbone, self.agent_frame_shape, self.num_actions).requires_grad_(False)

    def act(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return uniformly random actions int64 ``[B]``, for pixels uint8 ``[B, stack, h, w]``."""
        return torch.randint(self.num_actions, (len(pixels),), generator=generator, device=generator.device)

    def card(self) -> AgentCard:
        """Return the card of the random player."""
        return self.agent_card("random")
