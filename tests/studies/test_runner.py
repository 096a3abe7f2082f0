"""The runner of many runs: real tiny runs, really killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from toy_runs import arguments, environment, jobs, save_architecture

from a2d_lightning.cli.curves import read_metrics
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.signals import INTERRUPTED
from a2d_lightning.studies import runner
from a2d_lightning.studies.job import FINISHED, LOG, STARTED, Job

SCRIPT = """
import sys
from pathlib import Path
from toy_runs import jobs
from a2d_lightning.runtime.errors import RunFailedError
from a2d_lightning.runtime.signals import INTERRUPTION, Interrupted
from a2d_lightning.studies.runner import run_jobs

if __name__ == "__main__":
    folder, count, seconds, steps, address = sys.argv[1:]
    INTERRUPTION.catch_signals()
    try:
        run_jobs(jobs(Path(folder), int(count), float(seconds), int(steps)), 2, address or None)
    except RunFailedError as error:
        sys.exit(str(error))
    except Interrupted:
        sys.exit(75)
"""


def start(folder: Path, count: int, seconds: float = 0.0, steps: int = 400, address: str = "") -> subprocess.Popen:
    script = folder / "study.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), str(count), str(seconds), str(steps), address]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)


def training(folder: Path, count: int) -> list[bool]:
    return [any((folder / "runs" / f"seed{i}").glob("events*")) for i in range(count)]


def wait_until_all_train(folder: Path, count: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not all(training(folder, count)):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(2)


def left_of(folder: Path) -> list[str]:
    """Processes that use a file below ``folder`` and still run; looked for during ten seconds."""
    found: list[str] = []
    for _ in range(100):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(folder) in os.readlink(process / "fd" / "1"):
                    found.append(process.name)
        if not found:
            break
        time.sleep(0.1)
    return found


def scores(folder: Path, count: int) -> list[Any]:
    return [read_metrics(folder / "runs" / f"seed{i}") for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda signum: signum.name)
def test_a_killed_study_leaves_no_process_and_resumes_to_the_same_metrics(kill: signal.Signals, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert start(whole, 3).wait(timeout=240) == 0
    process = start(killed, 3, seconds=0.5)
    wait_until_all_train(killed, 2, process)
    began = time.monotonic()
    process.send_signal(kill)
    status = process.wait(timeout=30)
    assert left_of(killed) == []
    assert time.monotonic() - began < 11
    assert status == (-kill if kill == signal.SIGKILL else INTERRUPTED)
    for i in range(2):
        assert (killed / "runs" / f"seed{i}" / "checkpoints" / "last.ckpt").is_file()
        assert "interrupted by SIGTERM" in (killed / "runs" / f"seed{i}" / LOG).read_text()
    # the callback's delay is an argument; without it the rest is quick
    for path in (killed / "runs").glob(f"*/{STARTED}"):
        path.write_text(path.read_text().replace("0.5}", "0.0}"))
    again = start(killed, 3)
    printed, _ = again.communicate(timeout=240)
    assert again.returncode == 0, printed
    assert scores(killed, 3) == scores(whole, 3)
    # a third start has nothing to do
    third = start(killed, 3)
    printed, _ = third.communicate(timeout=60)
    assert (third.returncode, printed) == (0, "3/3 jobs were finished before\n")


@pytest.mark.slow
def test_a_study_on_a_cluster_stops_and_resumes(tmp_path: Path) -> None:
    process = start(tmp_path, 2, seconds=0.5, address="local")
    wait_until_all_train(tmp_path, 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == INTERRUPTED
    assert left_of(tmp_path) == []
    assert "interrupted by SIGTERM" in (tmp_path / "runs" / "seed0" / LOG).read_text()
    again = start(tmp_path, 2, seconds=0.5, address="local")
    printed, _ = again.communicate(timeout=240)
    assert again.returncode == 0, printed
    assert [found["val/score"][0][0] for found in scores(tmp_path, 2)] == [400, 400]


@pytest.mark.slow
def test_a_failed_job_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    script = SCRIPT.replace("jobs(Path(folder), int(count), float(seconds), int(steps))", "both(Path(folder))").replace(
        "if __name__",
        "def both(folder):\n"
        "    from a2d_lightning.studies.job import Job\n"
        "    good = jobs(folder, 1)[0]\n"
        "    bad = Job('bad', (*good.arguments, '--data.num_envs', 'many'), folder / 'runs' / 'bad')\n"
        "    return [bad, good]\n\n"
        "if __name__",
    )
    (tmp_path / "study.py").write_text(script)
    command = [sys.executable, str(tmp_path / "study.py"), str(tmp_path), "1", "0", "0", ""]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if " bad " in line)
    assert "FAILED (exit status 2): error: " in line
    assert "num_envs" in line
    assert "1 of 2 jobs failed: bad;" in done.stderr
    assert jobs(tmp_path, 1)[0].finished
    assert not (tmp_path / "runs" / "bad" / FINISHED).exists()


def test_other_arguments_than_before_are_named(tmp_path: Path) -> None:
    architecture = save_architecture(tmp_path / "a.json")
    job = Job("a", arguments(architecture), tmp_path / "run")
    job.mark_started()
    job.check_arguments()
    changed = Job("a", arguments(architecture, steps=800), tmp_path / "run")
    for _ in range(2):
        with pytest.raises(
            SettingError,
            match=r"other arguments \(before: --data.total_env_steps 400 .*; now: --data.total_env_steps 800 ",
        ):
            changed.check_arguments()
        job.mark_finished(1.0)  # a finished job is no different
        (tmp_path / "run" / STARTED).unlink(missing_ok=True)


def test_a_finished_job_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("started")

    monkeypatch.setattr(runner, "start_process", refuse)
    job = Job("a", ("--x", "1"), tmp_path / "run")
    job.mark_finished(3.0)
    ended: list[Job] = []
    runner.run_jobs([job], 1, after_each=ended.append)
    assert (ended, capsys.readouterr().out) == ([], "1/1 jobs were finished before\n")
    assert json.loads((tmp_path / "run" / FINISHED).read_text())["exit_status"] == 0


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(SettingError, match="contains a run that this study did not start"):
        Job("a", (), tmp_path).check_arguments()
