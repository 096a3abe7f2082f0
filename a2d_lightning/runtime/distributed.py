"""What the processes of a run tell each other besides gradients."""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def all_gather_objects(mine: T) -> list[T]:
    """Every process's value, by rank; all processes must call it. Without a process group the own one alone."""
    if not _grouped():
        return [mine]
    everyone: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone  # type: ignore[return-value]


def rank_of_processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if _grouped() else (0, 1)


def this_rank(everyone: list[T]) -> T | None:
    """What :func:`all_gather_objects` had of this process; none where there were more or fewer processes."""
    rank, number = rank_of_processes()
    return everyone[rank] if len(everyone) == number else None


def all_reduce_any(flags: Tensor) -> Tensor:
    """Bool tensor: which ``flags`` (bool, on the processes' device) are set in any process; all must call it."""
    if not _grouped():
        return flags
    set_anywhere = flags.float()
    dist.all_reduce(set_anywhere, op=dist.ReduceOp.MAX)
    return set_anywhere > 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
