"""Small runs of ``fit``, what they wrote, and whether two of them are the same."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from toy_game import CATCH, register

from a2d_lightning.cli.main import main
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.runtime.signals import INTERRUPTED, INTERRUPTION

register()

CONFIGS = Path(__file__).parents[1] / "configs"


def fit(stage: str, run_dir: Path, total: int, *args: str) -> None:
    main(
        [
            *("fit", "--config", str(CONFIGS / f"{stage}.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")),
            *("--run_dir", str(run_dir), "--data.total_env_steps", str(total), "--data.env_steps_per_epoch", "100"),
            *("--data.evaluation_games", "1", "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"),
            *args,
        ]
    )


def same(left: Any, right: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def metrics(run_dir: Path) -> list[dict[str, str]]:
    """Rows of all the times that a run was started, without what depends on time."""
    rows = []
    for name in ("metrics-0.csv", "metrics-1.csv", "metrics.csv"):
        if (run_dir / name).exists():
            with open(run_dir / name, encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and k != "progress/env_steps_per_second"} for row in rows]


# games of 11 steps, so that some end before the run is stopped
CATCH_ARGS = ["--data.game", CATCH, "--data.frames.skip", "1", "--trainer.limit_val_batches", "1"]


def goes_on_to_the_last_bit(
    stage: str, args: list[str], stops: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(stage, tmp_path / "whole", 400, *args)
    real = ActorCriticModule.training_step

    def asked_to_stop(self: ActorCriticModule, rollout: TensorDict, batch_idx: int) -> None:
        real(self, rollout, batch_idx)
        if self.env_steps in stops:
            monkeypatch.setattr(INTERRUPTION, "received", "SIGTERM")

    monkeypatch.setattr(ActorCriticModule, "training_step", asked_to_stop)
    for _ in stops:
        with pytest.raises(SystemExit) as stopped:
            fit(stage, tmp_path / "parts", 400, *args, "--ckpt_path", "auto")
        assert stopped.value.code == INTERRUPTED
        monkeypatch.setattr(INTERRUPTION, "received", "")
    fit(stage, tmp_path / "parts", 400, *args, "--ckpt_path", "last")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert parts["env_steps"] == 400
    for name in whole:
        assert same(whole[name], parts[name]), name
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole") != []
