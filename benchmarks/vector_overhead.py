"""Overhead of vector environments over bare Gymnasium environments: 64 MinAtar Breakout games with random actions.

Random play is the worst case: a game lasts ten steps, and resets cost more than steps. Requires the package minatar.
"""

import contextlib
import statistics

import gymnasium
import minatar
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from a2d_lightning.rollouts.envs import make_env
from a2d_lightning.rollouts.games import FrameSettings, import_game
from benchmarks.turns import Lap, Seat, alternate

GAME = "MinAtar/Breakout-v1"
NUM_ENVS = 64
ROUNDS = 20
SECONDS = 0.5


def random_actions() -> np.ndarray:
    """Return random actions, int64 ``[steps, NUM_ENVS]``."""
    return np.random.default_rng(0).integers(0, 3, (10_000, NUM_ENVS))


def games(lap: Lap) -> None:
    """Step MinAtar's game objects without Gymnasium."""
    breakouts = [minatar.Environment("breakout") for _ in range(NUM_ENVS)]
    while True:
        for actions in random_actions():
            for game, action in zip(breakouts, actions.tolist(), strict=True):
                _, over = game.act((0, 1, 3)[action])
                game.state()
                if over:
                    game.reset()
            lap()


def environments(lap: Lap) -> None:
    """Step bare Gymnasium environments of the games, without seeds."""
    envs = [gymnasium.make(GAME).unwrapped for _ in range(NUM_ENVS)]
    for env in envs:
        env.reset()
    while True:
        for actions in random_actions():
            for env, action in zip(envs, actions.tolist(), strict=True):
                if env.step(action)[2]:
                    env.reset()
            lap()


def ours(lap: Lap) -> None:
    """Step the games as in rollouts: seeded, logged for exact resuming, observations uint8 ``[channels, h, w]``."""
    as_it_is = FrameSettings(size=None, stack=1, skip=1, gray=False)
    wrappers = ["a2d_lightning.rollouts.minatar.ResetStickyAction"]
    env = make_env(GAME, NUM_ENVS, as_it_is, seed=0, num_threads=1, noop_max=1, wrappers=wrappers)
    env.reset_games(np.ones(NUM_ENVS, dtype=bool))
    while True:
        for actions in random_actions():
            decision = env.step_games(actions)
            if decision.done.any():
                env.reset_games(decision.done)
            lap()


def gymnasiums(lap: Lap) -> None:
    """Step the games in Gymnasium's vector environment: seeded once, observations unchanged."""
    vector = SyncVectorEnv([lambda: gymnasium.make(GAME)] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    vector.reset(seed=0)
    while True:
        for actions in random_actions():
            vector.step(actions)
            lap()


def main() -> None:
    """Print steps/s and time relative to bare environments for each contestant, as medians over alternating turns."""
    import_game(GAME)
    contestants = {"games": games, "environments": environments, "ours": ours, "gymnasium": gymnasiums}
    with contextlib.ExitStack() as stack:
        seats = [stack.enter_context(Seat(name, run, 1.0)) for name, run in contestants.items()]
        turns = alternate(seats, ROUNDS, SECONDS)
    for name, seconds in turns.items():
        ratio = statistics.median(mine / its for mine, its in zip(seconds, turns["environments"], strict=True))
        rate = NUM_ENVS / statistics.median(seconds)
        print(f"{name}: {rate:,.0f} steps/s, {ratio:.2f} times the bare environments' time")


if __name__ == "__main__":
    main()
