"""Selection of actions during rollout collection and in evaluations."""

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

ActionChoice = Literal["sampled", "greedy"]


class SamplingPolicy(TensorDictModuleBase):
    """Policy that samples actions from an agent's logits: reads ``pixels``, writes ``action``.

    It shares the agent's weights. It has a separate random generator because the global one has the same seed on all
    ranks.

    Args:
        agent: Network from pixels to (logits, values).
        seed: Seed of the random generator.
        device: Device of the agent.
    """

    in_keys = ["pixels"]
    out_keys = ["action"]

    def __init__(self, agent: nn.Module, seed: int, device: torch.device) -> None:
        super().__init__()
        self.agent = agent
        self.generator = torch.Generator(device).manual_seed(seed)

    def noise(self, *shape: int) -> Tensor:
        """Draw Gumbel noise, float32 ``[*shape]``: the argmax of logits plus noise is a sample from their softmax."""
        exponential = torch.empty(shape, device=self.generator.device).exponential_(generator=self.generator)
        return exponential.log_().neg_()

    def logits(self, pixels: Tensor) -> Tensor:
        """Compute logits float32 ``[n, actions]`` from ``pixels`` uint8 ``[n, *frame_shape]``."""
        logits: Tensor = self.agent(pixels)[0]
        return logits.float()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sample ``action`` int64 ``[n]`` from ``pixels`` and write it into ``tensordict``."""
        logits = self.logits(tensordict["pixels"])
        tensordict["action"] = (logits + self.noise(*logits.shape)).argmax(-1)
        return tensordict


def select_actions(logits: Tensor, choice: ActionChoice, generator: torch.Generator) -> Tensor:
    """Select actions from logits.

    Args:
        logits: ``[B, actions]``.
        choice: ``sampled`` from the policy, as in training, or ``greedy``, the most likely action.
        generator: Random generator for ``sampled``.

    Returns:
        Actions, int64 ``[B]``.
    """
    if choice == "greedy":
        return logits.argmax(-1)
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]
