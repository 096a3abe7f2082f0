"""How an agent acts: the policy that the collector calls, and the one that plays test games."""

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

ActionChoice = Literal["sampled", "greedy"]


class SamplingPolicy(TensorDictModuleBase):
    """Samples actions from an agent's logits: reads ``pixels``, writes ``action``.

    It shares the agent's weights. The random numbers are its own, since the global generator is seeded alike on all
    ranks.

    Args:
        agent: pixels to (logits, values).
        seed: of the random numbers.
        device: of the agent.
    """

    in_keys = ["pixels"]
    out_keys = ["action"]

    def __init__(self, agent: nn.Module, seed: int, device: torch.device) -> None:
        super().__init__()
        self.agent = agent
        self.generator = torch.Generator(device).manual_seed(seed)

    def noise(self, *shape: int) -> Tensor:
        """Gumbel noise ``[*shape]``: the largest of logits and noise is a sample of their softmax."""
        exponential = torch.empty(shape, device=self.generator.device).exponential_(generator=self.generator)
        return exponential.log_().neg_()

    def logits(self, pixels: Tensor) -> Tensor:
        """Of ``pixels`` uint8 ``[n, stack, h, w]``, float32 ``[n, actions]``."""
        logits: Tensor = self.agent(pixels)[0]
        return logits.float()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """See the class."""
        logits = self.logits(tensordict["pixels"])
        tensordict["action"] = (logits + self.noise(*logits.shape)).argmax(-1)
        return tensordict


def select_actions(logits: Tensor, choice: ActionChoice, generator: torch.Generator) -> Tensor:
    """Actions int64 ``[B]`` from logits ``[B, actions]``: sampled, as the policy was trained, or its most likely."""
    if choice == "greedy":
        return logits.argmax(-1)
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]
