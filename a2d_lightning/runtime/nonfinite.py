"""Detection of NaN and infinite losses and gradients before a weight changes, and a dump of the rollout."""

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
    """Raise in all processes if a term is NaN or infinite in any process.

    Every process must call this function. A process that raised alone would leave the others waiting.

    Args:
        terms: Scalar tensors by name.
        env_steps: Environment steps so far, for the message.

    Raises:
        NonFiniteError: If a term is not finite. The message names the terms, the environment step and the ranks.
    """
    values = torch.stack([term.detach().float() for term in terms.values()])
    if not all_reduce_any(~torch.isfinite(values).all(0, keepdim=True)).any():
        return
    named = zip(terms, values.tolist(), strict=True)
    mine = [f"{name} is {value}" for name, value in named if not math.isfinite(value)]
    found = [f"{', '.join(its)} (rank {rank})" for rank, its in enumerate(all_gather_objects(mine)) if its]
    raise NonFiniteError(
        f"{'; '.join(found)} before the update at environment step {env_steps:,}; checkpoints are unchanged: lower "
        "the learning rate and resume with --ckpt_path last, or set --model.on_nan skip"
    )


def dump_rollout(rollout: TensorDict, error: NonFiniteError, path: Path) -> None:
    """Save a rollout and the error that it caused, in the format of ``torch.load``.

    A failed write is ignored: a full disk must not hide the error.

    Args:
        rollout: The rollout ``[num_envs, T]``.
        error: The error, saved as text.
        path: The file to write.
    """
    content = io.BytesIO()
    torch.save({"error": str(error), "rollout": rollout.cpu().to_dict()}, content)
    with contextlib.suppress(OSError):
        write_atomically(path, content.getbuffer())
