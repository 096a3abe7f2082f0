"""``python -m a2d_lightning derive``: networks of a search checkpoint, by the paper's argmax or within MACs limits."""

from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.cli.arguments import OPERATORS_HELP
from a2d_lightning.modules.search_result import SearchResult
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.derivation import Argmax, Derivation, MaxAlphaUnderMacs
from a2d_lightning.nas.operators import operators_of
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.runtime.errors import SettingError


def derive(args: list[str]) -> None:
    """Write ``<output>/macs-<limit>.json`` for each limit, or ``<output>/argmax.json``, and print a table.

    Args:
        args: Command-line arguments after the command name.

    Raises:
        SettingError: If the checkpoint is not from a search, no network meets a limit, or the output cannot be
            written.
    """
    parser = ArgumentParser(prog="a2d_lightning derive", description=__doc__, exit_on_error=False)
    parser.add_argument("--from", type=str, required=True, help="checkpoint of a search, or its run folder")
    parser.add_argument(
        "--target_macs", type=str, default=None, help="MACs limits (5e5,1e6); default: the paper's argmax"
    )
    parser.add_argument("--output", type=str, required=True, help="folder for the JSON files")
    parser.add_argument("--operators", type=dict[str, str | None] | None, default=None, help=OPERATORS_HELP)
    settings = parser.parse_args(args)
    operators_of(settings.operators)
    targets = [None] if settings.target_macs is None else _limits(settings.target_macs)
    search, output = SearchResult.read(settings["from"], "--from"), Path(settings.output)
    supernet = _supernet(search)
    # check all limits before writing any file
    derived = [_derived(supernet, search.card, target) for target in targets]
    rows = [("limit", "MACs", "log alpha", "operators")]
    for target, architecture in zip(targets, derived, strict=True):
        name = "argmax" if target is None else f"macs-{target}"
        try:
            architecture.save(output / f"{name}.json")
        except OSError as error:
            raise SettingError(f"--output: {str(output)!r} cannot be written ({error.strerror}).") from error
        limit = "none" if target is None else f"{target:,}"
        (log_probability,) = search.rate([architecture.operators])
        rows.append((limit, f"{architecture.macs:,}", f"{log_probability:.4f}", " ".join(architecture.operators)))
    print(f"{output}: {len(derived)} architectures from {search.path}")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *numbers, operators in rows:
        print("  ".join([*(text.rjust(width) for text, width in zip(numbers, widths, strict=True)), operators]))


def _limits(given: str) -> list[int]:
    """Parse ``5e5,1e6`` or ``[5e5,1e6]``; fractions are cut off because MACs are whole numbers.

    Raises:
        SettingError: If ``given`` is not a list of numbers.
    """
    try:
        limits = [int(float(part)) for part in given.strip().removeprefix("[").removesuffix("]").split(",")]
    except (ValueError, OverflowError):
        limits = []
    if not limits:
        raise SettingError(f"--target_macs: {given!r} is not a list of numbers; write them as 5e5,1e6.")
    return list(dict.fromkeys(limits))


def _supernet(search: SearchResult) -> Supernet:
    """Build the supernet of a search with the searched alpha and fresh weights."""
    supernet = Supernet(search.plan, search.card.frame_shape, operators=search.builders())
    with torch.no_grad():
        supernet.alpha_logits.copy_(torch.from_numpy(search.log_alpha))
    return supernet


def _derived(supernet: Supernet, card: AgentCard, target: int | None) -> Architecture:
    """Derive the most probable network within ``target`` MACs; without a target, the paper's argmax.

    Raises:
        SettingError: If even the cheapest network exceeds the target.
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
