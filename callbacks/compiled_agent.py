"""Callback that compiles networks of fixed structure: teachers and derived agents."""

from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.models.normalization import RunningBatchNorm2d, frozen_batch_norm_statistics
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.runtime.errors import SettingError


class CompiledAgent(L.Callback):
    """Compiles the agent with ``torch.compile`` when training starts, for acting and for learning.

    On a GPU, ``reduce-overhead`` uses CUDA graphs, for networks so small that launching a kernel takes longer than
    running it. Each batch size is compiled separately, in up to a minute. Evaluations are not compiled because their
    batches shrink whenever a game ends. Results are equal up to rounding.

    Args:
        mode: Mode of ``torch.compile``.
    """

    def __init__(self, mode: Literal["default", "reduce-overhead", "max-autotune"] = "default") -> None:
        self.mode = mode

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compile the agent and run it once: a missing compiler is reported before training.

        Raises:
            SettingError: If compilation fails, or the agent is a supernet or has ``running`` normalization.
        """
        module = cast(ActorCriticModule, pl_module)
        agent = module.agent
        if isinstance(agent.backbone, Supernet):
            raise SettingError(
                "CompiledAgent: the network of a search changes with each draw; remove the callback from the search."
            )
        if any(isinstance(layer, RunningBatchNorm2d) for layer in agent.modules()):
            raise SettingError(
                "CompiledAgent: normalization running keeps batch statistics across updates, which CUDA graphs "
                "overwrite; choose another model.normalization."
            )
        rank_zero_info("compiling the agent; each new batch size takes up to a minute")
        agent.compile(mode=self.mode, dynamic=False)
        num_envs = cast(Any, trainer).datamodule.num_envs
        frames = torch.zeros(num_envs, *module.frame_shape, dtype=torch.uint8, device=module.device)
        try:
            with torch.no_grad(), frozen_batch_norm_statistics(agent):
                agent(frames)
        except RuntimeError as error:
            raise SettingError(
                f"CompiledAgent: torch.compile failed ({type(error).__name__}); install a C++ compiler (on a GPU, "
                "also Triton), or remove the callback."
            ) from error

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run evaluations without compilation."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Return to compiled execution for training."""
        torch.compiler.set_stance("default")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the process-wide default, in case the run ended in an evaluation."""
        torch.compiler.set_stance("default")
