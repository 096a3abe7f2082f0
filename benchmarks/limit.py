"""Lower bound of the time of a rollout: emulation, acting, learning and the optimizer step, each measured alone."""

from collections.abc import Callable

import ale_py
import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv

from a2d_lightning.models.networks import ActorCritic, make_backbone
from a2d_lightning.modules.actor_critic import rmsprop
from benchmarks.turns import Lap

PARTS = ("acting", "learning", "optimizer")
"""Parts of a rollout besides emulation."""


def emulate(lap: Lap, num_envs: int, steps: int, frame_size: int, threads: int) -> None:
    """Step ale-py's vector environment with random actions and the usual preprocessing, without other code.

    Args:
        lap: Called after each rollout.
        num_envs: Number of environments.
        steps: Steps per rollout.
        frame_size: Height and width of frames in pixels.
        threads: Threads of the emulators.
    """
    gymnasium.register_envs(ale_py)
    env = AtariVectorEnv(
        "pong",
        num_envs,
        num_threads=threads,
        img_height=frame_size,
        img_width=frame_size,
        stack_num=4,
        frameskip=4,
        repeat_action_probability=0.0,
    )
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(6, size=(1_000, num_envs))
    while True:
        for first in range(0, len(actions), steps):
            for action in actions[first : first + steps]:
                env.step(action)
            lap()


def compute(lap: Lap, part: str, network: str, num_envs: int, steps: int, frame_size: int) -> None:
    """Run one part of a rollout: acting on every step, one learning pass, or one optimizer step.

    Args:
        lap: Called after each repetition.
        part: One of :data:`PARTS`.
        network: Name of the backbone.
        num_envs: Number of environments.
        steps: Steps per rollout.
        frame_size: Height and width of frames in pixels.
    """
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

    learn()  # the optimizer step needs gradients
    parts: dict[str, Callable[[], object]] = dict(zip(PARTS, (act, learn, optimizer.step), strict=True))
    work = parts[part]
    while True:
        work()
        lap()
