"""``python -m a2d_lightning random_architecture``: random networks with the cost of a searched one or over a range.

Uniform draws of operators give networks of medium cost: with nine operators in each of six cells, cheap and expensive
networks practically never occur. Draws over a range of costs are therefore stratified: the range is divided into one
window per network, equally wide in log MACs because costs are compared by ratio. One network is drawn from each window,
uniformly among all networks of the search space whose MACs lie in the window.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from a2d_lightning.cli.arguments import description
from a2d_lightning.models.layers import FrameShape
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan, operator_macs
from a2d_lightning.runtime.errors import SettingError

TRIED = 100_000
TOLERANCE = 0.05
"""Largest relative difference by which MACs may fall below those of the searched network."""

BATCH = 1_000
BATCHES = 200
"""Limit of draws per window: :data:`BATCHES` batches of :data:`BATCH`; then the window is doubled."""


def random_architecture(args: list[str]) -> None:
    """Write random architectures: one file, or with --count a folder with random_000.json and so on.

    With --like and without --macs, networks are drawn uniformly from those with the same plan and frames and 95 % to
    100 % of the MACs. Otherwise costs are spread over --macs (default: the whole search space): one network from each
    of COUNT windows equally wide in log MACs, drawn uniformly from all networks in the window.

    Raises:
        SettingError: If the file of --like cannot be read, no network has such a cost, or the output cannot be written.
    """
    parser = ArgumentParser(
        prog="a2d_lightning random_architecture", description=description(random_architecture), exit_on_error=False
    )
    parser.add_argument(
        "--like",
        type=str | None,
        default=None,
        help="JSON of a searched architecture to match in plan, frames and (without --macs) MACs",
    )
    parser.add_argument("--plan", type=Plan, default=Plan(), help="groups of cells; only without --like")
    parser.add_argument("--frame_shape", type=tuple[int, int, int], default=(4, 84, 84), help="only without --like")
    parser.add_argument("--macs", type=tuple[float, float] | None, default=None, help="range of costs: [LOW,HIGH]")
    parser.add_argument(
        "--count", type=int | None, default=None, help="number of different networks; default: one file"
    )
    parser.add_argument("--seed", type=int, default=0, help="different seeds give different networks")
    parser.add_argument("--output", type=str, required=True, help="JSON file; with --count a folder")
    settings = parser.parse_args(args)
    if settings.count is not None and settings.count < 1:
        raise SettingError(f"--count: {settings.count} must be positive.")
    count = settings.count or 1
    like = Architecture.load(settings.like) if settings.like is not None else None
    if like is not None and settings.macs is None and settings.count is None:
        drawn = [draw_like(like, settings.seed)]
    elif like is not None and settings.macs is None:
        bounds = (1 - TOLERANCE) * like.macs, float(like.macs)
        drawn = draw_spread(like.plan, like.frame_shape, [bounds] * count, settings.seed, widen=False)
    else:
        plan = like.plan if like is not None else Plan(**vars(settings.plan))
        frame_shape = like.frame_shape if like is not None else settings.frame_shape
        low, high = settings.macs or macs_range(plan, frame_shape)
        drawn = draw_spread(plan, frame_shape, log_windows(low, high, count), settings.seed)
    output = Path(settings.output)
    paths = [output] if settings.count is None else [output / f"random_{i:03d}.json" for i in range(count)]
    for path, network in zip(paths, drawn, strict=True):
        try:
            network.save(path)
        except OSError as error:
            raise SettingError(f"--output: {str(path)!r} cannot be written ({error.strerror}).") from error
        print(f"{path}: {', '.join(network.operators)}; {network.macs:,} MACs, {network.parameters:,} parameters")


def draw_like(searched: Architecture, seed: int) -> Architecture:
    """Draw a network uniformly from those with 95 % to 100 % of the MACs of a searched one.

    Args:
        searched: Network that determines plan, frame shape and MACs.
        seed: Seed of the draws.

    Returns:
        The first of :data:`TRIED` uniform draws with such MACs.

    Raises:
        SettingError: If no draw has such MACs.
    """
    table, fixed_macs = operator_macs(searched.plan, searched.frame_shape)  # [cells, operators]
    generator = torch.Generator().manual_seed(seed)
    choices = torch.randint(len(OPERATORS), (TRIED, len(table)), generator=generator)  # [tried, cells]
    macs = table.gather(1, choices.T).sum(0) + fixed_macs  # [tried]
    fits = (macs <= searched.macs) & (macs >= (1 - TOLERANCE) * searched.macs)
    if not fits.any():
        raise SettingError(
            f"--like: none of {TRIED:,} random networks costs nearly {searched.macs:,} MACs; set a range with --macs."
        )
    first = int(fits.nonzero()[0])
    drawn = _architecture(searched.plan, searched.frame_shape, choices[first], int(macs[first]))
    return replace(drawn, game=searched.game)


def macs_range(plan: Plan, frame_shape: FrameShape) -> tuple[float, float]:
    """Return the MACs of the cheapest and of the most expensive network.

    Args:
        plan: Groups, cells and channels.
        frame_shape: (stack, height, width) for which MACs are counted.
    """
    table, fixed_macs = operator_macs(plan, frame_shape)
    return float(table.amin(1).sum()) + fixed_macs, float(table.amax(1).sum()) + fixed_macs


def log_windows(low: float, high: float, count: int) -> list[tuple[float, float]]:
    """Divide a range of MACs into windows equally wide in log MACs.

    Args:
        low: Lowest MACs, positive.
        high: Highest MACs.
        count: Number of windows.

    Returns:
        (lowest, highest MACs) of each window, in increasing order.

    Raises:
        SettingError: If the range is empty or ``low`` is not positive.
    """
    if not 0 < low < high:
        raise SettingError(f"--macs: [{low:g}, {high:g}] must be [LOW, HIGH] with 0 < LOW < HIGH.")
    edges = [low * (high / low) ** (i / count) for i in range(count)] + [high]
    return list(itertools.pairwise(edges))


def draw_spread(
    plan: Plan, frame_shape: FrameShape, windows: Sequence[tuple[float, float]], seed: int, widen: bool = True
) -> list[Architecture]:
    """Draw one network from each window of MACs, all different.

    Each draw is uniform over the networks in the window that have not been drawn before. If no such network is found,
    the window is doubled, by half of its width to each side.

    Args:
        plan: Groups, cells and channels.
        frame_shape: (stack, height, width) for which MACs are counted.
        windows: (lowest, highest MACs) for each network.
        seed: Seed of the draws.
        widen: Whether a window may be doubled; otherwise each window must hold enough networks.

    Returns:
        One network per window, in the order of the windows.

    Raises:
        SettingError: If a window lies outside the search space or has too few networks.
    """
    table, fixed_macs = operator_macs(plan, frame_shape)  # [cells, operators]
    cheapest, most_expensive = macs_range(plan, frame_shape)
    generator = torch.Generator().manual_seed(seed)
    taken = torch.empty(0, len(table), dtype=torch.int64)
    too_few = SettingError(f"--count: {len(windows)} different networks with such MACs do not exist; choose fewer.")
    if len(windows) > len(OPERATORS) ** len(table):
        raise too_few
    drawn = []
    for low, high in windows:
        if high < cheapest or low > most_expensive:
            raise SettingError(
                f"--macs: {low:,.0f} to {high:,.0f} MACs lies outside the search space, which has {cheapest:,.0f} to "
                f"{most_expensive:,.0f}."
            )
        choice = _draw(table, (low - fixed_macs, high - fixed_macs), taken, generator, widen)
        if choice is None:
            raise too_few
        taken = torch.cat([taken, choice[None]])
        macs = int(table.gather(1, choice[:, None]).sum()) + fixed_macs
        drawn.append(_architecture(plan, frame_shape, choice, macs))
    return drawn


def _draw(
    table: Tensor, window: tuple[float, float], taken: Tensor, generator: torch.Generator, widen: bool
) -> Tensor | None:
    low, high = window
    smallest, largest = float(table.amin(1).sum()), float(table.amax(1).sum())
    while True:
        choice = draw_in_window(table, low, high, taken, generator)
        if choice is not None or not widen or (low <= smallest and high >= largest):
            return choice
        half = (high - low) / 2
        low, high = low - half, high + half


def draw_in_window(table: Tensor, low: float, high: float, taken: Tensor, generator: torch.Generator) -> Tensor | None:
    """Draw operators uniformly from all choices whose MACs lie in a window and that are not taken.

    Rejection sampling from a product distribution that favours the window: the probability of an operator is
    proportional to exp(beta MACs), with beta such that the expected sum of MACs is the middle of the window. A choice
    in the window is accepted with a probability proportional to exp(-beta MACs), which makes all accepted choices
    equally likely.

    Args:
        table: MACs of the operators, float64 ``[cells, operators]``.
        low: Lowest sum of MACs.
        high: Highest sum of MACs.
        taken: Choices to reject, int64 ``[taken, cells]``.
        generator: Source of random numbers.

    Returns:
        Indices of operators, int64 ``[cells]``; None if all draws were rejected.
    """
    beta = _tilt(table, (low + high) / 2)
    probabilities = torch.softmax(beta * table, dim=1)
    for _ in range(BATCHES):
        choices = torch.multinomial(probabilities, BATCH, replacement=True, generator=generator).T  # [batch, cells]
        macs = table.gather(1, choices.T).sum(0)  # [batch]
        best = low if beta > 0 else high  # sum of MACs at which the acceptance probability is 1
        accepted = torch.rand(BATCH, dtype=torch.float64, generator=generator) < torch.exp(-beta * (macs - best))
        accepted &= (macs >= low) & (macs <= high)
        accepted &= ~(choices[:, None] == taken).all(2).any(1)
        if accepted.any():
            return choices[int(accepted.nonzero()[0])]
    return None


def _tilt(table: Tensor, mean: float) -> float:
    """Find beta such that the expected sum of MACs under softmax(beta MACs) is ``mean``, by bisection."""
    smallest, largest = float(table.amin(1).sum()), float(table.amax(1).sum())
    scale = float(table.amax()) or 1.0
    if not smallest < mean < largest:
        return math.copysign(50.0 / scale, mean - largest + 1e-9)
    low, high = -200.0 / scale, 200.0 / scale
    for _ in range(60):
        beta = (low + high) / 2
        if float((torch.softmax(beta * table, dim=1) * table).sum()) < mean:
            low = beta
        else:
            high = beta
    return (low + high) / 2


def _architecture(plan: Plan, frame_shape: FrameShape, choice: Tensor, macs: int) -> Architecture:
    names = tuple(OPERATORS)
    operators = tuple(names[i] for i in choice.tolist())
    draft = Architecture(operators, plan, frame_shape, macs, 0)
    parameters = sum(p.numel() for p in draft.build(frame_shape).parameters())
    return replace(draft, parameters=parameters)
