"""Stage 1: a hand-made network learns a game, by itself or from a teacher that has."""

from typing import Any

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.models.networks import make_backbone
from a2d_lightning.modules.actor_critic import ActorCriticModule


class TeacherModule(ActorCriticModule):
    """Trains a hand-made backbone with two heads.

    Args:
        network: vanilla, resnet14, resnet20 (the paper's teacher), resnet38, resnet74 or four_conv.
    """

    def __init__(self, network: str = "resnet20", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        backbone = make_backbone(network, self.agent_frame_shape)
        self.agent = self.make_agent(backbone)

    def card(self) -> AgentCard:
        """See the base class."""
        return self.agent_card(self.network)
