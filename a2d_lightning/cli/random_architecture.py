"""``python -m a2d_lightning random_architecture``: random networks, of the cost of a searched one or over a range.

A uniform draw of operators gives networks of middling cost: with nine operators in each of six cells, cheap and
expensive ones are never drawn. Networks over a range of costs are therefore stratified: the range is cut into as many
windows as networks are wanted, equally wide in log MACs (costs are compared by their ratio), and one network is drawn
from each, uniformly among all networks of the search space whose MACs lie in the window.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from a2d_lightning.models.layers import FrameShape
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.search_space import OPERATORS, Plan, operator_macs
from a2d_lightning.runtime.errors import SettingError

TRIED = 100_000
TOLERANCE = 0.05
"""MACs may be that much less than the searched network's."""

BATCH = 1_000
BATCHES = 200
"""Draws for one window: after :data:`BATCHES` of :data:`BATCH` without a new network the window is doubled."""


def random_architecture(args: list[str]) -> None:
    """Write random architectures: one file, or with --count a folder of random_000.json and so on.

    With --like alone, networks are uniform among those of the same plan and frames and 95 % to 100 % of its MACs. With
    --macs, costs are spread over the range: one network in each of COUNT windows equally wide in log MACs, uniform
    among all networks in the window.

    Raises:
        SettingError: the file to be like cannot be read, no network has such a cost, or the output cannot be written.
    """
    parser = ArgumentParser(
        prog="a2d_lightning random_architecture", description=random_architecture.__doc__, exit_on_error=False
    )
    parser.add_argument(
        "--like", type=str | None, default=None, help="JSON of a search; its plan, frames and (without --macs) MACs"
    )
    parser.add_argument("--plan", type=Plan, default=Plan(), help="groups of cells, without --like")
    parser.add_argument("--frame_shape", type=tuple[int, int, int], default=(4, 84, 84), help="without --like")
    parser.add_argument("--macs", type=tuple[float, float] | None, default=None, help="range of costs: [LOW,HIGH]")
    parser.add_argument("--count", type=int | None, default=None, help="networks, all different; one file if absent")
    parser.add_argument("--seed", type=int, default=0, help="each gives other networks")
    parser.add_argument("--output", type=str, required=True, help="JSON to write; with --count a folder")
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
    """Return the first of a sequence of uniform draws that costs 95 % to 100 % of ``searched``.

    Raises:
        SettingError: there is none among those tried.
    """
    table, fixed_macs = operator_macs(searched.plan, searched.frame_shape)  # [cells, operators]
    generator = torch.Generator().manual_seed(seed)
    choices = torch.randint(len(OPERATORS), (TRIED, len(table)), generator=generator)  # [tried, cells]
    macs = table.gather(1, choices.T).sum(0) + fixed_macs  # [tried]
    fits = (macs <= searched.macs) & (macs >= (1 - TOLERANCE) * searched.macs)
    if not fits.any():
        raise SettingError(f"--like: none of {TRIED:,} random networks costs nearly {searched.macs:,} MACs.")
    first = int(fits.nonzero()[0])
    drawn = _architecture(searched.plan, searched.frame_shape, choices[first], int(macs[first]))
    return replace(drawn, game=searched.game)


def macs_range(plan: Plan, frame_shape: FrameShape) -> tuple[float, float]:
    """Return the MACs of the cheapest and of the most expensive network."""
    table, fixed_macs = operator_macs(plan, frame_shape)
    return float(table.amin(1).sum()) + fixed_macs, float(table.amax(1).sum()) + fixed_macs


def log_windows(low: float, high: float, count: int) -> list[tuple[float, float]]:
    """Cut a range of MACs into ``count`` windows that are equally wide in log MACs.

    Raises:
        SettingError: the range is empty.
    """
    if not 0 < low < high:
        raise SettingError(f"--macs: [{low:g}, {high:g}] must be [LOW, HIGH] with 0 < LOW < HIGH.")
    edges = [low * (high / low) ** (i / count) for i in range(count)] + [high]
    return list(itertools.pairwise(edges))


def draw_spread(
    plan: Plan, frame_shape: FrameShape, windows: Sequence[tuple[float, float]], seed: int, widen: bool = True
) -> list[Architecture]:
    """Draw a network for each window of MACs, all different.

    A draw is uniform among the networks in its window that no earlier one took. A window without such a network is
    doubled, a half to each side.

    Args:
        plan: groups, cells and channels.
        frame_shape: (stack, height, width) for which MACs are counted.
        windows: (lowest, highest MACs) of each network.
        seed: of the draws.
        widen: whether a window may be doubled; if not, it must hold enough networks.

    Raises:
        SettingError: a window lies outside the search space, or has too few networks.
    """
    table, fixed_macs = operator_macs(plan, frame_shape)  # [cells, operators]
    cheapest, most_expensive = macs_range(plan, frame_shape)
    generator = torch.Generator().manual_seed(seed)
    taken = torch.empty(0, len(table), dtype=torch.int64)
    too_few = SettingError(f"--count: {len(windows)} different networks of such MACs do not exist; choose fewer.")
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
    """Draw uniformly among the choices of operators whose MACs lie in a window and that are not taken.

    Rejection from a product distribution that favours the window: the probability of an operator is proportional to
    exp(beta MACs), with beta such that the mean of the sum is the window's middle. A choice in the window is accepted
    with a probability proportional to exp(-beta MACs), so that all accepted ones are equally likely.

    Args:
        table: MACs, float64 ``[cells, operators]``.
        low: lowest sum of MACs.
        high: highest sum of MACs.
        taken: choices that are rejected, int64 ``[taken, cells]``.
        generator: of the draws.

    Returns:
        int64 ``[cells]``, or None if all draws were rejected.
    """
    beta = _tilt(table, (low + high) / 2)
    probabilities = torch.softmax(beta * table, dim=1)
    for _ in range(BATCHES):
        choices = torch.multinomial(probabilities, BATCH, replacement=True, generator=generator).T  # [batch, cells]
        macs = table.gather(1, choices.T).sum(0)  # [batch]
        best = low if beta > 0 else high  # where the acceptance probability is 1
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
