"""What the processes of a run tell each other besides gradients."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gathered(mine: T) -> list[T]:
    """Every process's value, by rank; all processes must call it. Without a process group the own one alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyone: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone  # type: ignore[return-value]
