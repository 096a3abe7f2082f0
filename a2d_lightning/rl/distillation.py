"""The four distillation modes of Table 2: which of Eq. 6 and 7 a student gets, and whose critic it learns from."""

from typing import Literal

from torch import Tensor

from a2d_lightning.rl import losses
from a2d_lightning.rl.algorithms import Minibatch

DistillationMode = Literal["none", "actor", "actor+teacher_critic", "actor+critic"]


def distillation_terms(
    mode: DistillationMode, batch: Minibatch, teacher_logits: Tensor, teacher_value: Tensor
) -> dict[str, Tensor]:
    """Eq. 6, and Eq. 7 where the critic is distilled too, by name of their coefficient.

    Args:
        mode: not ``none``.
        batch: what the student says.
        teacher_logits: float ``[N, actions]``, of the batch's rows.
        teacher_value: float ``[N]``, of the batch's rows.
    """
    terms = {"actor_distillation": losses.actor_distillation_loss(batch.logits, teacher_logits)}
    if mode == "actor+critic":
        terms["critic_distillation"] = losses.critic_distillation_loss(batch.value, teacher_value)
    return terms


def trains_critic(mode: DistillationMode) -> bool:
    """Whether the student has a critic of its own to train (Eq. 5); else the teacher's values take its place."""
    return mode != "actor+teacher_critic"
