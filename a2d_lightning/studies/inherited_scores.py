"""Scores of networks that inherit the weights of a supernet, as a predictor of trained scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from a2d_lightning.agent_files import read_agent
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.models.normalization import inference_normalization, recalibrate, with_normalization
from a2d_lightning.modules.search_result import SearchResult
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.supernet import Supernet, inherit_weights
from a2d_lightning.rollouts.evaluation import play_games
from a2d_lightning.rollouts.games import FrameSettings
from a2d_lightning.rollouts.policy import select_actions
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.plain_checkpoints import load


class InheritedScores:
    """Scores of networks with weights inherited from a supernet, without any further training.

    Args:
        search: Search whose run folder holds ``config.yaml`` with the settings of the games.
        games: Number of full games per network; all networks play with the same seeds.

    Raises:
        SettingError: If the folder lacks its configuration, or the checkpoint lacks weights of the supernet.
    """

    def __init__(self, search: SearchResult, games: int) -> None:
        self.search = search
        self.games = games
        self.config = _config(search.path)
        checkpoint = load(search.path)
        frames = checkpoint.get("recent_frames") or []
        self.recent_frames: list[Tensor] = [frame for rank in frames for frame in rank or []]
        shape, card = search.card.frame_shape, search.card
        kind = inference_normalization(card.normalization)
        self.supernet = Supernet(search.plan, shape, operators=search.builders())
        self.agent = with_normalization(ActorCritic(self.supernet, shape, card.num_actions), kind)
        weights = read_agent(search.path)[1]
        missing, _ = self.agent.load_state_dict(weights, strict=False)
        if missing:
            raise SettingError(f"--search: {str(search.path)!r} lacks {missing[0]} of its supernet.")

    def derived(self, operators: Sequence[str]) -> ActorCritic:
        """Build a network with the supernet's weights; recalibrate batch norm if the checkpoint has recent frames.

        Args:
            operators: Name of the operator in each cell.

        Returns:
            Agent in eval mode.
        """
        card = self.search.card
        backbone = Architecture(tuple(operators), self.search.plan, card.frame_shape, 0, 0).build(card.frame_shape)
        agent = ActorCritic(backbone, card.frame_shape, card.num_actions)
        with_normalization(agent, inference_normalization(card.normalization))
        inherit_weights(backbone, self.supernet, operators)
        agent.actor.load_state_dict(self.agent.actor.state_dict())
        agent.critic.load_state_dict(self.agent.critic.state_dict())
        with torch.no_grad():
            if self.recent_frames:
                recalibrate(agent, self.recent_frames)
        return agent.eval()

    def score(self, operators: Sequence[str]) -> float:
        """Return the mean score of full games played with sampled actions.

        Args:
            operators: Name of the operator in each cell.

        Raises:
            Interrupted: If a signal stopped the process.
        """
        agent = self.derived(operators)
        generator = torch.Generator().manual_seed(0)
        env = self._data().make_env(self.games, seed=0)
        try:
            scores = play_games(
                env, lambda pixels: select_actions(agent(pixels)[0], "sampled", generator), torch.arange(self.games)
            )
        finally:
            env.close()
        return float(scores.mean())

    def _data(self) -> RolloutDataModule:
        # pass on every setting of the games, including future ones; where rollouts were collected does not matter
        settings = {name: value for name, value in self.config["data"].items() if name not in ("frames", "collection")}
        return RolloutDataModule(frames=FrameSettings(**self.config["data"]["frames"]), **settings)


def _config(path: Path) -> dict[str, Any]:
    for folder in (path.parent.parent, path.parent):
        if (folder / "config.yaml").is_file():
            content = yaml.safe_load((folder / "config.yaml").read_text())
            if isinstance(content, dict) and isinstance(content.get("data"), dict):
                return content
    raise SettingError(
        f"--inherited_games: {str(path)!r} is not in a run folder with a config.yaml, which contains the settings of "
        "the games; remove --inherited_games."
    )
