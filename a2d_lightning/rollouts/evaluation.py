"""Scores of full, unclipped games: every game of a fixed list is played to its end."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from a2d_lightning.runtime.signals import INTERRUPTION

if TYPE_CHECKING:
    from a2d_lightning.rollouts.envs import GameEnv

Act = Callable[[Tensor], Tensor]
"""pixels uint8 ``[B, stack, h, w]`` to actions int64 ``[B]``."""


@torch.no_grad()
def play_games(env: "GameEnv", act: Act, game_seeds: Tensor) -> Tensor:
    """Plays one full game for each seed and returns the raw scores, float ``[n]``.

    One environment a game: taking the first games to finish would favour short ones. Environments that are done play
    on unseen, without asking ``act``.

    Args:
        env: ``n`` environments.
        act: the policy.
        game_seeds: int64 ``[n]``.

    Raises:
        Interrupted: the process was asked to stop.
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
    """Percentile bootstrap interval of the mean score; the two ends are equal for one game.

    Args:
        scores: float ``[n]``.
        level: coverage.
        resamples: bootstrap samples, drawn with a fixed seed.
    """
    values = scores.double().cpu().numpy()
    draws = np.random.default_rng(0).choice(values, size=(resamples, values.size)).mean(axis=1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
