"""What a run does with other callbacks than the configs', and without them; copies of modules and callbacks."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import CATCH_ARGS, fit, metrics
from tensordict import TensorDict

from a2d_lightning.callbacks import EnvStepsProgress
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.rollouts.collection import LocalCollection
from a2d_lightning.runtime.signals import INTERRUPTED, INTERRUPTION

pytestmark = pytest.mark.thorough

WITHOUT_TEACHER = ["--model.distillation", "none", "--model.teacher", "null"]


@pytest.mark.parametrize(
    ("stage", "args", "named"),
    [
        ("teacher", ["--trainer.max_epochs", "0"], "trainer.max_epochs: 0 trains nothing"),
        ("teacher", ["--trainer.max_steps", "0"], "trainer.max_steps: 0 trains nothing"),
        ("teacher", ["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches: 0 trains nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(stage: str, args: list[str], named: str, run: Callable[..., str]) -> None:
    assert named in run(stage, *args)


def test_a_resumed_runs_config_does_not_resume(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 20, *CATCH_ARGS)
    fit("teacher", tmp_path, 40, *CATCH_ARGS, "--ckpt_path", "last")
    assert "ckpt_path: null" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("stage", ["teacher", "search", "retrain"])
def test_module_and_callbacks_are_copied_and_pickled(
    stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_architecture: Path
) -> None:
    args = [*CATCH_ARGS, *WITHOUT_TEACHER] + [f"--model.architecture={small_architecture}"] * (stage == "retrain")
    copied = []
    real = ActorCriticModule.on_train_start

    def on_train_start(self: Any) -> None:
        # Lightning's progress bars keep the trainer while they run
        callbacks = [each for each in self.trainer.callbacks if not isinstance(each, EnvStepsProgress)]
        for each in (self, *callbacks):
            copied.append(copy.deepcopy(each))
            pickle.loads(pickle.dumps(each))
        real(self)

    monkeypatch.setattr(ActorCriticModule, "on_train_start", on_train_start)
    fit(stage, tmp_path, 20, *args)
    module = copied[0]
    assert type(module).__name__ in ("TeacherModule", "SearchModule", "AgentModule")
    copy.deepcopy(EnvStepsProgress())
    pickle.dumps(EnvStepsProgress())
    (optimizer, *_) = module.configure_optimizers()
    assert type(optimizer).__name__ == "RMSprop"
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_averaged_weights_of_lightning_are_kept(tmp_path: Path) -> None:
    args = [*CATCH_ARGS, "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"]
    fit("teacher", tmp_path, 100, *args)
    assert len([row for row in metrics(tmp_path) if "loss/total" in row]) == 5


def test_an_architecture_of_another_game_is_remarked_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, small_architecture: Path
) -> None:
    # searched for pong at 42x42; Catch has frames of this size, too
    fit("retrain", tmp_path, 20, *CATCH_ARGS, *WITHOUT_TEACHER, f"--model.architecture={small_architecture}")
    (remark,) = [line for line in caplog.messages if line.startswith("remark: the architecture was searched for")]
    assert "was searched for game pong, but this run uses" in remark


@pytest.mark.parametrize("callbacks", ["null", "lightning.pytorch.callbacks.ModelCheckpoint"])
def test_a_run_without_our_callbacks_can_be_resumed(
    callbacks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*CATCH_ARGS, *WITHOUT_TEACHER, "--trainer.callbacks", callbacks]
    fit("teacher", tmp_path / "whole", 200, *args)
    fit("teacher", tmp_path / "ended", 200, *args, "--trainer.max_epochs", "1")  # of 100 environment steps
    with pytest.raises(SystemExit):
        fit("teacher", tmp_path / "ended", 200, *args)
    assert "already contains a run; resume with --ckpt_path last" in capsys.readouterr().err
    fit("teacher", tmp_path / "ended", 200, *args, "--ckpt_path", "last")
    whole, ended = ([row for row in metrics(tmp_path / name) if "loss/total" in row] for name in ("whole", "ended"))
    assert len(whole) == 10
    assert ended[5:] == whole[5:]


def test_a_run_without_our_callbacks_stops_when_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ActorCriticModule.training_step

    def training_step(self: ActorCriticModule, rollout: TensorDict, batch_idx: int) -> None:
        real(self, rollout, batch_idx)
        if batch_idx == 1:
            INTERRUPTION.received = "SIGTERM"

    monkeypatch.setattr(ActorCriticModule, "training_step", training_step)
    with pytest.raises(SystemExit) as exit_:
        fit("teacher", tmp_path, 200, *CATCH_ARGS, "--trainer.callbacks", "null")
    assert exit_.value.code == INTERRUPTED
    assert "interrupted by SIGTERM" in capsys.readouterr().err
    assert len([row for row in metrics(tmp_path) if "loss/total" in row]) == 2


TAU, ARCHITECTURE = "warning: tau stays at", "warning: no architecture will be written"
ANNEALING, WRITER = "a2d_lightning.callbacks.TemperatureAnnealing", "a2d_lightning.callbacks.ArchitectureCheckpoint"


@pytest.mark.parametrize(
    ("callbacks", "missed"),
    [
        ([], [TAU, ARCHITECTURE]),
        ([ANNEALING], [ARCHITECTURE]),
        ([WRITER], [TAU]),
        ([WRITER, ANNEALING], []),
    ],
)
def test_a_search_says_which_callbacks_it_misses(
    callbacks: list[str], missed: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = "[" + ", ".join(f"{{class_path: {name}}}" for name in callbacks) + "]"
    fit("search", tmp_path, 20, *CATCH_ARGS, *WITHOUT_TEACHER, "--trainer.callbacks", listed)
    said = [line for line in caplog.messages if line.startswith(("warning: tau", "warning: no architecture"))]
    assert [line.startswith(start) for line, start in zip(said, missed, strict=True)] == [True] * len(missed)


def test_two_schedules_of_tau_are_refused(run: Callable[..., str], tmp_path: Path) -> None:
    error = run("search", *WITHOUT_TEACHER, "--trainer.callbacks+=a2d_lightning.callbacks.TemperatureAnnealing")
    assert "TemperatureAnnealing and TemperatureAnnealing would both set tau; keep only one of them" in error


def test_dataloaders_that_are_built_again_shut_down_the_games_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, ended = [], []
    start = LocalCollection.start

    def counted(self: Any, *args: Any) -> Any:
        collecting = start(self, *args)
        started.append(collecting)
        shutdown = collecting.shutdown

        def ending() -> None:
            ended.append(collecting)
            shutdown()

        monkeypatch.setattr(collecting, "shutdown", ending)
        return collecting

    monkeypatch.setattr(LocalCollection, "start", counted)
    fit("teacher", tmp_path, 300, *CATCH_ARGS, "--trainer.reload_dataloaders_every_n_epochs", "1")
    assert len(started) == 3
    assert ended == started
