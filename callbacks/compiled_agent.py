"""torch.compile for networks that stay as they are: teachers and derived agents."""

from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.models.normalization import RunningBatchNorm2d, frozen_batch_norm_statistics
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.runtime.errors import SettingError


class CompiledAgent(L.Callback):
    """Compiles the agent when training starts: fewer, larger kernels for acting and for learning.

    On a GPU, ``reduce-overhead`` records them as CUDA graphs, for networks so small that starting a kernel takes longer
    than the kernel. Each size of a batch is compiled by itself, up to a minute each; evaluations, whose batches shrink
    game by game, play the network as it is. Results are equal up to rounding.

    Args:
        mode: torch.compile's.
    """

    def __init__(self, mode: Literal["default", "reduce-overhead", "max-autotune"] = "default") -> None:
        self.mode = mode

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compiles it, and asks it once, so that a machine that cannot compile says so before any training.

        Raises:
            SettingError: there is no compiler, or the network is none that stays as it is.
        """
        module = cast(ActorCriticModule, pl_module)
        agent = module.agent
        if isinstance(agent.backbone, Supernet):
            raise SettingError(
                "callbacks.CompiledAgent: a supernet is another network after each draw; leave it out of a search."
            )
        if any(isinstance(layer, RunningBatchNorm2d) for layer in agent.modules()):
            raise SettingError(
                "callbacks.CompiledAgent: normalization running keeps what it saw from one update to the next, which "
                "CUDA graphs overwrite; take another model.normalization."
            )
        rank_zero_info("compiling the agent; each new size of a batch takes up to a minute")
        agent.compile(mode=self.mode, dynamic=False)
        num_envs = cast(Any, trainer).datamodule.num_envs
        frames = torch.zeros(num_envs, *module.frame_shape, dtype=torch.uint8, device=module.device)
        try:
            with torch.no_grad(), frozen_batch_norm_statistics(agent):
                agent(frames)
        except RuntimeError as error:
            raise SettingError(
                f"callbacks.CompiledAgent: torch.compile failed ({type(error).__name__}); install a C++ compiler "
                "(on a GPU, Triton, too), or leave it out."
            ) from error

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluations are not compiled."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training is."""
        torch.compiler.set_stance("default")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The process goes on as it began, wherever the run ended."""
        torch.compiler.set_stance("default")
