"""A2D (Auto-Agent-Distiller, arXiv 2012.13091): small, fast agents for deep RL by distillation-guided search.

The exported names are imported at their first use, since torch takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from a2d_lightning.agent import load_agent
    from a2d_lightning.data import RolloutDataModule
    from a2d_lightning.modules import AgentModule, SearchModule, TeacherModule
    from a2d_lightning.nas.architecture import Architecture
    from a2d_lightning.nas.supernet import Supernet

__version__ = "0.1.0"

__all__ = [
    "AgentModule",
    "Architecture",
    "RolloutDataModule",
    "SearchModule",
    "Supernet",
    "TeacherModule",
    "load_agent",
]

_HOMES = {
    "AgentModule": "modules",
    "Architecture": "nas.architecture",
    "RolloutDataModule": "data",
    "SearchModule": "modules",
    "Supernet": "nas.supernet",
    "TeacherModule": "modules",
    "load_agent": "agent",
}


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the names that the package offers."""
    return sorted({*globals(), *__all__})
