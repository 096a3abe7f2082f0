"""Stage 3: training of a derived architecture from scratch, with the same distillation."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import operators_of


class AgentModule(ActorCriticModule):
    """Training of the network that a search derived.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from a2d_lightning.nas.search_space import Plan
        >>> from a2d_lightning.nas.supernet import Supernet
        >>> path = Path(tempfile.mkdtemp()) / "architecture.json"
        >>> plan = Plan(cells_per_group=(1, 1), channels=(8, 16))
        >>> Supernet(plan, (4, 42, 42)).derive("pong").save(path)
        >>> settings = {"frame_shape": (4, 42, 42), "num_actions": 6, "total_env_steps": 1000}
        >>> AgentModule(str(path), game="pong", **settings).architecture.plan == plan
        True

    Args:
        architecture: path of the architecture's JSON file, which the search wrote.
        operators: the search's ``operators``, if some of them are not the paper's.
    """

    def __init__(self, architecture: str, operators: dict[str, str | None] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        operators_of(operators)
        self.architecture = Architecture.load(architecture)
        for name, mine in (("game", self.game), ("frame_shape", self.agent_frame_shape)):
            its = getattr(self.architecture, name)
            if its and its != mine:
                rank_zero_info(f"remark: the architecture was searched for {name} {its}, but this run uses {mine}")
        backbone = self.architecture.build(self.agent_frame_shape)
        self.agent = self.make_agent(backbone)

    def card(self) -> AgentCard:
        """Return the card of the derived network."""
        return self.agent_card("derived", self.architecture.to_dict())
