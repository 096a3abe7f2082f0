"""A2C on Atari as in the documentation of Stable-Baselines3. Requires the extra ``benchmarks``."""

import ale_py
import gymnasium

from benchmarks.turns import Lap


def train(lap: Lap, num_envs: int, steps: int) -> None:
    """Train the Nature CNN on 84x84 frames with Stable-Baselines3's environments and wrappers.

    Args:
        lap: Called after each rollout and its update.
        num_envs: Number of environments.
        steps: Steps per rollout.

    Raises:
        ImportError: If Stable-Baselines3 is not installed.
    """
    from stable_baselines3 import A2C  # noqa: PLC0415 (optional)
    from stable_baselines3.common.callbacks import BaseCallback  # noqa: PLC0415
    from stable_baselines3.common.env_util import make_atari_env  # noqa: PLC0415
    from stable_baselines3.common.vec_env import VecFrameStack  # noqa: PLC0415

    class Laps(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                lap()

    gymnasium.register_envs(ale_py)
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=num_envs, seed=0), n_stack=4)
    A2C("CnnPolicy", env, n_steps=steps, device="cpu", seed=0).learn(10**9, Laps())
