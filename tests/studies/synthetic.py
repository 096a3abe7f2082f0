"""Banks and searches with known properties."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml
from toy_game import CATCH, register

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.studies.table import Row, write_table

register()

NAMES = tuple(OPERATORS)
PLAN = Plan((2,), (4,))
SHAPE = (2, 12, 12)


def save_search(folder: Path, alpha_logits: np.ndarray, game: str = CATCH, frames: bool = True) -> Path:
    """A run of a search with that alpha ``[2, 9]``: checkpoint and configuration."""
    torch.manual_seed(0)
    agent = ActorCritic(Supernet(PLAN, SHAPE), SHAPE, 3)
    agent.backbone.alpha_logits.data = torch.tensor(alpha_logits, dtype=torch.float32)
    card = AgentCard(game, "supernet", SHAPE, 3, 100, {"plan": asdict(PLAN)})
    checkpoint = {
        "agent_card": card.to_dict(),
        "state_dict": {f"agent.{name}": tensor for name, tensor in agent.state_dict().items()},
        "recent_frames": [[torch.randint(256, (8, *SHAPE), dtype=torch.uint8)]] if frames else [],
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    data = {
        "game": game,
        "frames": {"size": 12, "stack": 2, "skip": 1, "sticky_action_probability": 0.0},
        "num_env_threads": 1,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder


def save_bank(
    path: Path,
    operators: list[tuple[str, ...]],
    scores: np.ndarray,
    macs: list[int] | None = None,
    origin: str = "random",
    game: str = CATCH,
) -> Path:
    """A table of networks with scores ``[networks, seeds]`` after 200 steps, and 0 after 100."""
    rows = []
    for i, network in enumerate(operators):
        cost = macs[i] if macs else 1000 + i
        for seed, score in enumerate(scores[i]):
            for env_steps, value in ((100, 0.0), (200, float(score))):
                name = f"{origin}_{i:03d}"
                shape = "2x12x12"
                rows.append(Row(game, name, seed, env_steps, value, origin, " ".join(network), "2/4", shape, cost, 10))
    write_table(path, rows)
    return path
