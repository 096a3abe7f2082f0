"""What a2d_lightning does in a second: whole trainings by Lightning's Trainer, and its collector alone."""

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
"""Rollouts, for a contestant."""


class Laps(L.Callback):
    """Calls ``lap`` after each rollout that was learned from."""

    def __init__(self, lap: Lap) -> None:
        self.lap = lap

    def on_train_batch_end(self, *args: Any) -> None:
        """See the class."""
        self.lap()


class Stopwatch(L.Callback):
    """Seconds a rollout, act and learn, from the end of the warm-up to the end of the training."""

    def __init__(self, warmup_rollouts: int = 20) -> None:
        self.warmup_rollouts = warmup_rollouts
        self.seconds_a_rollout = self._began = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        """Starts after the warm-up; reads the time, so far, after every rollout."""
        now, rollouts = time.perf_counter(), args[-1] + 1 - self.warmup_rollouts
        if rollouts > 0:
            self.seconds_a_rollout = (now - self._began) / rollouts
        elif rollouts == 0:
            self._began = now


def data_of(num_envs: int, rollout_length: int, frame_size: int, threads: int, rollouts: int) -> RolloutDataModule:
    """Pong, for one epoch of ``rollouts``."""
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
    """A whole training by the Trainer, without evaluations, loggers and checkpoints.

    Args:
        module: a stage.
        data: what it plays.
        watch: is told of every rollout, in the first process.
        prepare: changes the new module.
        processes: that share the work by DDP.
        precision: of the Trainer.
        settings: the module's.
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
    """A policy that costs nothing."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Equal logits ``[B, actions]``, values of 0 ``[B]``."""
        return torch.zeros(len(pixels), self.num_actions), torch.zeros(len(pixels))


def rollouts_of(data: RolloutDataModule, agent: nn.Module) -> Iterator[TensorDict]:
    """What the data gives a training with ``agent``, without a training."""
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
    """Rollouts by a policy that costs nothing."""
    for _ in rollouts_of(data, UniformAgent(data.num_actions)):
        lap()
