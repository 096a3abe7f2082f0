"""Evaluation of a module's agent: full games on every rank, one mean score."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor
from torchmetrics import CatMetric

from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.rollouts.evaluation import confidence_interval, play_games
from a2d_lightning.rollouts.policy import ActionChoice, select_actions

if TYPE_CHECKING:
    from a2d_lightning.rollouts.envs import GameEnv

Act = Callable[[Tensor, torch.Generator], Tensor]
"""Function of pixels uint8 ``[B, stack, h, w]`` and a source of random numbers to actions int64 ``[B]``."""


class EvaluatedModule(L.LightningModule):
    """Base module that plays full games with given seeds in evaluations and tests, and logs their mean score."""

    agent: ActorCritic
    """The network that acts and is updated; set by the subclass."""

    evaluation_actions: ActionChoice = "sampled"

    def __init__(self) -> None:
        super().__init__()
        self.env_steps = 0
        self.game_scores = CatMetric()

    def act(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Choose the agent's actions in evaluated games.

        Args:
            pixels: uint8 ``[B, stack, h, w]``.
            generator: source of random numbers, on the module's device.

        Returns:
            int64 ``[B]``.
        """
        return self.actions_of(self.agent, pixels, generator)

    def actions_of(self, agent: torch.nn.Module, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Choose the actions of ``agent``; other arguments and result as in :meth:`act`."""
        logits, _ = agent(pixels.to(self.device))
        return select_actions(logits, self.evaluation_actions, generator)

    def on_validation_start(self) -> None:
        """Broadcast rank 0's running statistics, so that all ranks score the network that checkpoints hold."""
        self.share_buffers(self.agent)

    def share_buffers(self, network: torch.nn.Module) -> None:
        """Broadcast rank 0's buffers of ``network`` to all ranks."""
        if self.trainer.world_size > 1:
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def play(self, game_seeds: Tensor, act: Act) -> Tensor:
        """Play one full game for each seed.

        Args:
            game_seeds: int64 ``[games]``.
            act: chooses the actions.

        Returns:
            Raw scores, float32 ``[games]``.
        """
        data: Any = cast(Any, self.trainer).datamodule
        env: GameEnv = data.make_env(len(game_seeds), seed=0)
        # seeded by the games: evaluating the same weights again gives the same score
        generator = torch.Generator(self.device).manual_seed(int(game_seeds[0]))
        try:
            scores = play_games(env, lambda pixels: act(pixels, generator), game_seeds.cpu())
        finally:
            env.close()
        return scores.to(self.device)

    def validation_step(self, game_seeds: Tensor, batch_idx: int) -> None:
        """Play one full game for each seed, int64 ``[games]``."""
        self.game_scores.update(self.play(game_seeds, self.act))

    def test_step(self, game_seeds: Tensor, batch_idx: int) -> None:
        """Play one full game for each seed, as in validation."""
        self.validation_step(game_seeds, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the mean score over the games of all ranks."""
        self.log_scores("val/", self.game_scores)

    def on_test_epoch_end(self) -> None:
        """Log the mean score over the games of all ranks."""
        self.log_scores("test/", self.game_scores)

    def log_scores(self, prefix: str, game_scores: CatMetric) -> None:
        """Log the mean score with its 95 % confidence interval, minimum and maximum, and reset ``game_scores``.

        Args:
            prefix: start of the metrics' names.
            game_scores: scores since the last reset.
        """
        scores = game_scores.compute().flatten()
        game_scores.reset()
        low, high = confidence_interval(scores)
        metrics: dict[str, Tensor | float] = {
            "score": scores.mean(),
            "score_low95": low,
            "score_high95": high,
            "score_min": scores.min(),
            "score_max": scores.max(),
            "games": float(scores.numel()),
        }
        # every rank already has all scores; sync_dist only declares this to Lightning
        self.log("step", self.clock(), sync_dist=True)
        self.log_dict({f"{prefix}{name}": value for name, value in metrics.items()}, sync_dist=True)

    def clock(self) -> Tensor:
        """Return the number of environment steps, the x axis of the loggers, as a scalar.

        The scalar is float64, because float32 rounds large counts.
        """
        device = "cpu" if self.device.type == "mps" else self.device  # MPS has no float64
        return torch.tensor(self.env_steps, dtype=torch.float64, device=device)
