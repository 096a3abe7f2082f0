"""Every callback and every Trainer argument of Lightning works here, or is refused in one line that says what to do.

An empty reason means that a run with it trains to its end.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from runs import CATCH_ARGS, fit

pytestmark = pytest.mark.thorough

WITHOUT_TEACHER = ["--model.distillation", "none", "--model.teacher", "null"]

CALLBACKS = {
    "BackboneFinetuning": ([], "BaseFinetuning: agents are trained as a whole"),
    "BaseFinetuning": ([], "agents are trained as a whole"),
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
    "enable_checkpointing": ("false", "trainer.callbacks has RunCheckpoint; remove the callback"),
    "enable_progress_bar": ("false", "trainer.callbacks has EnvStepsProgress; remove the callback"),
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
    "barebones": ("true", "disables metrics and checkpoints"),
    "plugins": ("lightning.pytorch.plugins.io.AsyncCheckpointIO", "Found invalid type for plugin"),
    "sync_batchnorm": ("true", ""),
    "reload_dataloaders_every_n_epochs": ("1", ""),
    "default_root_dir": ("runs", "with --run_dir"),
    "enable_autolog_hparams": ("false", ""),
    "model_registry": ("a_model", ""),
}


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.autograd.set_detect_anomaly(False)


def check(stage: str, args: list[str], reason: str, tmp_path: Path, run: Callable[..., str] | None) -> None:
    if reason:
        assert run is not None
        assert reason in run(stage, *args)
    else:
        fit(stage, tmp_path / "run", 40, *CATCH_ARGS, *WITHOUT_TEACHER, "--trainer.limit_val_batches", "1", *args)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback(name: str, tmp_path: Path, run: Callable[..., str]) -> None:
    args, reason = CALLBACKS[name]
    args = [arg.replace("{tmp}", str(tmp_path / "there")) for arg in args]
    check("teacher", [f"--trainer.callbacks+=lightning.pytorch.callbacks.{name}", *args], reason, tmp_path, run)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument(name: str, tmp_path: Path, run: Callable[..., str]) -> None:
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
def test_what_a_search_does_otherwise(args: list[str], reason: str, tmp_path: Path, run: Callable[..., str]) -> None:
    check("search", args, reason, tmp_path, run)


def test_the_lists_are_whole() -> None:
    assert CALLBACKS.keys() == set(callbacks.__all__)
    assert ARGUMENTS.keys() == set(inspect.signature(L.Trainer).parameters)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
@pytest.mark.parametrize("stage", ["teacher", "search"])
def test_processes_that_lightning_starts_itself(stage: str, strategy: str, tmp_path: Path) -> None:
    # Pong: a process that is spawned does not know the toy game; its games are not played out here
    args = ["--trainer.devices", "2", "--data.game", "Pong", "--data.evaluation_games", "2"]
    args += ["--trainer.limit_val_batches", "0"]
    check(stage, ["--trainer.strategy", strategy, *args], "", tmp_path, None)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 40
