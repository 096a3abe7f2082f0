"""How a module's agent is scored: full games on every rank, one mean."""

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
"""Pixels uint8 ``[B, stack, h, w]`` and a source of random numbers to actions int64 ``[B]``."""


class EvaluatedModule(L.LightningModule):
    """Plays the games whose seeds it is given in evaluations and tests, and logs their mean score."""

    agent: ActorCritic
    """Acts and is updated; set by the subclass."""

    evaluation_actions: ActionChoice = "sampled"

    def __init__(self) -> None:
        super().__init__()
        self.env_steps = 0
        self.game_scores = CatMetric()

    def act(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Actions int64 ``[B]`` of evaluated games, for pixels uint8 ``[B, stack, h, w]``."""
        return self.actions_of(self.agent, pixels, generator)

    def actions_of(self, agent: torch.nn.Module, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What ``agent`` does, as :meth:`act`."""
        logits, _ = agent(pixels.to(self.device))
        return select_actions(logits, self.evaluation_actions, generator)

    def on_validation_start(self) -> None:
        """Gives all ranks the first one's running statistics: they score one network, the one that checkpoints keep."""
        self.share_buffers(self.agent)

    def share_buffers(self, network: torch.nn.Module) -> None:
        """Gives all ranks the first one's buffers."""
        if self.trainer.world_size > 1:
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def play(self, game_seeds: Tensor, act: Act) -> Tensor:
        """Scores float64 ``[games]`` of one full game for each seed."""
        data: Any = cast(Any, self.trainer).datamodule
        env: GameEnv = data.make_env(len(game_seeds), seed=0)
        # seeded by the games, so that the score of one set of weights is one number
        generator = torch.Generator(self.device).manual_seed(int(game_seeds[0]))
        try:
            scores = play_games(env, lambda pixels: act(pixels, generator), game_seeds.cpu())
        finally:
            env.close()
        return scores.to(self.device)

    def validation_step(self, game_seeds: Tensor, batch_idx: int) -> None:
        """Plays one full game for each seed."""
        self.game_scores.update(self.play(game_seeds, self.act))

    def test_step(self, game_seeds: Tensor, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(game_seeds, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs the mean score over all ranks' games."""
        self.log_scores("val/", self.game_scores)

    def on_test_epoch_end(self) -> None:
        """Logs the mean score over all ranks' games."""
        self.log_scores("test/", self.game_scores)

    def log_scores(self, prefix: str, game_scores: CatMetric) -> None:
        """Logs mean, interval and range of ``game_scores``, and empties it."""
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
        # every rank has all scores by now; sync_dist only tells Lightning so
        self.log("step", self.clock(), sync_dist=True)
        self.log_dict({f"{prefix}{name}": value for name, value in metrics.items()}, sync_dist=True)

    def clock(self) -> Tensor:
        """Environment steps for the loggers' axis, in float64: float32 rounds large counts."""
        device = "cpu" if self.device.type == "mps" else self.device  # Apple's has no float64
        return torch.tensor(self.env_steps, dtype=torch.float64, device=device)
