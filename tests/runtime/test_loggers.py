"""The rows of a run's metrics outlive kills and full disks."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from runs import CATCH_ARGS, fit

from a2d_lightning.cli.curves import read_metrics
from a2d_lightning.modules import actor_critic
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.runtime.loggers import MetricsFile


def test_it_holds_what_lightnings_own_would(tmp_path: Path) -> None:
    sessions: list[list[dict[str, Any]]]
    sessions = [[{"a": 1.0}, {"a": 2.0}], [{"a": 3.0, "b": 4.0}], [{"b": 5.0}], [], [{"c": 6.0}, {"a": 7.0}]]
    written = []
    for kind in (CSVLogger, MetricsFile):
        logger = kind(tmp_path / kind.__name__, name="", version="")
        step = 0
        for rows in sessions:
            for row in rows:
                step += 1
                logger.log_metrics(row, step=step)
            logger.save()
        with open(tmp_path / kind.__name__ / "metrics.csv", encoding="utf-8", newline="") as file:
            written.append(list(csv.DictReader(file)))
    assert written[0] == written[1]
    assert [row["step"] for row in written[1]] == ["1", "2", "3", "4", "5", "6"]


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from a2d_lightning.cli.curves import read_metrics
from a2d_lightning.runtime.loggers import MetricsFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = Path(sys.argv[1]) / "metrics.csv"
logger = MetricsFile(sys.argv[1], name="", version="")

def saved(step, **metrics):
    if metrics:
        logger.log_metrics(metrics, step=step)
    logger.save()
    print(file.read_text().split())

saved(1, a=1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 2, resource.RLIM_INFINITY))
saved(2, a=2.0)  # two bytes of its row fit
saved(3, a=3.0, b=4.0)  # a new column
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
saved(0)
"""


def test_a_full_disk_costs_no_row(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    first, full, full_with_a_new_column, room = done.stdout.splitlines()
    assert first == full == full_with_a_new_column == str(["a,step", "1.0,1"])
    assert room == str(["a,b,step", "1.0,,1", "2.0,,2", "3.0,4.0,3"])
    assert (
        done.stderr.count("metrics.csv could not be written (File too large); unwritten rows are kept in memory") == 1
    )


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, [20, 40, 60, 80, 100]), (1e9, [20, 20, 60, 60, 60])])
def test_the_terminal_has_the_metrics_of_the_last_second_or_of_the_last_logging_step(
    seconds: float, shown: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_critic, "METRICS_SECONDS", seconds)
    seen = []
    monkeypatch.setattr(
        ActorCriticModule,
        "on_train_batch_end",
        lambda self, *_: seen.append(int(self.trainer.callback_metrics["step"])),
        raising=False,
    )
    fit("teacher", tmp_path, 100, *CATCH_ARGS, "--trainer.log_every_n_steps", "3")
    assert seen == shown
    with open(tmp_path / "metrics.csv", encoding="utf-8", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss/total"]] == ["60"]


def test_rows_of_lightnings_callbacks_have_the_same_clock(tmp_path: Path) -> None:
    args = [*CATCH_ARGS, "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    fit("teacher", tmp_path, 100, *args)
    fit("teacher", tmp_path, 200, *args, "--ckpt_path", "last")
    metrics = read_metrics(tmp_path)
    rates = next(series for name, series in metrics.items() if name.startswith("lr-"))
    # the monitor logs before each of ten rollouts of 20 steps, the module after it
    assert [step for step, _ in rates] == list(range(0, 200, 20))
    assert [step for step, _ in metrics["loss/policy"]] == list(range(20, 201, 20))


@pytest.mark.parametrize("asked", [["--trainer.logger"], ["--trainer.logger+"]])
def test_metrics_are_written_beside_a_logger_of_the_users(tmp_path: Path, asked: list[str]) -> None:
    logger = ["lightning.pytorch.loggers.TensorBoardLogger", "--trainer.logger.save_dir", str(tmp_path / "own")]
    fit("teacher", tmp_path / "run", 100, *CATCH_ARGS, *asked, *logger)
    assert list((tmp_path / "own").rglob("events.*"))
    assert [step for step, _ in read_metrics(tmp_path / "run")["loss/policy"]] == list(range(20, 101, 20))


def test_no_logs_are_written_where_none_are_wanted(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 100, *CATCH_ARGS, "--trainer.logger", "false")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == ["checkpoints", "config.yaml"]
