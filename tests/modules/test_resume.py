"""Resuming goes on with weights, optimizers, alpha, tau, the draws, schedules and the clock as they were."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import odd_games
import pytest
import torch
from runs import CATCH_ARGS, fit, goes_on_to_the_last_bit, metrics, same
from tensordict import TensorDict
from toy_game import CATCH, register

from a2d_lightning.callbacks.run_checkpoint import RunCheckpoint
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.runtime.signals import INTERRUPTION

pytestmark = pytest.mark.thorough

register()
odd_games.register()
ROLLOUT = 20
"""4 environments x 5 steps in the smoke overlay."""


@pytest.mark.parametrize("stage", ["teacher", "search", "retrain"])
def test_a_resumed_run_starts_from_exactly_what_was_saved(
    stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_architecture: Path
) -> None:
    args = [f"--model.architecture={small_architecture}"] if stage == "retrain" else []
    fit(stage, tmp_path, 200, *args)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 200
    assert len(saved["optimizer_states"]) == (2 if stage == "search" else 1)
    # RMSProp and Adam have counted one update a rollout
    assert {float(s["step"]) for o in saved["optimizer_states"] for s in o["state"].values()} == {200 / ROLLOUT}

    seen: dict[str, Any] = {}
    real = ActorCriticModule.training_step

    def first_step(self: ActorCriticModule, rollout: TensorDict, batch_idx: int) -> None:
        if not seen:
            seen["env_steps"] = self.env_steps
            seen["weights"] = {k: v.clone() for k, v in self.state_dict().items()}
            seen["optimizers"] = [o.state_dict() for o in self.trainer.optimizers]
            seen["optimizers"] = torch.utils._pytree.tree_map(
                lambda x: x.clone() if isinstance(x, torch.Tensor) else x, seen["optimizers"]
            )
            seen["rollout"] = rollout["pixels"].clone()
        real(self, rollout, batch_idx)

    monkeypatch.setattr(ActorCriticModule, "training_step", first_step)
    fit(stage, tmp_path, 400, *args, "--ckpt_path", "last")
    assert seen["env_steps"] == 200
    assert same(
        {k: v for k, v in seen["weights"].items() if k != "agent.backbone.tau"},
        {k: v for k, v in saved["state_dict"].items() if k != "agent.backbone.tau"},
    )
    assert same(seen["optimizers"], saved["optimizer_states"])
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["env_steps"] == 400
    assert {float(s["step"]) for o in after["optimizer_states"] for s in o["state"].values()} == {400 / ROLLOUT}
    if stage == "search":
        # 100 of 200 decays at half of the new budget
        assert float(seen["weights"]["agent.backbone.tau"]) == pytest.approx(5 * 0.98**100)
        assert not same(after["gumbel_generator"], saved["gumbel_generator"])


def test_a_resumed_run_keeps_the_earlier_metrics_and_counts_on(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 200)
    fit("teacher", tmp_path, 400, "--ckpt_path", "last")

    def steps(name: str) -> list[int]:
        with open(tmp_path / name, encoding="utf-8") as file:
            return [int(float(row["step"])) for row in csv.DictReader(file)]

    assert steps("metrics-0.csv") == list(range(ROLLOUT, 201, ROLLOUT))
    assert steps("metrics.csv") == list(range(200 + ROLLOUT, 401, ROLLOUT))


def test_the_learning_rate_goes_on_where_it_stood(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 200)
    fit("teacher", tmp_path, 400, "--ckpt_path", "last")
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    # the update that starts at step s uses 1e-3 (1 - 0.9 (s / 400 - 1/3) / (2/3)); the first starts at 200
    expected = [1e-3 * (1 - 0.9 * (s / 400 - 1 / 3) / (2 / 3)) for s in range(200, 400, ROLLOUT)]
    assert rates == pytest.approx(expected, rel=1e-5)


# games of 2 to 9 steps, so that some end in the part that is played again
ODD_ARGS = [
    *("--data.game", "odd/NoisyWalk-v0", "--data.frames", "{gray: false, size: null, skip: 1, stack: 2}"),
    *("--data.wrappers", "[odd_games.TwiceAsBright]", "--model.distillation", "none", "--model.teacher", "null"),
]
BI_LEVEL = ["--model.scheme", "BiLevel"]
PPO_ARGS = ["--model.algorithm", "PPO", "--model.algorithm.num_minibatches", "2"]
EVALUATED = [
    *CATCH_ARGS,
    "--model.distillation",
    "none",
    "--model.teacher",
    "null",
    "--data.env_steps_per_epoch",
    "200",
]


@pytest.mark.parametrize(
    ("stage", "args", "stops"),
    [
        ("teacher", CATCH_ARGS, [20, 260]),
        ("teacher", ODD_ARGS, [40, 260]),
        ("search", ODD_ARGS, [140]),
        ("teacher", PPO_ARGS, [140]),
        ("search", ["--model.derivation", "MaxAlphaUnderMacs", "--model.derivation.target_macs", "5e5"], [100]),
        ("search", [*PPO_ARGS, "--model.scheme", "OneLevelPerFrame"], [140]),
        ("search", BI_LEVEL, [140, 300]),
        # the second stop leaves four of the eight rollouts that the derived network is recalibrated on
        ("search", EVALUATED, [140, 320]),
        ("retrain", PPO_ARGS, [280]),
        # metrics are written at every third rollout, whichever was the first after a stop
        ("teacher", ["--trainer.log_every_n_steps", "3"], [140]),
    ],
    ids=[
        "teacher-catch",
        "teacher-odd-game",
        "search-odd-game",
        "teacher-ppo",
        "search",
        "search-per-frame",
        "search-bilevel",
        "search-evaluated",
        "retrain-ppo",
        "thirds",
    ],
)
def test_a_run_stopped_after_any_rollout_is_the_run_that_was_never_stopped_to_the_last_bit(
    stage: str,
    args: list[str],
    stops: list[int],
    tmp_path: Path,
    small_architecture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = [*args, *([f"--model.architecture={small_architecture}"] if stage == "retrain" else [])]
    goes_on_to_the_last_bit(stage, args, stops, tmp_path, monkeypatch)


@pytest.mark.parametrize("stopped_at", [200, 400])
def test_a_run_stopped_while_it_is_evaluated_plays_those_games_when_it_is_resumed(
    stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*CATCH_ARGS, "--data.env_steps_per_epoch", "200"]
    fit("teacher", tmp_path / "whole", 400, *args)
    real = ActorCriticModule.validation_step

    def asked_to_stop(self: Any, seeds: Any, batch_idx: int) -> None:
        if self.env_steps == stopped_at:
            monkeypatch.setattr(INTERRUPTION, "received", "SIGTERM")
        real(self, seeds, batch_idx)

    monkeypatch.setattr(ActorCriticModule, "validation_step", asked_to_stop)
    with pytest.raises(SystemExit):
        fit("teacher", tmp_path / "parts", 400, *args)
    assert sum("val/score" in row for row in metrics(tmp_path / "parts")) == stopped_at // 200 - 1
    monkeypatch.setattr(INTERRUPTION, "received", "")
    monkeypatch.setattr(ActorCriticModule, "validation_step", real)
    fit("teacher", tmp_path / "parts", 400, *args, "--ckpt_path", "last")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    for name in whole:
        assert same(whole[name], parts[name]), name
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_run_stopped_between_an_evaluation_and_the_next_rollout_counts_no_batch_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*CATCH_ARGS, "--data.env_steps_per_epoch", "200"]
    fit("teacher", tmp_path / "whole", 400, *args)
    real = RunCheckpoint.on_train_epoch_end

    def asked_to_stop(self: Any, trainer: L.Trainer, pl_module: Any) -> None:
        real(self, trainer, pl_module)
        monkeypatch.setattr(INTERRUPTION, "received", "SIGTERM")

    monkeypatch.setattr(RunCheckpoint, "on_train_epoch_end", asked_to_stop)
    with pytest.raises(SystemExit):
        fit("teacher", tmp_path / "parts", 400, *args)
    monkeypatch.setattr(INTERRUPTION, "received", "")
    monkeypatch.setattr(RunCheckpoint, "on_train_epoch_end", real)
    assert [row["val/score"] for row in metrics(tmp_path / "parts") if "val/score" in row] != []
    fit("teacher", tmp_path / "parts", 400, *args, "--ckpt_path", "last")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert parts["loops"]["fit_loop"]["epoch_loop.state_dict"] == {"_batches_that_stepped": 400 // ROLLOUT}
    for name in whole:
        assert same(whole[name], parts[name]), name
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_the_best_goes_on_as_the_run_did(tmp_path: Path) -> None:
    args = [*CATCH_ARGS, "--data.env_steps_per_epoch", "200"]
    fit("teacher", tmp_path / "whole", 600, *args)
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["env_steps"] < 600
    fit("teacher", tmp_path / "parts", 600, *args, "--ckpt_path", str(best))
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    for name in whole:
        assert same(whole[name], parts[name]), name


def test_a_best_that_somebody_deleted_is_written_at_the_next_evaluation(tmp_path: Path) -> None:
    args = [*CATCH_ARGS, "--data.env_steps_per_epoch", "200", "--trainer.limit_val_batches", "1"]
    best = tmp_path / "checkpoints" / "best.ckpt"
    fit("teacher", tmp_path, 200, *args)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    saved["callbacks"]["RunCheckpoint"]["best_score"] = 2.0  # out of reach: no game scores more than 1
    torch.save(saved, tmp_path / "checkpoints" / "last.ckpt")
    best.unlink()
    fit("teacher", tmp_path, 400, *args, "--ckpt_path", "last")
    assert torch.load(best, weights_only=True)["env_steps"] == 400


def test_a_run_is_saved_when_it_begins_and_not_again_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    real = RunCheckpoint._save

    def record(self: Any, trainer: L.Trainer) -> Any:
        saved.append(trainer.lightning_module.env_steps)
        return real(self, trainer)

    monkeypatch.setattr(RunCheckpoint, "_save", record)
    fit("teacher", tmp_path, 200, *CATCH_ARGS)
    assert saved[0] == 0
    saved.clear()
    fit("teacher", tmp_path, 400, *CATCH_ARGS, "--ckpt_path", "last")
    # a copy of what was resumed would take the place of an older state
    assert 200 not in saved
    assert saved[-1] == 400


def test_games_go_on_whichever_module_registers_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit("teacher", tmp_path, 200, *CATCH_ARGS)
    with caplog.at_level("INFO"):
        fit("teacher", tmp_path, 400, *CATCH_ARGS, "--data.game", f"toy_game:{CATCH}", "--ckpt_path", "last")
    assert "replaying the last" in caplog.text
    assert "starting new games" not in caplog.text


def test_games_begin_anew_where_settings_of_the_environments_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = []
    real = ActorCriticModule.training_step

    def record(self: Any, rollout: TensorDict, batch_idx: int) -> Any:
        if batch_idx == 0 and self.env_steps in (0, 200):
            first.append(rollout["pixels"].clone())
        real(self, rollout, batch_idx)

    monkeypatch.setattr(ActorCriticModule, "training_step", record)
    fit("teacher", tmp_path, 200)
    with caplog.at_level("INFO"):
        fit("teacher", tmp_path, 400, "--ckpt_path", "last", "--data.noop_max", "7")
    assert "starting new games with newly seeded random numbers, because data.noop_max was 30 and is 7" in caplog.text
    assert len(first) == 2
    assert not torch.equal(first[0], first[1])


def test_it_is_told_what_the_last_bits_may_differ_by(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit("teacher", tmp_path, 100)
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["RolloutDataModule"]["circumstances"]["torch"] = "1.0"
    torch.save(saved, path)
    with caplog.at_level("INFO"):
        fit("teacher", tmp_path, 200, "--ckpt_path", "last")
    assert f"may differ in the last bits, because torch was 1.0 and is {torch.__version__}" in caplog.text
    assert "starting new games" not in caplog.text


def test_games_that_somebody_made_up_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("teacher", tmp_path, 100)
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["RolloutDataModule"]["processes"][0]["games"]["journal"]["actions"] += 100
    torch.save(saved, path)
    with pytest.raises(SystemExit) as refused:
        fit("teacher", tmp_path, 200, "--ckpt_path", "last")
    assert refused.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "ckpt_path: the games cannot be restored" in line


def test_settings_of_the_command_line_win_over_the_checkpoints(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 100)
    fit("teacher", tmp_path, 200, "--ckpt_path", "last", "--model.entropy_coefficient", "0")
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    policy, value = float(row["loss/policy"]), float(row["loss/value"])
    assert float(row["loss/total"]) == pytest.approx(policy + value, abs=1e-6)


def test_a_learning_rate_that_is_changed_on_resume_is_used(tmp_path: Path) -> None:
    fit("search", tmp_path, 100)
    fit(
        *("search", tmp_path, 200, "--ckpt_path", "last", "--model.optimizer.lr", "0.002"),
        *("--model.alpha_learning_rate", "0.5"),
    )
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    # at the last update, which starts at step 180 of 200
    factor = 1 - 0.9 * (0.9 - 1 / 3) / (2 / 3)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.002 * factor, rel=1e-5)
    assert saved["optimizer_states"][1]["param_groups"][0]["lr"] == 0.5


def test_settings_of_optimizers_that_are_changed_on_resume_are_used(tmp_path: Path) -> None:
    fit("search", tmp_path, 100)
    before = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    fit(
        *("search", tmp_path, 200, "--ckpt_path", "last", "--model.optimizer.eps", "0.01"),
        *("--model.alpha_betas", "[0.5,0.75]"),
    )
    weights, alpha = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert (before[0]["param_groups"][0]["eps"], weights["param_groups"][0]["eps"]) == (1e-5, 0.01)
    assert (list(before[1]["param_groups"][0]["betas"]), list(alpha["param_groups"][0]["betas"])) == (
        *([0.9, 0.999], [0.5, 0.75]),
    )
    # the state goes on: one step a rollout
    assert alpha["state"][0]["step"] == 2 * before[1]["state"][0]["step"] > 0


@pytest.mark.parametrize("other", ["torch.optim.Adam", "torch.optim.SGD"])
def test_an_optimizer_of_another_class_is_refused_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    fit("teacher", tmp_path, 100)
    with pytest.raises(SystemExit) as refused:
        fit("teacher", tmp_path, 200, "--ckpt_path", "last", "--model.optimizer", other, "--model.optimizer.lr", "0.1")
    assert refused.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"model.optimizer: {other.rpartition('.')[2]} has no alpha" in line


def test_a_budget_is_kept_whatever_the_epochs_of_the_resumed_run(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 400)  # four epochs of 100
    fit("teacher", tmp_path, 800, "--ckpt_path", "last", "--data.env_steps_per_epoch", "200")
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 800


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("search", tmp_path, 100)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        fit("search", tmp_path, 200, "--ckpt_path", "last", "--model.plan.channels", "[8,16,16]")
    assert "the checkpoint's plan is" in capsys.readouterr().err
    # Lightning has TensorBoard begin a file of its own before anything is checked
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path in before or "tfevents" not in path.name} == before
