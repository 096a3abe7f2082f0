"""The paper's losses: one pure function per equation, from tensors to a scalar.

The paper writes E[sum over t]. Every function here takes the *mean* over all N = steps x environments of a batch, so
learning rates and lambda do not depend on the rollout length. Entropy and KL are summed over actions.
Symbols: pi(a_t|s_t) is ``softmax(logits)[t, action[t]]``, delta_t the advantage.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def policy_loss(logits: Tensor, action: Tensor, advantage: Tensor) -> Tensor:
    """Compute Eq. 3: L_policy = E[-delta_t log pi(a_t|s_t)], delta_t not differentiated.

    Args:
        logits: float ``[N, actions]``.
        action: int64 ``[N]``.
        advantage: float ``[N]``, delta_t.
    """
    return -(advantage.detach() * log_prob(logits, action)).mean()


def value_loss(value: Tensor, value_target: Tensor) -> Tensor:
    """Compute Eq. 5: L_value = E[1/2 (r_t + gamma V(s_t+1) - V(s_t))^2], the target not differentiated.

    Args:
        value: float ``[N]``, V(s_t).
        value_target: float ``[N]``, r_t + gamma V(s_t+1) or the return of the configured estimator.
    """
    return 0.5 * (value_target.detach() - value).square().mean()


def entropy_loss(logits: Tensor) -> Tensor:
    """Compute L_entropy = E[sum_a pi log pi] (Sec. 4.1): a negative entropy, in nats.

    Args:
        logits: float ``[N, actions]``.
    """
    log_pi = F.log_softmax(logits, dim=-1)
    return (log_pi.exp() * log_pi).sum(-1).mean()


def actor_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute Eq. 6: L_actor_distill = E[KL(pi_teacher || pi_student)], in nats; the teacher is not differentiated.

    Args:
        student_logits: float ``[N, actions]``.
        teacher_logits: float ``[N, actions]``.
    """
    log_student = F.log_softmax(student_logits, dim=-1)
    log_teacher = F.log_softmax(teacher_logits.detach(), dim=-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean()


def critic_distillation_loss(student_value: Tensor, teacher_value: Tensor) -> Tensor:
    """Compute Eq. 7: L_critic_distill = E[1/2 (V_student(s_t) - V_teacher(s_t))^2]; the teacher is not differentiated.

    Args:
        student_value: float ``[N]``.
        teacher_value: float ``[N]``.
    """
    return 0.5 * (student_value - teacher_value.detach()).square().mean()


def total_loss(terms: dict[str, Tensor], coefficients: dict[str, float]) -> Tensor:
    """Compute L_total (Eq. 8).

    L_total = L_policy + L_value + alpha_1 L_entropy + alpha_2 L_actor_distill + alpha_3 L_critic_distill.

    Args:
        terms: scalars by name.
        coefficients: a coefficient for every name in ``terms``.
    """
    return torch.stack([coefficients[name] * term for name, term in terms.items()]).sum()


def ppo_policy_loss(
    logits: Tensor, action: Tensor, log_prob_acted: Tensor, advantage: Tensor, clip_epsilon: float
) -> Tensor:
    """Compute PPO's clipped objective (arXiv 1707.06347, Eq. 7), negated: -E[min(r A, clip(r, 1-eps, 1+eps) A)].

    Args:
        logits: float ``[N, actions]``.
        action: int64 ``[N]``.
        log_prob_acted: float ``[N]``, log pi(a_t|s_t) of the acting policy.
        advantage: float ``[N]``.
        clip_epsilon: eps > 0.
    """
    ratio = (log_prob(logits, action) - log_prob_acted.detach()).exp()
    clipped = ratio.clamp(1.0 - clip_epsilon, 1.0 + clip_epsilon)
    advantage = advantage.detach()
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """Compute log pi(a_t|s_t), float ``[N]``, from logits ``[N, actions]`` and actions int64 ``[N]``."""
    return F.log_softmax(logits, dim=-1).gather(-1, action[:, None])[:, 0]
