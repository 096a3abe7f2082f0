"""Collective operations between the processes of a run, other than the reduction of gradients."""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def all_gather_objects(mine: T) -> list[T]:
    """Gather one value from each process; every process must call this function.

    Args:
        mine: The value of this process, which must be picklable.

    Returns:
        The values in the order of ranks; without a process group, a list of ``mine`` alone.
    """
    if not _grouped():
        return [mine]
    everyone: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone  # type: ignore[return-value]


def rank_of_processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes; ``(0, 1)`` without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if _grouped() else (0, 1)


def this_rank(everyone: list[T]) -> T | None:
    """Return the entry of this process in a list made by :func:`all_gather_objects`, perhaps in an earlier run.

    Args:
        everyone: One value for each rank.

    Returns:
        The entry, or None if the list comes from another number of processes.
    """
    rank, number = rank_of_processes()
    return everyone[rank] if len(everyone) == number else None


def all_reduce_any(flags: Tensor) -> Tensor:
    """Return which flags are set in at least one process; every process must call this function.

    Args:
        flags: Bool tensor of the same shape in each process, on the process's device.

    Returns:
        Bool tensor of the shape of ``flags``.
    """
    if not _grouped():
        return flags
    set_anywhere = flags.float()
    dist.all_reduce(set_anywhere, op=dist.ReduceOp.MAX)
    return set_anywhere > 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
