"""Scores of full, unclipped games: every game of a fixed list is played to its end."""

from collections.abc import Callable

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from a2d_lightning.envs import GameEnv
from a2d_lightning.interruption import INTERRUPTION

Act = Callable[[Tensor], Tensor]
"""pixels uint8 ``[B, stack, h, w]`` to actions int64 ``[B]``."""


@torch.no_grad()
def play_games(env: GameEnv, act: Act, game_seeds: Tensor) -> Tensor:
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
    state = env.reset(TensorDict({"game_seed": game_seeds}, env.batch_size))
    scores = torch.zeros(env.batch_size[0])
    playing = torch.ones(env.batch_size[0], dtype=torch.bool)
    while playing.any():
        INTERRUPTION.check()
        action = torch.zeros(env.batch_size[0], dtype=torch.int64)
        action[playing] = act(state["pixels"][playing]).cpu()
        state["action"] = action
        stepped, state = env.step_and_maybe_reset(state)
        ended = stepped["next", "done"][:, 0] & playing
        scores[ended] = stepped["next", "game_score"][ended, 0]
        playing &= ~ended
    return scores


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
