"""Stable-Baselines3's A2C on Atari, as its documentation trains it. Needs the extra ``benchmarks``."""

import time

import ale_py
import gymnasium


def seconds_a_rollout(num_envs: int, steps: int, rollouts: int) -> float:
    """Nature CNN, 84x84 frames, its own environments and wrappers.

    Raises:
        ImportError: it is not installed.
    """
    from stable_baselines3 import A2C  # noqa: PLC0415 (optional)
    from stable_baselines3.common.env_util import make_atari_env  # noqa: PLC0415
    from stable_baselines3.common.vec_env import VecFrameStack  # noqa: PLC0415

    gymnasium.register_envs(ale_py)
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=num_envs, seed=0), n_stack=4)
    model = A2C("CnnPolicy", env, n_steps=steps, device="cpu", seed=0)
    model.learn(20 * num_envs * steps)
    began = time.perf_counter()
    model.learn(rollouts * num_envs * steps)
    seconds = (time.perf_counter() - began) / rollouts
    env.close()
    return seconds
