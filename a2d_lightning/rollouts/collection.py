"""Where rollouts are collected: in the process that learns, or by workers elsewhere. Classes, chosen in YAML."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import nn

from a2d_lightning.cpu.openmp_threads import ParkedThreads
from a2d_lightning.models.normalization import frozen_batch_norm_statistics
from a2d_lightning.rollouts.games import MAX_ENV_STEPS_PER_GAME, FrameSettings
from a2d_lightning.rollouts.policy import SamplingPolicy
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from a2d_lightning.rollouts.envs import GameEnv


@dataclass(frozen=True)
class EnvSpec:
    """The games of one collector, as plain values that travel to other machines."""

    game: str
    num_envs: int
    frames: FrameSettings
    noop_max: int
    num_threads: int
    timeout_seconds: float
    seed: int
    owner: str
    """Who plays them, for errors: ``rank 0``."""
    affinity_offset: int = -1
    """Of the emulators' threads, one to a core; -1 leaves them to the system."""
    acts_on_cpu: bool = True
    """Whether torch's threads act for them, and may be in their way."""
    wrappers: tuple[str | dict[str, Any], ...] = ()
    """Around each Gymnasium environment."""
    max_env_steps_per_game: int = MAX_ENV_STEPS_PER_GAME
    """The cap of Gymnasium environments without a limit of their own."""

    def build(self) -> "GameEnv":
        """The environments."""
        from a2d_lightning.rollouts.envs import make_env  # noqa: PLC0415 (slow to import)

        watchdog = Watchdog(f"data.game: an environment of {self.game} ({self.owner})", self.timeout_seconds)
        parked = ParkedThreads(self.num_threads) if self.acts_on_cpu else None
        return make_env(
            self.game,
            self.num_envs,
            self.frames,
            self.seed,
            self.num_threads,
            self.noop_max,
            self.affinity_offset,
            watchdog,
            parked,
            self.wrappers,
            self.max_env_steps_per_game,
        )

    def split(self, workers: int, threads: int) -> list["EnvSpec"]:
        """Equal parts for ``workers`` of ``threads`` emulator threads each, with seeds of their own."""
        return [
            replace(
                self,
                num_envs=self.num_envs // workers,
                num_threads=threads,
                affinity_offset=-1,
                seed=derived_seed(self.seed, worker),
                owner=f"{self.owner}, worker {worker}",
            )
            for worker in range(workers)
        ]


class RolloutSource(ABC):
    """Rollouts on demand."""

    @abstractmethod
    def rollout(self) -> TensorDict:
        """The next rollout ``[num_envs, rollout_length]`` under the agent's weights of now, as TorchRL's collector
        gives it; its memory may be used again by the next one."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Where games and random numbers are, between two rollouts: plain values for a checkpoint."""

    @abstractmethod
    def shutdown(self) -> None:
        """Ends the emulators."""


class CollectionBackend(ABC):
    """A way to collect."""

    @abstractmethod
    def check(self, num_envs: int) -> None:
        """Raises a SettingError where ``num_envs`` environments cannot be played in this way."""

    @abstractmethod
    def start(
        self, games: EnvSpec, agent: nn.Module, rollout_length: int, device: torch.device, state: dict[str, Any]
    ) -> RolloutSource:
        """Builds the environments around ``agent``, which is on ``device``.

        Args:
            games: all environments of this process.
            agent: pixels to (logits, values); always the current weights.
            rollout_length: T.
            device: of the rollouts.
            state: of :meth:`RolloutSource.state`, to go on there; empty to begin.

        Raises:
            SettingError: ``state`` is no such state.
        """

    @abstractmethod
    def description(self) -> str:
        """What must stay the same for a ``state`` to fit."""


class LocalCollection(CollectionBackend):
    """In the process that learns; its environments share one vector environment."""

    def check(self, num_envs: int) -> None:
        """Any number will do."""

    def start(
        self, games: EnvSpec, agent: nn.Module, rollout_length: int, device: torch.device, state: dict[str, Any]
    ) -> RolloutSource:
        """See :class:`CollectionBackend`."""
        return _LocalSource(games, agent, rollout_length, device, state)

    def description(self) -> str:
        """See :class:`CollectionBackend`."""
        return "LocalCollection"


class _LocalSource(RolloutSource):
    def __init__(
        self, games: EnvSpec, agent: nn.Module, rollout_length: int, device: torch.device, state: dict[str, Any]
    ) -> None:
        from a2d_lightning.rollouts.collector import RolloutCollector  # noqa: PLC0415 (slow to import)

        self.agent = agent
        self.env = games.build()
        self.policy = SamplingPolicy(agent, games.seed, device)
        if state:
            with restoring():
                self.env.restore_games(state["games"])
        self.collector = RolloutCollector(
            self.env,
            self.policy,
            frames_per_batch=games.num_envs * rollout_length,
            total_frames=-1,
            policy_device=device,
            env_device="cpu",
            storing_device=device,
            # on a GPU the collector would yield inside its side stream
            return_same_td=device.type == "cpu",
            trust_policy=True,
            auto_register_policy_transforms=False,
        )
        if state:
            with restoring():
                self.policy.generator.set_state(state["policy_generator"].cpu())
        self.collected: Iterator[TensorDict] = iter(self.collector)

    def rollout(self) -> TensorDict:
        with frozen_batch_norm_statistics(self.agent):
            return next(self.collected)

    def state(self) -> dict[str, Any]:
        return {"games": self.env.game_state(), "policy_generator": self.policy.generator.get_state()}

    def shutdown(self) -> None:
        self.collector.shutdown()


@contextmanager
def restoring() -> Iterator[None]:
    """Inside, what goes wrong is the fault of a checkpoint's content.

    Raises:
        SettingError: says so.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SettingError(
            f"ckpt_path: where the games were cannot be restored ({type(error).__name__}: {error}); take another "
            "checkpoint."
        ) from error


def derived_seed(*parts: int) -> int:
    """A seed of its own for each tuple of non-negative numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
