"""``python -m a2d_lightning export``: weights of an agent as safetensors, with a card that describes the network."""

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import nn

from a2d_lightning.agent_files import load_weights, read_agent, write_agent
from a2d_lightning.cli.arguments import description
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import count_parameters
from a2d_lightning.runtime.errors import SettingError


def export(args: list[str]) -> None:
    """Export the agent in a checkpoint as <output>.safetensors and its card as <output>.json.

    Raises:
        SettingError: If the checkpoint is missing, damaged or holds a supernet, the file of --test is not a test
            result, or the output cannot be written or holds other weights.
    """
    parser = ArgumentParser(prog="a2d_lightning export", description=description(export), exit_on_error=False)
    parser.add_argument("--ckpt_path", type=str, required=True, help="checkpoint of a teacher or a retrained agent")
    parser.add_argument("--output", type=str, required=True, help="path; .safetensors and .json are appended")
    parser.add_argument("--test", type=str, default=None, help="the test's JSON, whose score the card shall carry")
    parser.add_argument("--trained_by", type=str, default="", help="the command that trained it, for the card")
    settings = parser.parse_args(args)
    source = Path(settings.ckpt_path)
    if not source.is_file():
        raise SettingError(f"--ckpt_path: there is no checkpoint {str(source)!r}.")
    card, weights = read_agent(source)
    agent = card.build()
    load_weights(agent, weights, str(source))
    content: dict[str, Any] = {
        **card.to_dict(),
        "macs": count_macs(agent.backbone, torch.Size(card.frame_shape)),
        "parameters": count_parameters(agent.backbone),
        "score": _score(settings.test),
        "trained_by": settings.trained_by,
    }
    # append instead of with_suffix, which would replace the ".1" of pong_lr0.1
    target = Path(settings.output.removesuffix(".safetensors") + ".safetensors")
    if target.exists() and not _holds(target, agent):
        raise SettingError(f"--output: {str(target)!r} is there and holds other weights; delete it or choose another.")
    write_agent(target, agent, content)
    print(f"{target} and {target.with_suffix('.json').name}: {card.network} for {card.game}")


def _holds(path: Path, agent: nn.Module) -> bool:
    """Return whether the file holds the weights of ``agent``."""
    try:
        _, weights = read_agent(path)
    except SettingError:
        return False
    mine = agent.state_dict()
    return weights.keys() == mine.keys() and all(torch.equal(mine[name], tensor) for name, tensor in weights.items())


def _score(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: content[name] for name in ("score", "score_low95", "score_high95", "games", "actions")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"--test: {path!r} is not the JSON that a test writes.") from error
