"""Collector that runs in a process of a Ray cluster."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from tensordict import TensorDict

from a2d_lightning.models.normalization import frozen_batch_norm_statistics
from a2d_lightning.rollouts.collector import RolloutCollector

M = TypeVar("M", bound=Callable[..., Any])


def return_exceptions(method: M) -> M:
    """Return exceptions of ``method`` instead of raising them: an exception ends a collector's process in Ray 2.60."""

    @functools.wraps(method)
    def answer(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:
            return error

    return cast(M, answer)


class Worker(RolloutCollector):
    """Rollout collector with methods for the training process to call remotely."""

    def __repr__(self) -> str:
        # Ray prefixes each printed line of a worker with this text
        return "a2d_lightning"

    @return_exceptions
    def collect(self, weights: dict[str, Any], training: bool) -> TensorDict:
        """Collect one rollout ``[num_envs, T]``.

        Args:
            weights: State dict of the agent, with buffers.
            training: Whether the agent acts in training mode.
        """
        agent = self.policy.agent
        agent.load_state_dict(weights)
        agent.train(training)
        with frozen_batch_norm_statistics(agent):
            return self.next()

    @return_exceptions
    def state_dict(self) -> dict[str, Any]:
        """Return the state of games and random generator; see :meth:`RolloutSource.state`."""
        return {"games": self.env.game_state(), "policy_generator": self.policy.generator.get_state()}

    @return_exceptions
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore games and random generator from the result of :meth:`state_dict`."""
        self.env.restore_games(state["games"])
        self.reset()
        self.policy.generator.set_state(state["policy_generator"])
