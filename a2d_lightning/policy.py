"""How an agent acts: the policy that the collector calls, and the one that plays test games."""

from typing import Literal

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from a2d_lightning.errors import NonFiniteError

ActionChoice = Literal["sampled", "greedy"]


class SamplingPolicy(TensorDictModuleBase):
    """Samples actions from an agent's logits: reads ``pixels``, writes ``action`` and ``log_prob``.

    It shares the agent's weights. The random numbers are its own, since the global generator is seeded alike on all
    ranks.

    Args:
        agent: pixels to (logits, values).
        seed: of the random numbers.
        device: of the agent.
    """

    in_keys = ["pixels"]
    out_keys = ["action", "log_prob"]

    def __init__(self, agent: nn.Module, seed: int, device: torch.device) -> None:
        super().__init__()
        self.agent = agent
        self.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """See the class."""
        logits, _ = self.agent(tensordict["pixels"])
        log_pi = F.log_softmax(logits.float(), dim=-1)  # [n, actions]
        if not torch.isfinite(log_pi).all():
            raise NonFiniteError("the policy's logits are not finite while acting; lower the learning rate.")
        action = torch.multinomial(log_pi.exp(), 1, generator=self.generator)  # [n, 1]
        tensordict["action"] = action[:, 0]
        tensordict["log_prob"] = log_pi.gather(-1, action)[:, 0]
        return tensordict


def choose(logits: Tensor, choice: ActionChoice, generator: torch.Generator) -> Tensor:
    """Actions int64 ``[B]`` from logits ``[B, actions]``: sampled, as the policy was trained, or its most likely."""
    if choice == "greedy":
        return logits.argmax(-1)
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]
