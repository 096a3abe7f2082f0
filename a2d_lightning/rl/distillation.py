"""The four distillation modes of Table 2: which of Eq. 6 and 7 apply, and which critic gives the advantages."""

from typing import Literal

from torch import Tensor

from a2d_lightning.rl import losses
from a2d_lightning.rl.algorithms import Minibatch

DistillationMode = Literal["none", "actor", "actor+teacher_critic", "actor+critic"]


def distillation_terms(
    mode: DistillationMode, batch: Minibatch, teacher_logits: Tensor, teacher_value: Tensor
) -> dict[str, Tensor]:
    """Compute Eq. 6, and Eq. 7 if the critic is distilled.

    Args:
        mode: any mode but ``none``.
        batch: minibatch with the student's outputs, N rows.
        teacher_logits: float ``[N, actions]``, for the minibatch's rows.
        teacher_value: float ``[N]``, for the minibatch's rows.

    Returns:
        Scalars by the names of their coefficients.
    """
    terms = {"actor_distillation": losses.actor_distillation_loss(batch.logits, teacher_logits)}
    if mode == "actor+critic":
        terms["critic_distillation"] = losses.critic_distillation_loss(batch.value, teacher_value)
    return terms


def trains_critic(mode: DistillationMode) -> bool:
    """Return whether the student's critic is trained (Eq. 5); otherwise the teacher's values are used."""
    return mode != "actor+teacher_critic"
