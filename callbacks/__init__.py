"""Callbacks for the three stages, chosen by class_path in YAML. All count time in environment steps."""

from callbacks.architecture_checkpoint import ArchitectureCheckpoint
from callbacks.compiled_agent import CompiledAgent
from callbacks.flops_logging import FLOPsLogging
from callbacks.progress import EnvStepsProgress
from callbacks.rank_guard import RankGuard
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.search_guards import SearchGuards
from callbacks.temperature_annealing import TemperatureAnnealing

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
