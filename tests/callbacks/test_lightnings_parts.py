"""Every callback and every Trainer argument of Lightning works here, or is refused in one line that says what to do.

An empty reason means that a run with it trains to its end.
"""

import inspect

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from runs import CATCH_ARGS, fit

pytestmark = pytest.mark.thorough

WITHOUT_TEACHER = ["--model.distillation", "none", "--model.teacher", "null"]

CALLBACKS = {
    "BackboneFinetuning": ([], "BaseFinetuning: agents are trained whole"),
    "BaseFinetuning": ([], "agents are trained whole"),
    "BasePredictionWriter": ([], ""),
    "BatchSizeFinder": ([], "set data.num_envs and data.rollout_length"),
    "Callback": ([], ""),
    "Checkpoint": ([], ""),
    "DeviceStatsMonitor": ([], ""),
    "EMAWeightAveraging": ([], ""),
    "EarlyStopping": (["--trainer.callbacks.monitor", "val/score"], ""),
    "GradientAccumulationScheduler": (["--trainer.callbacks.scheduling", "{0: 2}"], "raise data.num_envs"),
    "LambdaCallback": ([], ""),
    "LearningRateFinder": ([], "set model.optimizer.lr"),
    "LearningRateMonitor": ([], ""),
    "ModelCheckpoint": ([], ""),
    "ModelPruning": (["--trainer.callbacks.pruning_fn", "l1_unstructured"], "search a smaller network"),
    "ModelSummary": ([], ""),
    "OnExceptionCheckpoint": (["--trainer.callbacks.dirpath", "{tmp}"], ""),
    "ProgressBar": ([], "You added multiple progress bar callbacks"),
    "RichModelSummary": ([], ""),
    "RichProgressBar": ([], "You added multiple progress bar callbacks"),
    "SpikeDetection": ([], "model.on_nan"),
    "StochasticWeightAveraging": (
        ["--trainer.callbacks.swa_lrs", "1e-3", "--trainer.callbacks.swa_epoch_start", "1"],
        "",
    ),
    "TQDMProgressBar": ([], "You added multiple progress bar callbacks"),
    "ThroughputMonitor": ([], "batch_size_fn"),
    "Timer": (["--trainer.callbacks.interval", "step"], ""),
    "WeightAveraging": ([], ""),
}

ARGUMENTS = {
    "accelerator": ("cpu", ""),
    "strategy": ("ddp_fork", ""),
    "devices": ("1", ""),
    "num_nodes": ("1", ""),
    "precision": ("16-true", "use 32-true or bf16-mixed"),
    "logger": ("false", ""),
    "callbacks": ("null", ""),
    "fast_dev_run": ("true", ""),
    "max_epochs": ("1", ""),
    "min_epochs": ("1", ""),
    "max_steps": ("2", ""),
    "min_steps": ("2", ""),
    "max_time": ("00:00:01:00", ""),
    "limit_train_batches": ("2", ""),
    "limit_val_batches": ("1", ""),
    "limit_test_batches": ("1", ""),
    "limit_predict_batches": ("1", ""),
    "overfit_batches": ("1", ""),
    "val_check_interval": ("2", ""),
    "check_val_every_n_epoch": ("2", ""),
    "num_sanity_val_steps": ("1", ""),
    "log_every_n_steps": ("0", ""),
    "enable_checkpointing": ("false", "trainer.callbacks has RunCheckpoint; take it out"),
    "enable_progress_bar": ("false", "trainer.callbacks has EnvStepsProgress; take it out"),
    "enable_model_summary": ("true", ""),
    "accumulate_grad_batches": ("2", "raise data.num_envs"),
    "gradient_clip_val": ("1.0", "model.gradient_clip_norm"),
    "gradient_clip_algorithm": ("norm", ""),
    "deterministic": ("true", ""),
    "benchmark": ("true", ""),
    "inference_mode": ("false", ""),
    "use_distributed_sampler": ("true", ""),
    "profiler": ("simple", ""),
    "detect_anomaly": ("true", ""),
    "barebones": ("true", "takes away metrics and checkpoints"),
    "plugins": ("lightning.pytorch.plugins.io.AsyncCheckpointIO", "Found invalid type for plugin"),
    "sync_batchnorm": ("true", ""),
    "reload_dataloaders_every_n_epochs": ("1", ""),
    "default_root_dir": ("runs", "by --run_dir"),
    "enable_autolog_hparams": ("false", ""),
    "model_registry": ("a_model", ""),
}


@pytest.fixture(autouse=True)
def settings_of_torch():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.autograd.set_detect_anomaly(False)


def check(stage, args, reason, tmp_path, run):
    if reason:
        assert reason in run(stage, *args)
    else:
        fit(stage, tmp_path / "run", 40, *CATCH_ARGS, *WITHOUT_TEACHER, "--trainer.limit_val_batches", "1", *args)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback(name, tmp_path, run):
    args, reason = CALLBACKS[name]
    args = [arg.replace("{tmp}", str(tmp_path / "there")) for arg in args]
    check("teacher", [f"--trainer.callbacks+=lightning.pytorch.callbacks.{name}", *args], reason, tmp_path, run)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument(name, tmp_path, run):
    value, reason = ARGUMENTS[name]
    check("teacher", [f"--trainer.{name}", value], reason, tmp_path, run)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--trainer.log_every_n_steps", "0"], ""),
        (["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"], ""),
        (["--trainer.callbacks+=lightning.pytorch.callbacks.Timer"], "--trainer.callbacks.interval step"),
        (["--trainer.strategy", "ddp_fork"], ""),
    ],
)
def test_what_a_search_does_otherwise(args, reason, tmp_path, run):
    check("search", args, reason, tmp_path, run)


def test_the_lists_are_whole():
    assert CALLBACKS.keys() == set(callbacks.__all__)
    assert ARGUMENTS.keys() == set(inspect.signature(L.Trainer).parameters)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
@pytest.mark.parametrize("stage", ["teacher", "search"])
def test_processes_that_lightning_starts_itself(stage, strategy, tmp_path):
    # Pong: a process that is spawned does not know the toy game; its games are not played out here
    args = ["--trainer.devices", "2", "--data.game", "Pong", "--data.evaluation_games", "2"]
    args += ["--trainer.limit_val_batches", "0"]
    check(stage, ["--trainer.strategy", strategy, *args], "", tmp_path, None)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 40
