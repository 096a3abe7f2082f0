"""Stage 1: training of a hand-designed network, alone or with a teacher."""

from typing import Any

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.models.networks import make_backbone
from a2d_lightning.modules.actor_critic import ActorCriticModule


class TeacherModule(ActorCriticModule):
    """Training of a hand-designed backbone with two heads.

    Examples:
        >>> import torch
        >>> settings = {"game": "pong", "frame_shape": (4, 42, 42), "num_actions": 6}
        >>> teacher = TeacherModule("four_conv", **settings, total_env_steps=1000)
        >>> logits, values = teacher.agent(torch.zeros(3, 4, 42, 42, dtype=torch.uint8))
        >>> logits.shape, values.shape
        (torch.Size([3, 6]), torch.Size([3]))

    Args:
        network: vanilla, resnet14, resnet20 (the paper's teacher), resnet38, resnet74, four_conv or two_conv.
    """

    def __init__(self, network: str = "resnet20", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        backbone = make_backbone(network, self.agent_frame_shape)
        self.agent = self.make_agent(backbone)

    def card(self) -> AgentCard:
        """Return the card of the hand-designed network."""
        return self.agent_card(self.network)
