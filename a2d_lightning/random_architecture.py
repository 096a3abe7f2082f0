"""``python -m a2d_lightning random_architecture``: a random network as dear as a searched one, the search's control."""

from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from a2d_lightning.errors import SettingError
from a2d_lightning.search_space import OPERATORS, Architecture, operator_macs

TRIED = 100_000
TOLERANCE = 0.05
"""MACs may be that much less than the searched network's; the budget's own range (``budget.py``) is as wide."""


def random_architecture(args: list[str]) -> None:
    """Writes an architecture, drawn uniformly among those with the plan, the frames and the MACs of another.

    Raises:
        SettingError: the file to be like cannot be read, no network is as dear, or the output cannot be written.
    """
    parser = ArgumentParser(prog="a2d_lightning random_architecture", description=__doc__, exit_on_error=False)
    parser.add_argument(
        "--like", type=str, required=True, help="JSON of a search, whose plan, frames and MACs are kept"
    )
    parser.add_argument("--seed", type=int, default=0, help="each gives another network")
    parser.add_argument("--output", type=str, required=True, help="JSON to write")
    settings = parser.parse_args(args)
    drawn = draw_like(Architecture.load(settings.like), settings.seed)
    try:
        drawn.save(Path(settings.output))
    except OSError as error:
        raise SettingError(f"--output: {settings.output!r} cannot be written ({error.strerror}).") from error
    print(f"{settings.output}: {', '.join(drawn.operators)}; {drawn.macs:,} MACs, {drawn.parameters:,} parameters")


def draw_like(searched: Architecture, seed: int) -> Architecture:
    """The first of a sequence of uniform draws that costs 95 % to 100 % of ``searched``.

    Raises:
        SettingError: there is none among those tried.
    """
    names = tuple(OPERATORS)
    table, fixed_macs = operator_macs(searched.plan, searched.frame_shape)  # [cells, operators]
    generator = torch.Generator().manual_seed(seed)
    choices = torch.randint(len(names), (TRIED, len(table)), generator=generator)  # [tried, cells]
    macs = table.gather(1, choices.T).sum(0) + fixed_macs  # [tried]
    fits = (macs <= searched.macs) & (macs >= (1 - TOLERANCE) * searched.macs)
    if not fits.any():
        raise SettingError(f"--like: none of {TRIED:,} random networks costs nearly {searched.macs:,} MACs.")
    first = int(fits.nonzero()[0])
    operators = tuple(names[i] for i in choices[first].tolist())
    drawn = replace(searched, operators=operators, macs=int(macs[first]), teacher="", env_steps=0)
    parameters = sum(p.numel() for p in drawn.build(drawn.frame_shape).parameters())
    return replace(drawn, parameters=parameters)
