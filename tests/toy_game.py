"""Catch, a game small enough to be learned within a test: a ball falls, a paddle must be under it at the end.

Also a tiny backbone for its frames, and ``Lives``, a counter of lives without a picture worth seeing.
"""

import time
import warnings
from typing import Any

import gymnasium
import lightning as L
import numpy as np
from torch import nn

SIZE = 12
COLUMNS = 6
CELL = SIZE // COLUMNS
STEPS = SIZE - 1
"""Decisions in a game: the ball falls a pixel a step, from the first row to the last."""

CATCH = "a2d/Catch-v0"
LIVES = "a2d/Lives-v0"


class Catch(gymnasium.Env):
    """Images uint8 [12, 12, 3]; actions left, stay, right; +1 for a catch and -1 for a miss, at the end.

    Random play catches about one ball in six (mean score -0.65); the best play catches every ball (mean score 1):
    the paddle has 11 moves and at most 5 columns to go.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.row = self.ball = self.paddle = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.row = 0
        self.ball = int(self.np_random.integers(COLUMNS))
        self.paddle = int(self.np_random.integers(COLUMNS))
        return self._picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.row += 1
        self.paddle = min(max(self.paddle + int(action) - 1, 0), COLUMNS - 1)
        over = self.row == STEPS
        reward = (1.0 if self.ball == self.paddle else -1.0) if over else 0.0
        return self._picture(), reward, over, False, {}

    def _picture(self) -> np.ndarray:
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        # the ball is brighter, so that both can be told where they meet
        picture[-1, self.paddle * CELL : (self.paddle + 1) * CELL] = 128
        picture[self.row, self.ball * CELL : (self.ball + 1) * CELL] = 255
        return picture


class Lives(gymnasium.Env):
    """Three lives, as Atari games tell them; action 1 loses one, 2 wins one, and the last one lost ends the game."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.lives = 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.lives = 3
        return self._picture(), {"lives": self.lives}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.lives += (0, -1, 1)[int(action)]
        return self._picture(), 0.0, self.lives == 0, False, {"lives": self.lives}

    def _picture(self) -> np.ndarray:
        return np.full((SIZE, SIZE, 3), self.lives, np.uint8)


class Breaks(Catch):
    """Fails in its first step."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return super().step(int(action) // 0)


class Hangs(Catch):
    """Never answers its first step."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(3600)
        return super().step(action)


def register() -> None:
    """Makes the games known to Gymnasium by their ids; can be called twice."""
    games: dict[str, Any] = {CATCH: Catch, LIVES: Lives, "a2d/Breaks-v0": Breaks, "a2d/Hangs-v0": Hangs}
    for name, game in games.items():
        if name not in gymnasium.registry:
            # the checker warns of every small picture
            gymnasium.register(name, game, disable_env_checker=True)


def tiny_backbone(frame_shape: tuple[int, int, int]) -> nn.Module:
    """A convolution and a dense layer: enough for Catch."""
    halved = (frame_shape[1] + 1) // 2
    return nn.Sequential(
        nn.Conv2d(frame_shape[0], 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * halved * halved, 64),
        nn.ReLU(),
    )


def train(module: L.LightningModule, data: L.LightningDataModule, **settings: Any) -> L.Trainer:
    """Trains on the CPU up to the data's budget, without evaluations, checkpoints or words."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
    return trainer
