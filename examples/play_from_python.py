"""Play Pong with a bundled agent in the package's own games: ``python examples/play_from_python.py [DECISIONS]``."""

import sys

import numpy as np
import torch

from a2d_lightning import load_agent
from a2d_lightning.rollouts.envs import make_env
from a2d_lightning.rollouts.games import FrameSettings

agent = load_agent("pong_four_conv_42")
games = make_env(agent.card.game, 1, FrameSettings(**agent.card.frames), seed=0, num_threads=1, noop_max=30)
frames = games.reset_games(np.ones(1, dtype=bool))  # uint8 [games, stack, height, width]
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 100):
    action = agent.act(torch.from_numpy(frames))
    step = games.step_games(action.numpy())
    print(action.item(), step.reward.item(), end="; ")
    frames = games.reset_games(step.done) if step.done.any() else step.pixels
games.close()
