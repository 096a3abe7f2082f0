"""The limit: raw emulation, a forward to act, a forward and backward to learn, an optimizer's step, each alone."""

import time
from collections.abc import Callable

import ale_py
import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv

from a2d_lightning.modules.actor_critic import rmsprop
from a2d_lightning.networks import ActorCritic, make_backbone


def raw_env(num_envs: int, frame_size: int, threads: int) -> AtariVectorEnv:
    """ale-py's emulators with our preprocessing, and nothing of ours around them."""
    gymnasium.register_envs(ale_py)
    return AtariVectorEnv(
        "pong",
        num_envs,
        num_threads=threads,
        img_height=frame_size,
        img_width=frame_size,
        stack_num=4,
        frameskip=4,
        repeat_action_probability=0.0,
    )


def seconds_to_emulate(num_envs: int, steps: int, frame_size: int, threads: int, rollouts: int) -> float:
    """``steps`` random steps of ``num_envs`` games."""
    env = raw_env(num_envs, frame_size, threads)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(6, size=(rollouts * steps, num_envs))
    for action in actions[:20]:
        env.step(action)
    began = time.perf_counter()
    for action in actions:
        env.step(action)
    seconds = (time.perf_counter() - began) / rollouts
    env.close()
    return seconds


def seconds_to_compute(network: str, num_envs: int, steps: int, frame_size: int, times: int) -> dict[str, float]:
    """Of one rollout: acting on every step, learning from it once, and the optimizer's step."""
    shape = (4, frame_size, frame_size)
    agent = ActorCritic(make_backbone(network, shape), shape, 6)
    optimizer = rmsprop(agent.parameters())
    acted = torch.randint(256, (num_envs, *shape), dtype=torch.uint8)
    learned = torch.randint(256, (num_envs * (steps + 1), *shape), dtype=torch.uint8)

    @torch.no_grad()
    def act() -> None:
        for _ in range(steps):
            agent(acted)

    def learn() -> None:
        optimizer.zero_grad()
        logits, value = agent(learned)
        (logits.square().mean() + value.square().mean()).backward()

    parts: dict[str, Callable[[], object]] = {"act": act, "learn": learn, "optimizer": optimizer.step}
    return {name: seconds_each(part, times) for name, part in parts.items()}


def seconds_each(part: Callable[[], object], times: int) -> float:
    """Mean over ``times`` calls, after three."""
    for _ in range(3):
        part()
    began = time.perf_counter()
    for _ in range(times):
        part()
    return (time.perf_counter() - began) / times
