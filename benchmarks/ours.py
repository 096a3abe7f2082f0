"""Workloads of a2d_lightning: complete training by Lightning's Trainer, and rollout collection alone."""

import time
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from a2d_lightning.data import RolloutDataModule
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.rollouts.envs import FrameSettings
from benchmarks.turns import Lap

M = TypeVar("M", bound=ActorCriticModule)

ENDLESS = 10**7
"""Number of rollouts of a contestant, more than are ever played."""


class Laps(L.Callback):
    """Calls ``lap`` after the update on each rollout."""

    def __init__(self, lap: Lap) -> None:
        self.lap = lap

    def on_train_batch_end(self, *args: Any) -> None:
        """Call ``lap``."""
        self.lap()


class Stopwatch(L.Callback):
    """Measures seconds per rollout, for acting and learning, from the end of a warm-up to the end of training.

    Args:
        warmup_rollouts: Number of untimed rollouts at the start (default: 20).
    """

    def __init__(self, warmup_rollouts: int = 20) -> None:
        self.warmup_rollouts = warmup_rollouts
        self.seconds_a_rollout = self._began = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        """Start timing after the warm-up, and update the mean after every further rollout."""
        now, rollouts = time.perf_counter(), args[-1] + 1 - self.warmup_rollouts
        if rollouts > 0:
            self.seconds_a_rollout = (now - self._began) / rollouts
        elif rollouts == 0:
            self._began = now


def data_of(num_envs: int, rollout_length: int, frame_size: int, threads: int, rollouts: int) -> RolloutDataModule:
    """Create the data module for one epoch of Pong.

    Args:
        num_envs: Number of environments.
        rollout_length: Steps per rollout.
        frame_size: Height and width of frames in pixels.
        threads: Threads of the emulators.
        rollouts: Number of rollouts in the epoch.
    """
    env_steps = rollouts * num_envs * rollout_length
    return RolloutDataModule(
        game="Pong",
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_env_steps=env_steps,
        env_steps_per_epoch=env_steps,
        frames=FrameSettings(size=frame_size),
        num_env_threads=threads,
    )


def train(
    module: type[M],
    data: RolloutDataModule,
    watch: L.Callback,
    prepare: Callable[[M], None] = lambda _: None,
    processes: int = 1,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    **settings: Any,
) -> None:
    """Train a module by the Trainer, without evaluations, loggers and checkpoints.

    Args:
        module: Class of the stage.
        data: Data module.
        watch: Callback that observes the rollouts.
        prepare: Function that modifies the new module before training.
        processes: Number of DDP processes.
        precision: Precision of the Trainer.
        settings: Settings of the module.
    """
    model = module(
        game=data.game,
        frame_shape=data.frame_shape,
        num_actions=data.num_actions,
        total_env_steps=data.total_env_steps,
        **settings,
    )
    prepare(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu",
            devices=processes,
            precision=precision,
            strategy="ddp" if processes > 1 else "auto",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[watch],
        )
        trainer.fit(model, datamodule=data)


class UniformAgent(nn.Module):
    """Uniform policy of negligible cost."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return equal logits ``[B, actions]`` and zero values ``[B]``."""
        return torch.zeros(len(pixels), self.num_actions), torch.zeros(len(pixels))


def rollouts_of(data: RolloutDataModule, agent: nn.Module) -> Iterator[TensorDict]:
    """Iterate over the rollouts of a training without training.

    Args:
        data: Data module.
        agent: Policy; maps pixels to logits ``[B, actions]`` and values ``[B]``.
    """
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    learner = SimpleNamespace(agent=agent, env_steps=0)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=learner,
        strategy=strategy,
        global_rank=0,
        local_rank=0,
        world_size=1,
        num_devices=1,
        callbacks=[],
    )
    return iter(data.train_dataloader())


def collect(lap: Lap, data: RolloutDataModule) -> None:
    """Collect rollouts with a policy of negligible cost.

    Args:
        lap: Called after each rollout.
        data: Data module.
    """
    for _ in rollouts_of(data, UniformAgent(data.num_actions)):
        lap()
