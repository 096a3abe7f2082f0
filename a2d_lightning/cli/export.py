"""``python -m a2d_lightning export``: an agent as safetensors with a card, as ONNX, or for ``torch.export``."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from torch import nn

from a2d_lightning.agent_files import AgentCard, load_network, read_agent, write_agent
from a2d_lightning.cli.arguments import OPERATORS_HELP, description
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import ActorCritic, count_parameters
from a2d_lightning.nas.operators import operators_of
from a2d_lightning.runtime.errors import SettingError


def export(args: list[str]) -> None:
    """Export an agent: as <output>.safetensors with its card <output>.json, as <output>.onnx or as <output>.pt2.

    Raises:
        SettingError: If the checkpoint is missing, damaged or holds a supernet, the file of --test is not a test
            result, or the output cannot be written or holds other weights.
    """
    parser = ArgumentParser(prog="a2d_lightning export", description=description(export), exit_on_error=False)
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="checkpoint or .safetensors of an agent, or a bundled name"
    )
    parser.add_argument("--output", type=str, required=True, help="path; the suffix of the format is appended")
    parser.add_argument(
        "--format", type=Literal["safetensors", "onnx", "torch_export"], default="safetensors", help="of the file"
    )
    parser.add_argument(
        "--test", type=str, default=None, help="JSON written by `test`; its score is stored in the card"
    )
    parser.add_argument("--trained_by", type=str, default="", help="the command that trained it, for the card")
    parser.add_argument("--operators", type=dict[str, str | None] | None, default=None, help=OPERATORS_HELP)
    settings = parser.parse_args(args)
    operators_of(settings.operators)
    card, agent = load_network(settings.ckpt_path, "--ckpt_path")
    content: dict[str, Any] = {
        **card.to_dict(),
        "macs": count_macs(agent.backbone, torch.Size(card.frame_shape)),
        "parameters": count_parameters(agent.backbone),
        "score": _score(settings.test),
        "trained_by": settings.trained_by,
    }
    suffix = SUFFIXES[settings.format]
    # append instead of with_suffix, which would replace the ".1" of pong_lr0.1
    target = Path(settings.output.removesuffix(suffix) + suffix)
    WRITERS[settings.format](card, agent, target, content)
    print(f"{target}: {card.network} for {card.game}")


def _write_safetensors(card: AgentCard, agent: ActorCritic, target: Path, content: dict[str, Any]) -> None:
    if target.exists() and not _holds(target, agent):
        raise SettingError(f"--output: {str(target)!r} already exists with other weights; delete it or choose another.")
    write_agent(target, agent, content)


def _write_onnx(card: AgentCard, agent: ActorCritic, target: Path, content: dict[str, Any]) -> None:
    from a2d_lightning.deploy.onnx_export import export_onnx  # noqa: PLC0415 (slow to import)

    export_onnx(card, agent, target, content)


def _write_torch_export(card: AgentCard, agent: ActorCritic, target: Path, content: dict[str, Any]) -> None:
    from a2d_lightning.deploy.torch_export import export_torch  # noqa: PLC0415 (slow to import)

    export_torch(card, agent, target, content)


SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
WRITERS = {"safetensors": _write_safetensors, "onnx": _write_onnx, "torch_export": _write_torch_export}


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
        raise SettingError(f"--test: {path!r} is not a JSON file written by `test`.") from error
