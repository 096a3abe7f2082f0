"""The collector in a process of a Ray cluster."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from tensordict import TensorDict

from a2d_lightning.models.normalization import frozen_batch_norm_statistics
from a2d_lightning.rollouts.collector import RolloutCollector

M = TypeVar("M", bound=Callable[..., Any])


def return_exceptions(method: M) -> M:
    """Gives back what ``method`` raises: Ray 2.60 ends the process of a collector that lets an error out."""

    @functools.wraps(method)
    def answer(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:
            return error

    return cast(M, answer)


class Worker(RolloutCollector):
    """TorchRL's collector in a process of the cluster, with what a run asks of it between rollouts."""

    def __repr__(self) -> str:
        # Ray puts it in front of each line that a worker prints
        return "a2d_lightning"

    @return_exceptions
    def collect(self, weights: dict[str, Any], training: bool) -> TensorDict:
        """A rollout ``[num_envs, T]`` under these weights and buffers."""
        agent = self.policy.agent
        agent.load_state_dict(weights)
        agent.train(training)
        with frozen_batch_norm_statistics(agent):
            return self.next()

    @return_exceptions
    def state_dict(self) -> dict[str, Any]:
        """See :meth:`RolloutSource.state`."""
        return {"games": self.env.game_state(), "policy_generator": self.policy.generator.get_state()}

    @return_exceptions
    def load_state(self, state: dict[str, Any]) -> None:
        """Brings games and random numbers to ``state``."""
        self.env.restore_games(state["games"])
        self.reset()
        self.policy.generator.set_state(state["policy_generator"])
