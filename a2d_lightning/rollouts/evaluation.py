"""Evaluation of agents: unclipped scores of full games from a fixed list of seeds."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from a2d_lightning.runtime.signals import INTERRUPTION

if TYPE_CHECKING:
    from a2d_lightning.rollouts.envs import GameEnv

Act = Callable[[Tensor], Tensor]
"""Policy: pixels uint8 ``[B, *frame_shape]`` to actions int64 ``[B]``."""


@torch.no_grad()
def play_games(env: "GameEnv", act: Act, game_seeds: Tensor) -> Tensor:
    """Play one full game per seed and return the raw scores.

    Each environment plays one game that counts: taking the first games to finish would favour short games. An
    environment that has finished its game continues with action 0 until all have finished.

    Args:
        env: ``n`` environments.
        act: Policy.
        game_seeds: int64 ``[n]``.

    Returns:
        Scores, float32 ``[n]``.

    Raises:
        Interrupted: If the process received a stop signal.
        RunFailedError: If an environment fails.
    """
    num_envs = env.batch_size[0]
    pixels = env.reset_games(np.ones(num_envs, dtype=np.bool_), game_seeds.numpy())
    scores = np.zeros(num_envs, dtype=np.float32)
    playing = np.ones(num_envs, dtype=np.bool_)
    while playing.any():
        INTERRUPTION.check()
        actions = np.zeros(num_envs, dtype=np.int64)
        actions[playing] = act(torch.from_numpy(pixels[playing])).cpu().numpy()
        decision = env.step_games(actions)
        ended = decision.done & playing
        scores[ended] = decision.game_score[ended]
        playing &= ~ended
        pixels = env.reset_games(decision.done) if decision.done.any() else decision.pixels
    return torch.from_numpy(scores)


def confidence_interval(scores: Tensor, level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Compute a percentile bootstrap interval of the mean score.

    Args:
        scores: float ``[n]``.
        level: Coverage, between 0 and 1.
        resamples: Number of bootstrap samples, drawn with a fixed seed.

    Returns:
        Lower and upper end; equal if ``n`` is 1.
    """
    values = scores.double().cpu().numpy()
    draws = np.random.default_rng(0).choice(values, size=(resamples, values.size)).mean(axis=1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
