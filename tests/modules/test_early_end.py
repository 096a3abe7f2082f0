"""What ends a run early resumes as exactly as a signal does; a run ends with the rollout that spends its budget."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from runs import CATCH_ARGS, fit, metrics, same

pytestmark = pytest.mark.thorough

ARGS = [*CATCH_ARGS, "--data.evaluation_games", "2"]


class StopsAt(L.Callback):
    """Ask Lightning to end the run after some environment steps, as EarlyStopping and Timer do."""

    def __init__(self, env_steps: int) -> None:
        self.env_steps = env_steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        trainer.should_stop = trainer.should_stop or pl_module.env_steps == self.env_steps


def evaluated_at(run_dir: Path) -> list[int]:
    """Environment steps of the evaluations."""
    return [int(float(row["step"])) for row in metrics(run_dir) if "val/score" in row]


def learned(run_dir: Path) -> list[dict[str, str]]:
    return [row for row in metrics(run_dir) if "loss/total" in row]


def last(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


SMALLER = "a smaller budget"
# 20 environment steps a rollout, an evaluation every 100
ENDS = {
    "max_steps": ["--trainer.max_steps", "7"],  # an update a rollout: at 140
    "should_stop": ["--trainer.callbacks+=test_early_end.StopsAt", "--trainer.callbacks.env_steps", "140"],
    SMALLER: ["--data.total_env_steps", "140"],
}


# in a search tau follows the budget, so that another one is another run
@pytest.mark.parametrize(
    ("stage", "end"),
    [(stage, end) for stage in ("teacher", "search", "retrain") for end in ENDS if (stage, end) != ("search", SMALLER)],
)
def test_what_ends_a_run_early_resumes_exactly(stage: str, end: str, tmp_path: Path, small_architecture: Path) -> None:
    args = [*ARGS, *([f"--model.architecture={small_architecture}"] if stage == "retrain" else [])]
    # rates and tau that do not depend on the budget
    args += ["--model.learning_rate_schedule", "null"]
    args += ["--model.distillation", "none", "--model.teacher", "null"]
    ending = ENDS[end]
    if (stage, end) == ("search", "max_steps"):
        ending = ["--trainer.max_steps", "14"]  # Lightning counts the steps of both optimizers
    fit(stage, tmp_path / "whole", 260, *args)
    fit(stage, tmp_path / "ended", 260, *args, *ending)
    assert last(tmp_path / "ended")["env_steps"] == 140
    fit(stage, tmp_path / "ended", 260, *args, "--ckpt_path", "last")
    assert evaluated_at(tmp_path / "whole") == [100, 200, 260]
    # one more where Lightning or the budget asked for one
    assert [at for at in evaluated_at(tmp_path / "ended") if at != 140] == [100, 200, 260]
    assert learned(tmp_path / "ended") == learned(tmp_path / "whole")
    whole, ended = last(tmp_path / "whole"), last(tmp_path / "ended")
    assert ended["env_steps"] == whole["env_steps"] == 260
    assert same(ended["state_dict"], whole["state_dict"])
    assert same(ended["optimizer_states"], whole["optimizer_states"])


@pytest.mark.parametrize("num_envs", [3, 6])
def test_resumed_with_other_rollouts_a_run_ends_with_the_one_that_spends_its_budget(
    num_envs: int, tmp_path: Path
) -> None:
    fit("teacher", tmp_path, 140, *ARGS)
    fit("teacher", tmp_path, 410, *ARGS, "--data.num_envs", str(num_envs), "--ckpt_path", "last")
    rollout = 5 * num_envs
    assert 410 <= last(tmp_path)["env_steps"] < 410 + rollout
    assert evaluated_at(tmp_path)[-1] == last(tmp_path)["env_steps"]


def test_the_budget_is_rounded_up_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("teacher", tmp_path, 410, *ARGS, "--data.env_steps_per_epoch", "30", "--trainer.limit_val_batches", "0")
    assert last(tmp_path)["env_steps"] == 420
    assert "420 of 420 environment steps (100%)" in capsys.readouterr().err


def test_a_run_that_was_stopped_before_its_last_evaluation_has_it_and_nothing_else(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 140, *ARGS)
    checkpoints = tmp_path / "checkpoints"
    before = torch.load(checkpoints / "last-1.ckpt", weights_only=True)
    assert before["env_steps"] == 140
    torch.save(before, checkpoints / "last.ckpt")
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    evaluation = rows[0].index("val/score")
    with open(tmp_path / "metrics.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(row for row in rows if row[0] == rows[0][0] or not row[evaluation])
    fit("teacher", tmp_path, 140, *ARGS, "--ckpt_path", "last")
    assert last(tmp_path)["env_steps"] == 140
    assert evaluated_at(tmp_path) == [140]
