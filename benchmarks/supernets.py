"""Cost of the search: the soft sum against its direct form, and a single path against the equivalent network."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.modules import AgentModule, SearchModule
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.sampling import Sampling, SinglePath
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet
from benchmarks.ours import ENDLESS, Laps, data_of, train
from benchmarks.plain_supernet import PlainSoftSum, plain_layers
from benchmarks.turns import Lap

LAPTOP_PLAN = Plan((2, 2, 2), (8, 16, 32))
_DISTILLED: dict[str, Any] = {"distillation": "actor+critic", "teacher": "pong_four_conv_42"}
_SEARCH = {"plan": LAPTOP_PLAN, "sampling": SinglePath(), "alpha_learning_rate": 0.0, **_DISTILLED}


def soft_sum(
    lap: Lap, sampling: Sampling, recompute: bool, num_envs: int, steps: int, frame_size: int, plan: Plan
) -> None:
    """Run the supernet on synthetic rollouts: acting on every step, and one forward and backward pass.

    Args:
        lap: Called after each rollout.
        sampling: Rule that weights the operators.
        recompute: Whether activations are recomputed in the backward pass.
        num_envs: Number of environments.
        steps: Steps per rollout.
        frame_size: Height and width of frames in pixels.
        plan: Groups, cells and channels of the supernet.
    """
    shape = (4, frame_size, frame_size)
    agent = ActorCritic(Supernet(plan, shape, sampling, recompute), shape, 6)
    if isinstance(sampling, PlainSoftSum):
        plain_layers(agent)
    acted = torch.randint(256, (num_envs, *shape), dtype=torch.uint8)
    learned = torch.randint(256, (num_envs * (steps + 1), *shape), dtype=torch.uint8)
    while True:
        with torch.no_grad():
            for _ in range(steps):
                agent(acted)
        agent.zero_grad()
        logits, value = agent(learned)
        (logits.square().mean() + value.square().mean()).backward()
        lap()


def force(module: SearchModule) -> None:
    """Fix the path of a search: cell i uses operator i modulo the number of operators."""
    alpha = module.supernet.alpha_logits
    with torch.no_grad():
        for cell in range(len(alpha)):
            alpha[cell, cell % len(OPERATORS)] = 100.0
    module.supernet.draw(module.gumbel_generator)


def single_path(lap: Lap, threads: int) -> None:
    """Run a single-path search with a fixed path and the laptop plan.

    Args:
        lap: Called after each rollout and its update.
        threads: Threads of the emulators.
    """
    train(SearchModule, data_of(16, 5, 42, threads, ENDLESS), Laps(lap), prepare=force, **_SEARCH)


def its_agent(lap: Lap, threads: int) -> None:
    """Train the agent derived from the fixed path of :func:`single_path`.

    Args:
        lap: Called after each rollout and its update.
        threads: Threads of the emulators.
    """
    data = data_of(16, 5, 42, threads, ENDLESS)
    search = SearchModule(
        game=data.game,
        frame_shape=data.frame_shape,
        num_actions=data.num_actions,
        total_env_steps=data.total_env_steps,
        **_SEARCH,
    )
    force(search)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "architecture.json"
        search.derive().save(path)
        train(AgentModule, data, Laps(lap), architecture=str(path), **_DISTILLED)
