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
from a2d_lightning.envs import FrameSettings
from a2d_lightning.modules.actor_critic import ActorCriticModule

M = TypeVar("M", bound=ActorCriticModule)

WARMUP_ROLLOUTS = 20


class Stopwatch(L.Callback):
    """Seconds a rollout, act and learn, from the end of the warm-up to the end of the training."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        """Starts after the warm-up; stops, so far, after every rollout."""
        batch_idx = args[-1]
        self.ended = time.perf_counter()
        if batch_idx + 1 == WARMUP_ROLLOUTS:
            self.began = self.ended


def data_of(
    num_envs: int, rollout_length: int, frame_size: int, threads: int, rollouts: int, warmup: int = WARMUP_ROLLOUTS
) -> RolloutDataModule:
    """Pong, for one epoch of ``rollouts`` after the warm-up."""
    env_steps = (warmup + rollouts) * num_envs * rollout_length
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
    prepare: Callable[[M], None] = lambda _: None,
    processes: int = 1,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    **settings: Any,
) -> Stopwatch:
    """A whole training by the Trainer, without evaluations, loggers and checkpoints.

    Args:
        module: a stage.
        data: what it plays.
        prepare: changes the new module.
        processes: that share the work by DDP; the first one's stopwatch is returned.
        precision: of the Trainer.
        settings: the module's.
    """
    watch = Stopwatch()
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
    return watch


def seconds_a_rollout(module: type[M], data: RolloutDataModule, **settings: Any) -> float:
    """Of :func:`train`, after its warm-up; with several processes of one rollout each."""
    watch = train(module, data, **settings)
    return (watch.ended - watch.began) / (data.rollouts_per_epoch - WARMUP_ROLLOUTS)


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


def seconds_to_collect(data: RolloutDataModule) -> float:
    """A rollout by a policy that costs nothing."""
    rollouts = rollouts_of(data, UniformAgent(data.num_actions))
    for _ in range(WARMUP_ROLLOUTS):
        next(rollouts)
    began = time.perf_counter()
    count = sum(1 for _ in rollouts)
    seconds = (time.perf_counter() - began) / count
    data.teardown("fit")
    return seconds
