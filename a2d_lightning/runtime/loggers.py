"""What a run logs: no kill costs a row of ``metrics.csv``, and a full disk neither a row nor the run."""

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
    """Log everything against environment steps, whatever else a callback of Lightning's counts."""

    clock: Callable[[], int] | None = None
    """Environment steps so far; a module sets it when its training begins."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """See Lightning's."""
        super().log_metrics(metrics, step if self.clock is None else self.clock())  # type: ignore[safe-super]


class MetricsFile(OnEnvSteps, CSVLogger):
    """Lightning's CSVLogger, with a file that holds whole rows at any moment.

    Lightning's own empties the file when a new column comes and writes it again: a kill in between loses all rows. It
    also deletes the file of a run that is resumed; here the first new row makes it ``metrics-0.csv`` and so on.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    _waiting = _began = False

    def _check_log_dir_exists(self) -> None:
        """Delete nothing, where Lightning's deletes the file."""

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
                rank_zero_info(f"warning: {path} could not be written ({error.strerror}); its rows wait in memory")
            self._waiting = True
        else:
            self._waiting = False
            self.metrics_keys, self.metrics = columns, []


class TensorBoardFile(OnEnvSteps, TensorBoardLogger):
    """Lightning's TensorBoardLogger, which ends when the disk is full: TensorBoard's thread is gone by then, and raises
    its error at whatever is logged next."""

    _ended = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """See Lightning's."""
        self._as_long_as_it_lasts(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """See Lightning's."""
        self._as_long_as_it_lasts(super().log_hyperparams, *args, **kwargs)

    def save(self) -> None:
        """See Lightning's."""
        self._as_long_as_it_lasts(super().save)

    def finalize(self, status: str) -> None:
        """See Lightning's."""
        self._as_long_as_it_lasts(super().finalize, status)

    def _as_long_as_it_lasts(self, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._ended:
            return
        try:
            write(*args, **kwargs)
        except OSError as error:
            self._ended = True
            rank_zero_info(f"warning: TensorBoard's file could not be written ({error.strerror}) and ends here")


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
