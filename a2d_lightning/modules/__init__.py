"""LightningModules of the three stages, and a random player as the baseline."""

from a2d_lightning.modules.agent import AgentModule
from a2d_lightning.modules.random_play import RandomModule
from a2d_lightning.modules.search import SearchModule
from a2d_lightning.modules.teacher import TeacherModule

__all__ = ["AgentModule", "RandomModule", "SearchModule", "TeacherModule"]
