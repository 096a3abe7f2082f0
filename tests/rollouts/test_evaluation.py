"""Scores of full games. Oracles: a bare vector environment of one game, games whose scores are their seeds', theory."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from torch import Tensor

from a2d_lightning.rollouts.envs import FrameSettings, GameEnv, make_env
from a2d_lightning.rollouts.evaluation import confidence_interval, play_games


class SeededLengths(gymnasium.vector.VectorEnv):
    """Games that last as many decisions as their seed says and give 10 points for each; the pixel is the seed.

    Seeds that :class:`GameEnv` draws for later games are large: those games last two decisions of one point each.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (1, 1, 1), np.uint8)
        self.seeds = np.zeros(num_envs, np.int64)
        self.age = np.zeros(num_envs, np.int64)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        mask = options["reset_mask"]
        self.seeds[mask] = np.asarray(seed)[mask]
        self.age[mask] = 0
        return self._pixels(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.age += 1
        first = self.seeds <= 255
        over = self.age == np.where(first, self.seeds, 2)
        return self._pixels(), np.where(first, 10.0, 1.0), over, np.zeros_like(over), {}

    def _pixels(self) -> np.ndarray:
        return np.minimum(self.seeds, 255).astype(np.uint8).reshape(-1, 1, 1, 1)


def by_pixels(pixels: Tensor) -> Tensor:
    """A policy without randomness that still tries many actions of Asterix."""
    return pixels.long().sum((1, 2, 3)) % 9


def bare_score(seed: int) -> float:
    """The sum of raw rewards of the game that ``by_pixels`` plays from ``seed``, by ale-py alone."""
    vector = AtariVectorEnv("asterix", 1, num_threads=1, reward_clipping=False)
    pixels, _ = vector.reset(seed=np.array([seed]))
    score, over = 0.0, False
    while not over:
        pixels, reward, terminated, truncated, _ = vector.step(by_pixels(torch.from_numpy(pixels)).numpy())
        score += float(reward[0])
        over = bool(terminated[0] or truncated[0])
    vector.close()
    return score


def test_a_score_is_that_of_one_full_unclipped_game_from_its_seed() -> None:
    seeds = [5, 6, 7]
    env = make_env("Asterix", 3, FrameSettings(), seed=0, num_threads=1, noop_max=30)
    scores = play_games(env, by_pixels, torch.tensor(seeds))
    env.close()
    truth = [bare_score(seed) for seed in seeds]
    assert len(set(truth)) > 1
    assert scores.tolist() == truth


def test_each_environment_counts_its_first_game_and_no_other() -> None:
    # while the game of 60 decisions is played, its neighbours end about 29 more each, which are worth 2 points
    seeds = torch.tensor([60, 1, 3])
    scores = play_games(GameEnv(SeededLengths(3), seed=0), lambda pixels: torch.zeros(len(pixels)).long(), seeds)
    assert scores.tolist() == [600.0, 10.0, 30.0]


def test_the_policy_is_asked_only_about_games_still_played() -> None:
    asked = []

    def act(pixels: Tensor) -> Tensor:
        asked.append(pixels.flatten().tolist())
        return torch.zeros(len(pixels), dtype=torch.int64)

    play_games(GameEnv(SeededLengths(3), seed=0), act, torch.tensor([2, 4, 1]))
    assert asked == [[2, 4, 1], [2, 4], [4], [4]]


def test_equal_scores_leave_no_doubt() -> None:
    assert confidence_interval(torch.full((30,), 21.0)) == (21.0, 21.0)
    assert confidence_interval(torch.tensor([-3.0])) == (-3.0, -3.0)


@pytest.mark.parametrize(("level", "quantile"), [(0.95, 1.960), (0.5, 0.6745)])
def test_the_interval_of_many_games_is_the_normal_one(level: float, quantile: float) -> None:
    scores = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 100
    low, high = confidence_interval(scores, level)
    half = quantile * scores.std(correction=0).item() / math.sqrt(400)
    # 10,000 resamples give the ends of a 95 % interval to about 2 % of its half width (one sigma), at both ends
    assert high - low == pytest.approx(2 * half, rel=0.05)
    assert (high + low) / 2 == pytest.approx(scores.mean().item(), abs=0.05 * half)


def test_95_of_100_intervals_cover_the_true_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        low, high = confidence_interval(torch.rand(30, generator=generator), resamples=1000)
        covered += low <= 0.5 <= high
    # the percentile bootstrap is a little short at n = 30 (by about 1.5 %); one sigma of 400 trials is 1.1 %
    assert 0.90 <= covered / 400 <= 0.975


def test_the_interval_is_the_same_each_time() -> None:
    scores = torch.arange(30.0)
    assert confidence_interval(scores) == confidence_interval(scores)
