"""Reports of judgements: JSON, markdown tables and a picture."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from a2d_lightning.studies.judgement import Judgement, Sampled, estimate, mean_over_searches
from a2d_lightning.studies.scores import Networks
from a2d_lightning.studies.statistics import Estimate, averaged


def over_games(judgements: Sequence[Judgement]) -> dict[str, Estimate]:
    """Return the mean of each estimate over the games that have it, by name."""
    parts: list[tuple[str, list[Sampled | None]]] = [
        ("tau", [mean_over_searches(judgement.taus) for judgement in judgements]),
        ("equal_cost_tau", [mean_over_searches(judgement.equal_cost_taus) for judgement in judgements]),
        ("inherited_tau", [mean_over_searches(judgement.inherited_taus) for judgement in judgements]),
        ("macs_tau", [judgement.macs_tau for judgement in judgements]),
        ("improvement", [judgement.improvement for judgement in judgements]),
    ]
    found = {name: [part for part in of_games if part is not None] for name, of_games in parts}
    return {name: averaged(of_games) for name, of_games in found.items() if of_games}


def to_json(judgements: Sequence[Judgement], env_steps: int) -> dict[str, Any]:
    """Convert judgements to plain values for JSON; NaN becomes None.

    Args:
        judgements: One per game.
        env_steps: Environment steps after which networks were scored.
    """
    games = {judgement.game: _game_json(judgement) for judgement in judgements}
    content = {"env_steps": env_steps, "games": games, "over_games": _plain(over_games(judgements))}
    plain: dict[str, Any] = _plain(content)
    return plain


def _game_json(judgement: Judgement) -> dict[str, Any]:
    window, searched = judgement.window, judgement.searched
    return {
        "networks": len(judgement.networks),
        "seeds": judgement.networks.scores.shape[1],
        "ceiling": {"split_half": judgement.split_half, "perfect_predictor": judgement.perfect},
        "macs_tau": estimate(judgement.macs_tau),
        "searches": {
            name: {
                "tau": estimate(tau),
                "equal_cost_tau": estimate(judgement.equal_cost_taus.get(name)),
                "inherited_tau": estimate(judgement.inherited_taus.get(name)),
            }
            for name, tau in judgement.taus.items()
        },
        "mean_tau": estimate(mean_over_searches(judgement.taus)),
        "mean_equal_cost_tau": estimate(mean_over_searches(judgement.equal_cost_taus)),
        "mean_inherited_tau": estimate(mean_over_searches(judgement.inherited_taus)),
        "agreement": judgement.agreement and asdict(judgement.agreement),
        "window": window
        and {
            "low_macs": window.low,
            "high_macs": window.high,
            "networks": len(window.networks),
            "mean_score": float(window.networks.means().mean()),
            "widened": window.widened,
        },
        "searched": searched
        and {
            name: {"score": float(score), "macs": float(macs), "percentile": judgement.percentiles[name]}
            for name, score, macs in zip(searched.names, searched.means(), searched.macs, strict=True)
        },
        "improvement": estimate(judgement.improvement),
        "best_of_k": judgement.best_of_k,
        "random_search": dict(zip(("trainings", "score"), judgement.random_search() or (), strict=False)) or None,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Estimate):
        return _plain(asdict(value))
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def to_markdown(judgements: Sequence[Judgement], env_steps: int) -> str:
    """Format a table of all games and a list of details for each game.

    Args:
        judgements: One per game.
        env_steps: Environment steps after which networks were scored.
    """
    lines = [
        f"Trained scores after {env_steps:,} environment steps; intervals cover 95 %.",
        "",
        "| game | networks x seeds | tau of alpha | at equal cost | tau of inherited weights | tau of MACs | "
        "ceiling: perfect, split half | P(searched > random) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for judgement in judgements:
        size = f"{len(judgement.networks)} x {judgement.networks.scores.shape[1]}"
        means = [
            mean_over_searches(taus) for taus in (judgement.taus, judgement.equal_cost_taus, judgement.inherited_taus)
        ]
        cells = [
            *(judgement.game, size),
            *(_text(estimate(sampled)) for sampled in (*means, judgement.macs_tau)),
            f"{_number(judgement.perfect)}, {_number(judgement.split_half)}",
            _text(estimate(judgement.improvement)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(judgements) > 1:
        mean = over_games(judgements)
        names = ("tau", "equal_cost_tau", "inherited_tau", "macs_tau")
        cells = ["mean", "", *(_text(mean.get(name)) for name in names), "", _text(mean.get("improvement"))]
        lines.append(f"| {' | '.join(cells)} |")
    for judgement in judgements:
        lines += ["", *_game_markdown(judgement)]
    return "\n".join(lines) + "\n"


def _game_markdown(judgement: Judgement) -> list[str]:
    lines = [f"**{judgement.game}**", ""]
    for name, tau in judgement.taus.items():
        others = {
            "at equal cost": judgement.equal_cost_taus.get(name),
            "of inherited weights": judgement.inherited_taus.get(name),
        }
        found = [f", {what} {_text(estimate(sampled))}" for what, sampled in others.items() if sampled]
        lines.append(f"- search {name}: tau of alpha {_text(estimate(tau))}{''.join(found)}")
    if judgement.agreement is not None:
        alike = judgement.agreement
        lines.append(
            f"- alpha between searches ({alike.pairs} pairs): correlation {_number(alike.pearson)} (Pearson), "
            f"{_number(alike.spearman)} (Spearman), the same operator in {alike.same_operator:.1f} of {alike.cells} "
            "cells"
        )
    if judgement.window is not None:
        window = judgement.window
        wider = " (widened, as fewer lie in 90 % to 100 % of the target)" * window.widened
        lines.append(
            f"- equal cost: {len(window.networks)} random networks of {window.low:,.0f} to {window.high:,.0f} MACs"
            f"{wider}, mean score {window.networks.means().mean():.2f}"
        )
    if judgement.searched is not None:
        searched = judgement.searched
        for name, score, macs in zip(searched.names, searched.means(), searched.macs, strict=True):
            lines.append(
                f"- searched network {name}: {macs:,.0f} MACs, score {score:.2f}, percentile "
                f"{judgement.percentiles[name]:.0f} of random networks of equal cost"
            )
    if judgement.best_of_k:
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= len(judgement.best_of_k)]
        curve = ", ".join(f"{judgement.best_of_k[k - 1]:.2f} ({k})" for k in ks)
        lines.append(f"- random search, expected score of the best of k trained networks: {curve}")
    if (affordable := judgement.random_search()) is not None:
        lines.append(f"- random search in the same wall time: {affordable[0]} trainings, score {affordable[1]:.2f}")
    return lines


def _text(value: Estimate | None) -> str:
    return "" if value is None else "" if math.isnan(value.value) else str(value)


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


WIDE_RANGE = 3
"""Ratio of highest to lowest cost above which the axis of costs is logarithmic."""


def plot(judgements: Sequence[Judgement], output: Path) -> None:
    """Write a picture of score against MACs, one panel per game.

    Args:
        judgements: One per game.
        output: Path of the picture; its folder is created.

    Raises:
        OSError: If the picture cannot be written.
    """
    matplotlib.use("Agg")
    columns = min(3, len(judgements))
    rows = -(-len(judgements) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.5 * columns, 4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(judgements) :]:
        axis.axis("off")
    for axis, judgement in zip(axes.flat, judgements, strict=False):
        _panel(axis, judgement)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _panel(axis: Axes, judgement: Judgement) -> None:
    if judgement.window is not None:
        axis.axvspan(judgement.window.low, judgement.window.high, color="tab:orange", alpha=0.12, label="equal cost")
    _points(axis, judgement.networks, "o", "tab:blue", "random", 4)
    if judgement.searched is not None:
        _points(axis, judgement.searched, "*", "tab:red", "searched", 13)
    low, high = axis.get_xlim()
    if low > 0 and high > WIDE_RANGE * low:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.set_title(judgement.game, fontsize=11)
    axis.set_xlabel("MACs a frame")
    axis.set_ylabel("score")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _points(axis: Axes, networks: Networks, marker: str, color: str, label: str, size: float) -> None:
    """Draw means over seeds, with a thin line from the lowest to the highest seed."""
    means, scores = networks.means(), networks.scores
    for macs, seeds in zip(networks.macs, scores, strict=True):
        known = seeds[~np.isnan(seeds)]
        axis.plot([macs, macs], [known.min(), known.max()], color=color, alpha=0.25, linewidth=1)
    axis.plot(networks.macs, means, marker, color=color, markersize=size, label=f"{label} ({len(networks)})")
