"""Loggers that keep every row of ``metrics.csv`` through kills and full disks, and let the run continue."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.runtime.atomic_file import write_atomically


class OnEnvSteps(Logger):
    """Logger with environment steps as the x-axis, also for Lightning callbacks that count something else."""

    clock: Callable[[], int] | None = None
    """Function that returns the environment steps so far; a module sets it when training begins."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log ``metrics`` at the current environment step, or at ``step`` while there is no clock."""
        super().log_metrics(metrics, step if self.clock is None else self.clock())  # type: ignore[safe-super]


class MetricsFile(OnEnvSteps, CSVLogger):
    """Lightning's CSVLogger with a file that contains complete rows at any moment.

    CSVLogger empties and rewrites the file when a column is added, and a kill in between loses all rows. It also
    deletes the file of a resumed run. Here that file is renamed to ``metrics-0.csv``, ``metrics-1.csv`` and so on when
    the first new rows are saved.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the writer of the file, created at the first use."""
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    _waiting = _began = False

    def _check_log_dir_exists(self) -> None:
        """Keep the existing file, which Lightning's method deletes."""

    def save(self) -> None:
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        columns = sorted({*self.metrics_keys}.union(*self.metrics))
        try:
            if not self._began and path.exists():
                path.rename(path.with_name(f"metrics-{len(list(path.parent.glob('metrics-*.csv')))}.csv"))
            self._began = True
            if columns == self.metrics_keys and path.exists():
                _append(path, _csv(columns, self.metrics))
            else:
                header = dict(zip(columns, columns, strict=True))
                write_atomically(path, _csv(columns, [header, *_rows(path), *self.metrics]))
        except OSError as error:
            if not self._waiting:
                rank_zero_info(
                    f"warning: {path} could not be written ({error.strerror}); unwritten rows are kept in memory"
                )
            self._waiting = True
        else:
            self._waiting = False
            self.metrics_keys, self.metrics = columns, []


class TensorBoardFile(OnEnvSteps, TensorBoardLogger):
    """Lightning's TensorBoardLogger, which stops logging when the disk is full.

    TensorBoard's writer thread has ended by then, and the next logging call raises its error.
    """

    _ended = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Log metrics, unless an earlier write failed."""
        self._as_long_as_it_lasts(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log hyperparameters, unless an earlier write failed."""
        self._as_long_as_it_lasts(super().log_hyperparams, *args, **kwargs)

    def save(self) -> None:
        """Save the file, unless an earlier write failed."""
        self._as_long_as_it_lasts(super().save)

    def finalize(self, status: str) -> None:
        """Close the file, unless an earlier write failed."""
        self._as_long_as_it_lasts(super().finalize, status)

    def _as_long_as_it_lasts(self, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._ended:
            return
        try:
            write(*args, **kwargs)
        except OSError as error:
            self._ended = True
            rank_zero_info(
                f"warning: TensorBoard's file could not be written ({error.strerror}); later values are not written"
            )


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _csv(columns: list[str], rows: Iterable[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue().encode()


def _append(path: Path, content: bytes) -> None:
    size = path.stat().st_size
    try:
        with open(path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.truncate(path, size)
        raise
