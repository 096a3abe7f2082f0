"""Backends for the collection of rollouts, selected by class in YAML: in the training process or by remote workers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import nn

from a2d_lightning.models.normalization import frozen_batch_norm_statistics
from a2d_lightning.rollouts.games import MAX_ENV_STEPS_PER_GAME, FrameSettings
from a2d_lightning.rollouts.policy import SamplingPolicy
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from a2d_lightning.rollouts.envs import GameEnv


@dataclass(frozen=True)
class EnvSpec:
    """Specification of the games of one collector, in plain values that can be sent to other machines."""

    game: str
    num_envs: int
    frames: FrameSettings
    noop_max: int
    num_threads: int
    timeout_seconds: float
    seed: int
    owner: str
    """Name of the process that plays the games, for error messages: ``rank 0``."""
    affinity_offset: int = -1
    """First core of the emulator threads, which are pinned one per core; -1 disables pinning."""
    wrappers: tuple[str | dict[str, Any], ...] = ()
    """Wrappers around each Gymnasium environment, the first one innermost."""
    max_env_steps_per_game: int = MAX_ENV_STEPS_PER_GAME
    """Step limit of a game, for Gymnasium environments without a time limit."""

    def build(self) -> "GameEnv":
        """Build the environments."""
        from a2d_lightning.rollouts.envs import make_env  # noqa: PLC0415 (slow to import)

        watchdog = Watchdog(f"data.game: an environment of {self.game} ({self.owner})", self.timeout_seconds)
        return make_env(
            self.game,
            self.num_envs,
            self.frames,
            self.seed,
            self.num_threads,
            self.noop_max,
            self.affinity_offset,
            watchdog,
            self.wrappers,
            self.max_env_steps_per_game,
        )

    def split(self, workers: int, threads: int) -> list["EnvSpec"]:
        """Split the games into equal parts with different seeds.

        Args:
            workers: Number of parts.
            threads: Emulator threads of each part.
        """
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
    """Source of rollouts, collected on demand."""

    @abstractmethod
    def rollout(self) -> TensorDict:
        """Collect the next rollout with the agent's current weights.

        Returns:
            TensorDict ``[num_envs, rollout_length]`` in the layout of
            :class:`~a2d_lightning.rollouts.collector.RolloutCollector`. The next rollout may overwrite its memory.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state of games and random generators between two rollouts, as plain values for a checkpoint."""

    @abstractmethod
    def shutdown(self) -> None:
        """Close the emulators."""


class CollectionBackend(ABC):
    """Settings of a way to collect rollouts."""

    @abstractmethod
    def check(self, num_envs: int) -> None:
        """Check that this backend can play ``num_envs`` environments.

        Raises:
            SettingError: If the backend cannot.
        """

    @abstractmethod
    def start(
        self, games: EnvSpec, agent: nn.Module, rollout_length: int, device: torch.device, state: dict[str, Any]
    ) -> RolloutSource:
        """Build the environments and start the collection.

        Args:
            games: All environments of this process.
            agent: Network from pixels to (logits, values), on ``device``. Later updates of its weights take effect.
            rollout_length: Environment steps T of a rollout.
            device: Device of the agent and the rollouts.
            state: Result of :meth:`RolloutSource.state` to resume from; empty to start new games.

        Returns:
            The source of rollouts.

        Raises:
            SettingError: If ``state`` cannot be restored.
        """

    @abstractmethod
    def description(self) -> str:
        """Return the settings that must be equal for a ``state`` to be restored."""


class LocalCollection(CollectionBackend):
    """Collection in the training process, whose environments share one vector environment."""

    def check(self, num_envs: int) -> None:
        """Accept any number of environments."""

    def start(
        self, games: EnvSpec, agent: nn.Module, rollout_length: int, device: torch.device, state: dict[str, Any]
    ) -> RolloutSource:
        """Build the environments and start the collection; see :class:`CollectionBackend`."""
        return _LocalSource(games, agent, rollout_length, device, state)

    def description(self) -> str:
        """Return the backend's name."""
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
            # on a GPU, True makes TorchRL yield inside a side stream
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
    """Convert errors of the enclosed code, which restores a checkpoint, to a SettingError.

    Raises:
        SettingError: If the content of the checkpoint cannot be restored.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SettingError(
            f"ckpt_path: the games cannot be restored ({type(error).__name__}: {error}); choose another checkpoint."
        ) from error


def derived_seed(*parts: int) -> int:
    """Derive a 32-bit seed from a tuple of non-negative integers (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
