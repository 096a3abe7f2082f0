"""Play games with an ONNX agent, without torch: ``python examples/play_onnx.py pong.onnx [GAMES]``."""

import sys

import numpy as np

from a2d_lightning.onnx_player import OnnxAgent, play

agent = OnnxAgent(sys.argv[1])
seeds = np.arange(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
print(f"{agent.contract['game']}, actions {', '.join(agent.contract['actions'])}")
print("scores", play(agent, seeds, np.random.default_rng(0)))
