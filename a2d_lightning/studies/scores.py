"""Scores in a bank's table as arrays, one game at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.studies.statistics import Array, mean_scores
from a2d_lightning.studies.table import Row, read_table


@dataclass(frozen=True)
class Networks:
    """Trained networks of one game, with their costs and scores."""

    names: tuple[str, ...]
    origins: tuple[str, ...]
    operators: tuple[tuple[str, ...], ...]
    plans: tuple[str, ...]
    macs: Array
    """MACs of the backbone for one observation, float64 ``[networks]``."""
    scores: Array
    """Scores, float64 ``[networks, seeds]``; NaN if a network lacks a seed."""

    def __len__(self) -> int:
        return len(self.names)

    def select(self, keep: Sequence[bool] | np.ndarray) -> "Networks":
        """Return the networks for which ``keep`` (bool ``[networks]``) is true."""
        indices = [int(i) for i in np.flatnonzero(np.asarray(keep))]
        return Networks(
            tuple(self.names[i] for i in indices),
            tuple(self.origins[i] for i in indices),
            tuple(self.operators[i] for i in indices),
            tuple(self.plans[i] for i in indices),
            self.macs[indices],
            self.scores[indices],
        )

    def means(self) -> Array:
        """Return mean scores over seeds, float64 ``[networks]``."""
        return mean_scores(self.scores)


def read_tables(paths: Sequence[str]) -> list[Row]:
    """Read several tables as one.

    Args:
        paths: CSV files.

    Raises:
        SettingError: If a table cannot be read, or the same evaluation occurs twice.
    """
    rows: dict[tuple[str, str, int, int], Row] = {}
    for path in paths:
        for row in read_table(Path(path)):
            key = row.game, row.name, row.seed, row.env_steps
            if key in rows:
                raise SettingError(
                    f"--bank: {path!r} repeats {row.name}, seed {row.seed}, from another table; keep only one of them."
                )
            rows[key] = row
    return list(rows.values())


def last_common_env_steps(rows: Sequence[Row]) -> int:
    """Return the largest number of environment steps at which every run has an evaluation.

    Raises:
        SettingError: If there is no such number.
    """
    steps: dict[tuple[str, str, int], set[int]] = {}
    for row in rows:
        steps.setdefault((row.game, row.name, row.seed), set()).add(row.env_steps)
    common = set.intersection(*steps.values()) if steps else set()
    if not common:
        raise SettingError("--bank: its runs have no common number of environment steps; choose one by --env_steps.")
    return max(common)


def networks_of(rows: Sequence[Row], game: str, env_steps: int) -> Networks:
    """Return the networks of a game, sorted by name, with their scores after ``env_steps``.

    Args:
        rows: Rows of tables.
        game: Game to select.
        env_steps: Environment steps of the evaluation to select.

    Raises:
        SettingError: If no network of the game has an evaluation after ``env_steps``.
    """
    chosen = [row for row in rows if row.game == game and row.env_steps == env_steps]
    if not chosen:
        raise SettingError(f"--env_steps: no run of {game} has an evaluation after {env_steps:,} steps.")
    seeds = sorted({row.seed for row in chosen})
    networks = {row.name: row for row in sorted(chosen)}
    scores = np.full((len(networks), len(seeds)), np.nan)
    index = {name: i for i, name in enumerate(networks)}
    for row in chosen:
        scores[index[row.name], seeds.index(row.seed)] = row.score
    found = networks.values()
    return Networks(
        tuple(networks),
        tuple(row.origin for row in found),
        tuple(tuple(row.operators.split()) for row in found),
        tuple(row.plan for row in found),
        np.array([row.macs for row in found], dtype=np.float64),
        scores,
    )
