"""Stage 3: a derived architecture learns from scratch, with the same distillation."""

from typing import Any

from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.networks import ActorCritic, initialize
from a2d_lightning.search_space import Architecture
from a2d_lightning.teachers import AgentCard


class AgentModule(ActorCriticModule):
    """Trains the network that a search derived.

    Args:
        architecture: path of the JSON that the search wrote.
    """

    def __init__(self, architecture: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.architecture = Architecture.load(architecture)
        backbone = self.architecture.build(self.frame_shape)
        self.agent = initialize(ActorCritic(backbone, self.frame_shape, self.num_actions))

    def card(self) -> AgentCard:
        """See the base class."""
        return AgentCard(
            self.game, "derived", self.frame_shape, self.num_actions, self.env_steps, self.architecture.to_dict()
        )
