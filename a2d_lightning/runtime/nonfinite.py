"""Losses and gradients that are not finite: noticed before they move a weight, named, and kept to be looked at."""

import contextlib
import io
import math
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.distributed import all_gather_objects, all_reduce_any
from a2d_lightning.runtime.errors import NonFiniteError


def check_finite(terms: dict[str, Tensor], env_steps: int) -> None:
    """All processes go on, or all raise: one that stopped alone would be waited for.

    Args:
        terms: scalars by name.
        env_steps: the clock.

    Raises:
        NonFiniteError: names the terms, the environment step and the ranks.
    """
    values = torch.stack([term.detach().float() for term in terms.values()])
    if not all_reduce_any(~torch.isfinite(values).all(0, keepdim=True)).any():
        return
    named = zip(terms, values.tolist(), strict=True)
    mine = [f"{name} is {value}" for name, value in named if not math.isfinite(value)]
    found = [f"{', '.join(its)} (rank {rank})" for rank, its in enumerate(all_gather_objects(mine)) if its]
    raise NonFiniteError(
        f"{'; '.join(found)} before the update at environment step {env_steps:,}; checkpoints are as they were: "
        "lower the learning rate and go on with --ckpt_path last, or set --model.on_nan skip"
    )


def dump_rollout(rollout: TensorDict, error: NonFiniteError, path: Path) -> None:
    """Writes what led to ``error`` where ``torch.load`` finds it; a disk that is full must not hide the error."""
    content = io.BytesIO()
    # what acting kept has been used up by the update
    torch.save({"error": str(error), "rollout": rollout.exclude("activations").cpu().to_dict()}, content)
    with contextlib.suppress(OSError):
        write_atomically(path, content.getbuffer())
