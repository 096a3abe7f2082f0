"""Trained agents that play, for use from Python."""

from pathlib import Path

import torch
from torch import Tensor

from a2d_lightning.agent_files import AgentCard, load_network
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.rollouts.policy import select_actions


class Agent:
    """A trained network in evaluation mode, with the card that describes it.

    Attributes:
        card: Game, shape of an observation, number of actions, network.
        network: Frames to logits and values.
        generator: Of sampled actions; seed 0 at first.
    """

    def __init__(self, card: AgentCard, network: ActorCritic) -> None:
        self.card = card
        self.network = network.eval().requires_grad_(False)
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def evaluate(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the actions, float ``[B, actions]``, and the values, float ``[B]``.

        Args:
            frames: uint8 ``[B, stack, height, width]``, the newest frame last.

        Raises:
            ValueError: If the frames are of another type or shape than the card's.
        """
        expected = self.card.frame_shape
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != tuple(expected):
            raise ValueError(f"frames: {frames.dtype} {list(frames.shape)}; this agent needs uint8 [B, {expected}].")
        logits, values = self.network(frames)
        return logits, values

    def act(self, frames: Tensor, greedy: bool = False) -> Tensor:
        """Return one action for each observation, int64 ``[B]``.

        Args:
            frames: uint8 ``[B, stack, height, width]``, the newest frame last.
            greedy: Take the most probable action. Otherwise sample, as in training.
        """
        return select_actions(self.evaluate(frames)[0], "greedy" if greedy else "sampled", self.generator)


def load_agent(source: str | Path) -> Agent:
    """Load an agent from a bundled name, an exported ``.safetensors`` file or a training checkpoint.

    No code from the file is executed.

    Examples:
        >>> import torch
        >>> import a2d_lightning
        >>> agent = a2d_lightning.load_agent("pong_four_conv_42")
        >>> agent.card.game, agent.card.frame_shape
        ('pong', (4, 42, 42))
        >>> agent.act(torch.zeros(2, 4, 42, 42, dtype=torch.uint8), greedy=True).shape
        torch.Size([2])

    Args:
        source: The name or path. A search's checkpoint holds a supernet and is refused.

    Raises:
        SettingError: If there is no such agent, or the file is damaged.
    """
    return Agent(*load_network(source, "load_agent"))
