"""Callbacks for the three stages, selected by ``class_path`` in YAML. All count time in environment steps."""

from a2d_lightning.callbacks.architecture_checkpoint import ArchitectureCheckpoint
from a2d_lightning.callbacks.compiled_agent import CompiledAgent
from a2d_lightning.callbacks.flops_logging import FLOPsLogging
from a2d_lightning.callbacks.progress import EnvStepsProgress
from a2d_lightning.callbacks.rank_guard import RankGuard
from a2d_lightning.callbacks.run_checkpoint import RunCheckpoint
from a2d_lightning.callbacks.search_guards import SearchGuards
from a2d_lightning.callbacks.temperature_annealing import TemperatureAnnealing

__all__ = [
    "ArchitectureCheckpoint",
    "CompiledAgent",
    "EnvStepsProgress",
    "FLOPsLogging",
    "RankGuard",
    "RunCheckpoint",
    "SearchGuards",
    "TemperatureAnnealing",
]
