"""Diagnostics of an update, for the logs."""

import torch
from torch import Tensor

from a2d_lightning.rl import losses
from a2d_lightning.rl.algorithms import Minibatch


def update_diagnostics(batch: Minibatch) -> dict[str, Tensor]:
    """Measure how far the acting policy and the updated one differ before the update, and how well the critic fits."""
    with torch.no_grad():
        log_ratio = losses.log_prob(batch.logits, batch.action) - batch.log_prob_acted
        residual = batch.value_target - batch.value
        spread = batch.value_target.var(correction=0)
        return {
            # the k3 estimator (Schulman): unbiased and never negative
            "policy/kl_acted_updated": (log_ratio.exp() - 1 - log_ratio).mean(),
            "policy/entropy": -losses.entropy_loss(batch.logits),
            "value/explained_variance": 1 - residual.var(correction=0) / (spread + 1e-8),
        }
