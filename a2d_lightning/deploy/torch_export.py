"""Export of an agent as a program of ``torch.export``, which runs without this package."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import torch

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.deploy.contract import input_contract
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.runtime.atomic_file import write_atomically


def export_torch(card: AgentCard, agent: ActorCritic, path: Path, content: dict[str, Any]) -> None:
    """Write a ``.pt2`` file: pixels uint8 ``[B, *frame_shape]`` to logits ``[B, actions]`` and values ``[B]``.

    ``torch.export.load(path, extra_files={"card.json": ""})`` loads the program and the card.

    Args:
        card: Card of the agent.
        agent: Network with its weights.
        path: Target.
        content: Card's fields.
    """
    network = copy.deepcopy(agent).eval().requires_grad_(False)
    pixels = torch.zeros(2, *card.frame_shape, dtype=torch.uint8)
    program = torch.export.export(network, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    metadata = json.dumps({**content, "contract": input_contract(card)})
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={"card.json": metadata})
    write_atomically(path, stream.getbuffer())
