"""CSV table of a bank, with one row for each evaluation of each trained network."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError


@dataclass(frozen=True, order=True)
class Row:
    """Evaluation of one trained network."""

    game: str
    name: str
    """Stem of the architecture's file name."""
    seed: int
    env_steps: int
    score: float
    """Mean score of full games."""
    origin: str
    """``random``, ``hand-made``, ``searched``, or the label given by ``--origin``."""
    operators: str
    """Operator names separated by spaces, one per cell."""
    plan: str
    """Cells and channels of the groups: ``2-2-2/8-16-32``."""
    frame_shape: str
    """Stack, height and width of the network's input: ``4x42x42``."""
    macs: int
    """Multiply-accumulates of the backbone for one observation of ``frame_shape``."""
    parameters: int
    """Number of parameters of the backbone."""


COLUMNS = [field.name for field in fields(Row)]
DECIMALS = 4
"""Decimal places of scores."""


def read_table(path: Path) -> list[Row]:
    """Read a bank's table.

    Args:
        path: CSV file.

    Raises:
        SettingError: If the file is missing or not a bank's table.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            content = list(csv.DictReader(file))
        return [_row(values) for values in content]
    except OSError as error:
        raise SettingError(f"bank: {str(path)!r} cannot be read ({error.strerror}); `bank` writes bank.csv.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(
            f"bank: {str(path)!r} is not a bank's table ({type(error).__name__}: {error}); its columns are "
            f"{', '.join(COLUMNS)}."
        ) from error


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write the table atomically, with rows sorted by game, name, seed and environment steps.

    Args:
        path: CSV file, replaced if it exists.
        rows: Rows in any order.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows):
        writer.writerow([f"{value:.{DECIMALS}f}" if isinstance(value, float) else value for value in astuple(row)])
    write_atomically(path, text.getvalue().encode())


def _row(values: dict[str, str]) -> Row:
    numbers = {name: int(values[name]) for name in ("seed", "env_steps", "macs", "parameters")}
    texts = {name: values[name] for name in ("game", "name", "origin", "operators", "plan", "frame_shape")}
    if any(not isinstance(text, str) for text in texts.values()):
        raise ValueError("a row is too short")
    return Row(score=float(values["score"]), **texts, **numbers)  # type: ignore[arg-type]
