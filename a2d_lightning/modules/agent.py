"""Stage 3: a derived architecture learns from scratch, with the same distillation."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.nas.architecture import Architecture


class AgentModule(ActorCriticModule):
    """Trains the network that a search derived.

    Args:
        architecture: path of the JSON that the search wrote.
    """

    def __init__(self, architecture: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.architecture = Architecture.load(architecture)
        for name, mine in (("game", self.game), ("frame_shape", self.agent_frame_shape)):
            its = getattr(self.architecture, name)
            if its and its != mine:
                rank_zero_info(f"remark: the architecture was searched for {name} {its}; here it is {mine}")
        backbone = self.architecture.build(self.agent_frame_shape)
        self.agent = self.make_agent(backbone)

    def card(self) -> AgentCard:
        """See the base class."""
        return self.agent_card("derived", self.architecture.to_dict())
