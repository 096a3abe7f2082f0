"""A bank: many small runs into one table, which can be continued without the runs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import PLAN, arguments, environment, save_architecture

from a2d_lightning.cli.curves import read_metrics
from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.studies import bank as module
from a2d_lightning.studies.bank import Recipe, bank, origin_of, read_networks
from a2d_lightning.studies.job import Job
from a2d_lightning.studies.table import Row, read_table, write_table

ROW = Row("pong", "random_1", 0, 100, -20.12346, "random", "skip skip", "2/8", "4x42x42", 1000, 50)


def overrides() -> list[str]:
    """The toy runs' settings, as a list of --name=value."""
    words = [word for word in arguments("x")[4:] if not word.startswith("--trainer.callbacks")]
    pairs = [f"{a}={b}" for a, b in zip(words[::2], words[1::2], strict=True) if a != "--seed_everything"]
    return [*pairs, "--trainer.callbacks+=toy_runs.Registered"]


def command(tmp_path: Path, *more: str) -> list[str]:
    config = arguments("x")[1]
    return [
        *("--config", config, "--architectures", str(tmp_path / "networks"), "--seeds", "[3,4]", "--workers", "2"),
        *("--output", str(tmp_path / "bank"), "--overrides", json.dumps(overrides()), *more),
    ]


@pytest.mark.slow
def test_a_bank_continues_from_its_table_alone(tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    save_architecture(tmp_path / "networks" / "random_1.json", "conv_k3")

    def run(*more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "a2d_lightning", "bank", *command(tmp_path, *more)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 evaluations of 1 networks" in run()
    path = tmp_path / "bank" / "bank.csv"
    rows = read_table(path)
    assert [(row.name, row.seed, row.env_steps) for row in rows] == [("random_1", 3, 400), ("random_1", 4, 400)]
    for row in rows:
        ((_, score),) = read_metrics(tmp_path / "bank" / "runs" / f"random_1-s{row.seed}")["val/score"]
        assert row.score == pytest.approx(score, abs=1e-4)
        backbone = Architecture(("conv_k3",), PLAN, (2, 12, 12), 0, 0).build((2, 12, 12))
        assert row.macs == count_macs(backbone, torch.Size((2, 12, 12)))
        assert (row.origin, row.plan, row.frame_shape, row.operators) == ("random", "1/4", "2x12x12", "conv_k3")
    # the folders are gone, as on another machine; another network joins, and its folders are deleted
    shutil.rmtree(tmp_path / "bank" / "runs")
    save_architecture(tmp_path / "networks" / "hand_made.json")
    printed = run("--keep_runs", "false")
    assert "2/4 jobs were finished before" in printed
    assert "random_1-s" not in printed
    assert [row for row in read_table(path) if row.name == "random_1"] == rows
    assert {(row.name, row.origin) for row in read_table(path)} == {("random_1", "random"), ("hand_made", "hand-made")}
    assert list((tmp_path / "bank" / "runs").iterdir()) == []


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    other = Row("pong", "a", 1, 50, 3.0, "searched", "skip conv_k3", "2/8", "4x42x42", 1, 2)
    write_table(tmp_path / "bank.csv", [ROW, other])
    first, second = read_table(tmp_path / "bank.csv")
    assert first == other
    assert second.score == -20.1235
    assert (second.macs, second.operators) == (1000, "skip skip")
    assert [path.name for path in tmp_path.iterdir()] == ["bank.csv"]


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "game,name\npong,x\n", (",".join(module.Row.__annotations__)) + "\nx,y\n"]
)
def test_a_table_of_something_else_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "bank.csv").write_text(content)
    with pytest.raises(SettingError, match=r"bank\.csv' is not a bank's table"):
        read_table(tmp_path / "bank.csv")


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[Job]]:
    """Jobs that would be run; each gets a row of its own."""
    calls = []

    def rows_of(job: Job, network: Any, seed: int, game: str) -> list[Row]:
        operators = " ".join(network.architecture.operators)
        return [Row(game, network.name, seed, 400, 1.0, network.origin, operators, "1/4", "2x12x12", 1, 1)]

    def run_jobs(
        jobs: Iterable[Job], workers: Any, address: Any, after_each: Callable[[Job], None], finished_before: Any
    ) -> None:
        calls.append(list(jobs))
        for job in jobs:
            job.mark_finished(1.0)
            after_each(job)

    monkeypatch.setattr(module, "rows_of", rows_of)
    monkeypatch.setattr(module, "run_jobs", run_jobs)
    return calls


def test_jobs_get_the_recipe_their_network_and_their_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    for name in ("b", "a"):
        save_architecture(tmp_path / "networks" / f"{name}.json")
    bank(command(tmp_path))
    (jobs,) = calls
    # seed by seed
    assert [job.name for job in jobs] == ["a-s3", "b-s3", "a-s4", "b-s4"]
    words = jobs[1].arguments
    assert words[:2] == ("--config", arguments("x")[1])
    assert words[words.index("--model.architecture") + 1] == str(tmp_path / "networks" / "b.json")
    assert words[words.index("--seed_everything") + 1] == "3"
    assert set(overrides()) <= set(words)
    assert jobs[1].run_dir == tmp_path / "bank" / "runs" / "b-s3"
    assert json.loads((tmp_path / "bank" / "bank.json").read_text())["game"] == "a2d/Catch-v0"


def test_a_run_that_ended_before_its_rows_were_written_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    save_architecture(tmp_path / "networks" / "a.json")
    bank(command(tmp_path))
    (tmp_path / "bank" / "bank.csv").unlink()
    bank(command(tmp_path))
    assert calls[1] == []
    assert len(read_table(tmp_path / "bank" / "bank.csv")) == 2


def test_runs_in_the_table_are_not_trained_again_without_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    save_architecture(tmp_path / "networks" / "a.json")
    bank(command(tmp_path, "--keep_runs", "false"))
    assert list((tmp_path / "bank" / "runs").iterdir()) == []
    bank(command(tmp_path))
    assert calls[1] == []


def test_another_recipe_or_another_network_of_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(monkeypatch)
    save_architecture(tmp_path / "networks" / "a.json")
    bank(command(tmp_path))
    config = tmp_path / "more.yaml"
    config.write_text("data: {num_envs: 3}\n")
    with pytest.raises(
        SettingError, match=r"is a bank with another recipe: settings\.data\.num_envs .*16 before, 3 now"
    ):
        bank(command(tmp_path, "--config", str(config)))
    # what an overlay holds for other stages is no part of the recipe
    config.write_text("per_model: {SearchModule: {data: {num_envs: 3}}}\n")
    bank(command(tmp_path, "--config", str(config)))
    save_architecture(tmp_path / "networks" / "a.json", "conv_k5")
    with pytest.raises(SettingError, match=r"is not the network stored in .* under this name"):
        bank(command(tmp_path))


def test_what_cannot_be_a_recipe_is_refused(tmp_path: Path) -> None:
    for override, message in (
        ("data.game=x", "must have the form --name=value"),
        ("--seed_everything=1", "set by the bank"),
    ):
        with pytest.raises(SettingError, match=message):
            Recipe.read([], [override])
    with pytest.raises(SettingError, match=r"--config: 'no.yaml' cannot be read"):
        Recipe.read(["no.yaml"], [])
    with pytest.raises(SettingError, match="contains no JSON files"):
        read_networks(str(tmp_path))
    one, two = (save_architecture(tmp_path / folder / "a.json") for folder in ("one", "two"))
    with pytest.raises(SettingError, match="have the same name"):
        read_networks([str(one), str(two)])


def test_a_game_is_named_once_however_it_is_written() -> None:
    assert Recipe.read([], ["--data.game=ALE/SpaceInvaders-v5"]).game == "space_invaders"
    assert Recipe.read([], []).game == "pong"


def test_origins_by_name() -> None:
    assert [origin_of(n) for n in ("random_007", "hand_made", "a2d_s1")] == ["random", "hand-made", "searched"]
