"""Trainers that train nothing are refused; modules and callbacks can be copied and pickled."""

import copy
import pickle

import pytest
from test_resume import CATCH_ARGS, fit, metrics

from a2d_lightning.cli import SaveConfig
from a2d_lightning.modules.actor_critic import ActorCriticModule
from callbacks import EnvStepsProgress

WITHOUT_TEACHER = ["--model.distillation", "none", "--model.teacher", "null"]


@pytest.mark.parametrize(
    ("stage", "args", "named"),
    [
        ("teacher", ["--trainer.max_epochs", "0"], "trainer.max_epochs: 0 trains nothing"),
        ("teacher", ["--trainer.max_steps", "0"], "trainer.max_steps: 0 trains nothing"),
        ("teacher", ["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches: 0 trains nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(stage, args, named, run):
    assert named in run(stage, *args)


def test_a_resumed_runs_config_does_not_resume(tmp_path):
    fit("teacher", tmp_path, 20, *CATCH_ARGS)
    fit("teacher", tmp_path, 40, *CATCH_ARGS, "--ckpt_path", "last")
    assert "ckpt_path: null" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("stage", ["teacher", "search", "retrain"])
def test_module_and_callbacks_are_copied_and_pickled(stage, monkeypatch, tmp_path, small_architecture):
    args = [*CATCH_ARGS, *WITHOUT_TEACHER] + [f"--model.architecture={small_architecture}"] * (stage == "retrain")
    copied = []
    real = ActorCriticModule.on_train_start

    def on_train_start(self):
        # Lightning's own keep the parser and, while they run, the trainer
        callbacks = [each for each in self.trainer.callbacks if not isinstance(each, SaveConfig | EnvStepsProgress)]
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


def test_averaged_weights_of_lightning_are_kept(tmp_path):
    args = [*CATCH_ARGS, "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"]
    fit("teacher", tmp_path, 100, *args)
    assert len([row for row in metrics(tmp_path) if "loss/total" in row]) == 5


def test_an_architecture_of_another_game_is_remarked_on(tmp_path, caplog, small_architecture):
    # searched for pong at 42x42; Catch has frames of this size, too
    fit("retrain", tmp_path, 20, *CATCH_ARGS, *WITHOUT_TEACHER, f"--model.architecture={small_architecture}")
    (remark,) = [line for line in caplog.messages if line.startswith("remark: the architecture was searched for")]
    assert "was searched for game pong; here it is" in remark
