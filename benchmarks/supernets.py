"""The search's own cost: the soft sum against its plain form, and a single path against the network it is."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.modules import AgentModule, SearchModule
from a2d_lightning.nas.sampling import Sampling, SinglePath
from a2d_lightning.nas.search_space import OPERATORS, Plan
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
    """Acting on a rollout and a forward and backward to learn from it."""
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
    """Alpha chooses each operator in turn, for ever."""
    alpha = module.supernet.alpha_logits
    with torch.no_grad():
        for cell in range(len(alpha)):
            alpha[cell, cell % len(OPERATORS)] = 100.0
    module.supernet.draw(module.gumbel_generator)


def single_path(lap: Lap, threads: int) -> None:
    """The search with a forced path; laptop plan."""
    train(SearchModule, data_of(16, 5, 42, threads, ENDLESS), Laps(lap), prepare=force, **_SEARCH)


def its_agent(lap: Lap, threads: int) -> None:
    """The training of the agent that the forced path derives."""
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
