"""``python -m a2d_lightning derive``: networks of a search's checkpoint, the paper's or one for each MACs limit."""

from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from a2d_lightning.checkpoints import newest_good
from a2d_lightning.errors import SettingError
from a2d_lightning.nas.derivation import Argmax, Derivation, MaxAlphaUnderMacs
from a2d_lightning.search_space import Architecture, Plan
from a2d_lightning.supernet import OPERATOR_NAMES, Supernet
from a2d_lightning.teachers import AgentCard, read_agent

ALPHA = "backbone.alpha_logits"
"""Name of alpha among the weights of a searched agent."""


def derive(args: list[str]) -> None:
    """Write ``<output>/macs-<limit>.json`` for each limit, or ``<output>/argmax.json``, and print a table.

    Raises:
        SettingError: the checkpoint is not a search's, no network meets a limit, or the output cannot be written.
    """
    parser = ArgumentParser(prog="a2d_lightning derive", description=__doc__, exit_on_error=False)
    parser.add_argument("--from", type=str, required=True, help="checkpoint of a search, or its run folder")
    parser.add_argument("--target_macs", type=str, default=None, help="limits (5e5,1e6); the paper's argmax if absent")
    parser.add_argument("--output", type=str, required=True, help="folder of the JSON files")
    settings = parser.parse_args(args)
    targets = [None] if settings.target_macs is None else _limits(settings.target_macs)
    source, output = _checkpoint(settings["from"]), Path(settings.output)
    card, weights = read_agent(source)
    supernet = _supernet(card, weights, source)
    derived = [
        _derived(supernet, card, target) for target in targets
    ]  # all limits are checked before a file is written
    rows = [("limit", "MACs", "log alpha", "operators")]
    for target, architecture in zip(targets, derived, strict=True):
        name = "argmax" if target is None else f"macs-{target}"
        try:
            architecture.save(output / f"{name}.json")
        except OSError as error:
            raise SettingError(f"--output: {str(output)!r} cannot be written ({error.strerror}).") from error
        limit = "none" if target is None else f"{target:,}"
        total = f"{log_probability(supernet, architecture):.4f}"
        rows.append((limit, f"{architecture.macs:,}", total, " ".join(architecture.operators)))
    print(f"{output}: {len(derived)} of {source}")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *numbers, operators in rows:
        print("  ".join([*(text.rjust(width) for text, width in zip(numbers, widths, strict=True)), operators]))


@torch.no_grad()
def log_probability(supernet: Supernet, architecture: Architecture) -> float:
    """Sum log alpha of the architecture's operators over the cells."""
    log_alpha = supernet.alpha_logits.double().log_softmax(-1)  # [cells, operators]
    chosen = torch.tensor([OPERATOR_NAMES.index(name) for name in architecture.operators])
    return float(log_alpha.gather(1, chosen[:, None]).sum())


def _limits(given: str) -> list[int]:
    """Parse ``5e5,1e6`` or ``[5e5,1e6]``; limits are whole numbers, since MACs are."""
    try:
        limits = [int(float(part)) for part in given.strip().removeprefix("[").removesuffix("]").split(",")]
    except (ValueError, OverflowError):
        limits = []
    if not limits:
        raise SettingError(f"--target_macs: {given!r} is not a list of numbers; write them as 5e5,1e6.")
    return list(dict.fromkeys(limits))


def _checkpoint(given: str) -> Path:
    """Find the checkpoint: ``given`` itself, or the newest intact one of the run in that folder."""
    path = Path(given)
    if path.is_dir():
        newest = newest_good(path / "checkpoints")
        if newest is None:
            raise SettingError(f"--from: {given!r} holds no checkpoint; name the run folder of a search.")
        return newest
    if not path.is_file():
        raise SettingError(f"--from: there is no checkpoint {given!r}; name one of a search, or its run folder.")
    return path


def _supernet(card: AgentCard, weights: dict[str, Tensor], source: Path) -> Supernet:
    """Build the supernet that the checkpoint's card describes, with its alpha and fresh weights."""
    content = (card.architecture or {}).get("plan")
    if card.network != "supernet" or ALPHA not in weights or not isinstance(content, dict):
        raise SettingError(f"--from: {source} is a checkpoint of network {card.network!r}; take one of a search.")
    plan = Plan(tuple(content.get("cells_per_group", ())), tuple(content.get("channels", ())))
    supernet = Supernet(plan, card.frame_shape)
    alpha = weights[ALPHA]
    if alpha.shape != supernet.alpha_logits.shape:
        raise SettingError(
            f"--from: alpha of {source} is {list(alpha.shape)}, its plan and this release's operators need "
            f"{list(supernet.alpha_logits.shape)}; take another."
        )
    with torch.no_grad():
        supernet.alpha_logits.copy_(alpha)
    return supernet


def _derived(supernet: Supernet, card: AgentCard, target: int | None) -> Architecture:
    """Derive the most probable network within ``target`` MACs, or the paper's argmax.

    Raises:
        SettingError: the cheapest network costs more.
    """
    cheapest, _ = supernet.macs_range()
    if target is not None and target < cheapest:
        raise SettingError(
            f"--target_macs: {target:,} is less than the cheapest network of this search costs ({cheapest:,}); give at "
            f"least {cheapest:,}."
        )
    rule: Derivation = Argmax() if target is None else MaxAlphaUnderMacs(target)
    supernet.derivation = rule
    return supernet.derive(card.game, str((card.architecture or {}).get("teacher", "")), card.env_steps)
