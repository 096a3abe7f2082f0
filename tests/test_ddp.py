"""Two processes (gloo, CPU) of each stage: one model, different games, one clock, one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import same

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parent.parent


def fit_on_two_ranks(stage: str, run_dir: Path, *args: str) -> list[dict]:
    """Runs the command line with two processes; what each rank saw."""
    command = [
        *(sys.executable, "-m", "a2d_lightning", "fit", "--config", f"configs/{stage}.yaml"),
        *("--config", "configs/scale/smoke.yaml", "--run_dir", str(run_dir), "--data.total_env_steps", "240"),
        *("--data.env_steps_per_epoch", "240", "--data.evaluation_games", "3"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--trainer.callbacks+=tests.rank_probe.RankProbe", *args),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((run_dir / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("stage", "args"),
    [
        ("teacher", []),
        (
            "teacher",
            ["--model.algorithm", "PPO", "--data.rollout_length", "15", "--model.algorithm.num_minibatches", "2"],
        ),
        ("search", []),
        (
            "search",
            [
                *("--model.sampling", "SinglePath", "--model.scheme", "BiLevel", "--model.normalization", "running"),
                *("--trainer.strategy", "ddp_find_unused_parameters_true"),
            ],
        ),
        (
            "search",
            [
                *("--model.sampling", "TopK", "--model.scheme", "UnrolledBiLevel", "--model.normalization", "group"),
                *("--trainer.strategy", "ddp_find_unused_parameters_true"),
            ],
        ),
        (
            "search",
            [
                *("--model.sampling", "HardStraightThrough", "--model.cost", "drawn"),
                *("--model.algorithm", "PPO", "--model.algorithm.num_minibatches", "2"),
                *("--trainer.strategy", "ddp_find_unused_parameters_true"),
            ],
        ),
        (
            "search",
            [
                *("--model.scheme", "OneLevelPerFrame", "--model.derivation", "MaxAlphaUnderMacs"),
                *("--model.derivation.target_macs", "4e5", "--model.algorithm", "PPO", "--data.rollout_length", "15"),
                *("--model.algorithm.num_minibatches", "2"),
            ],
        ),
        ("retrain", []),
        ("retrain", ["--model.distillation", "actor+teacher_critic"]),
    ],
    ids=[
        *("teacher", "teacher by PPO", "search", "single path, bi-level, running statistics", "top-k, unrolled"),
        *("hard, drawn cost, PPO", "draws per frame, limit of MACs, PPO"),
        *("retrain", "retrain with the teacher's critic"),
    ],
)
def test_ranks_keep_one_model_and_play_different_games(
    stage: str, args: list[str], tmp_path: Path, small_architecture: Path
) -> None:
    if stage == "retrain":
        args = [*args, "--model.architecture", str(small_architecture)]
    first, second = fit_on_two_ranks(stage, tmp_path / "run", *args)
    rows = list(zip(first["rows"], second["rows"], strict=True))
    length = 15 if "15" in args else 5
    # 2 ranks x 4 environments x rollout length
    assert [a["env_steps"] for a, _ in rows] == [8 * length * (i + 1) for i in range(240 // (8 * length))]
    for mine, theirs in rows:
        assert mine["frames"] != theirs["frames"]
        for name in ("weights", "alpha", "draw", "env_steps"):
            assert mine[name] == theirs[name], name
        if "running" in args:
            assert mine["statistics"] == theirs["statistics"]
    # and they do learn; bi-level after every second rollout, so that the first row is the start
    states = len(rows) // 2 + 1 if "BiLevel" in " ".join(args) else len(rows)
    assert len({row["weights"] for row in first["rows"]}) == states
    if stage == "search":
        assert len({row["alpha"] for row in first["rows"]}) == states
        assert len({row["draw"] for row in first["rows"]}) == len(rows)
    # three games over two ranks: none twice, none lost, and every rank knows the mean
    assert first["scores"] == second["scores"]
    assert first["scores"]["val/games"] == 3
    assert first["scored_buffers"] == second["scored_buffers"]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 240
    assert sorted(p.name for p in (tmp_path / "run").glob("metrics*.csv")) == ["metrics.csv"]


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_to_the_last_bit(tmp_path: Path) -> None:
    """Each rank goes on with its own games and random numbers."""
    args = ["--data.env_steps_per_epoch", "120", "--model.algorithm", "PPO", "--model.algorithm.num_minibatches", "2"]
    fit_on_two_ranks("teacher", tmp_path / "whole", *args)
    fit_on_two_ranks("teacher", tmp_path / "parts", *args, "--trainer.max_epochs", "1")
    fit_on_two_ranks("teacher", tmp_path / "parts", *args, "--ckpt_path", "last")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert parts["env_steps"] == 240
    first, second = parts["RolloutDataModule"]["processes"]
    assert not same(first, second)
    for name in whole.keys() - {"loops", "callbacks"}:
        assert same(whole[name], parts[name]), name
