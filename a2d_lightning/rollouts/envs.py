"""TorchRL environment of batch ``[n]`` around a vector environment of ``n`` games (ale-py's C++ one for Atari).

A checkpoint stores the state of an environment as its last seed and the actions and resets since, which are replayed on
resume. Seeds are drawn from ``(seed, environment, number of the draw)``. A seeded reset of an Atari game reloads it and
takes twenty times as long as an unseeded one. An environment therefore gets a new seed only at the first reset that is
at least :data:`ATARI_DECISIONS_PER_SEED` decisions after the last seed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded, UnboundedContinuous
from torchrl.envs import EnvBase

from a2d_lightning.rollouts.action_log import KEEP_RNG, ActionLog, Reset
from a2d_lightning.rollouts.atari import atari_vector
from a2d_lightning.rollouts.games import MAX_ENV_STEPS_PER_GAME, FrameSettings, is_gymnasium_id
from a2d_lightning.rollouts.gymnasium_games import WrapperSetting, gymnasium_games
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.signals import INTERRUPTION
from a2d_lightning.runtime.watchdog import Watchdog

ATARI_DECISIONS_PER_SEED = 4_000
"""Decisions between two seeds (Atari): seeded resets cost a few percent of emulation time, a replay takes seconds."""

GYMNASIUM_DECISIONS_PER_SEED = 500
"""Decisions between two seeds (Gymnasium): a seeded reset takes as long as 30 steps of a cheap game."""


@dataclass(frozen=True)
class StepResult:
    """Result of one decision in each of ``n`` games."""

    pixels: np.ndarray
    """uint8 ``[n, *frame_shape]``; the last observation of a game where it ended."""
    reward: np.ndarray
    """float32 ``[n]``, not clipped."""
    game_score: np.ndarray
    """float32 ``[n]``, sum of raw rewards since the game began; the final score where the game ended."""
    life_lost: np.ndarray
    """bool ``[n]``, whether the number of lives decreased."""
    terminated: np.ndarray
    """bool ``[n]``, whether the game ended by its rules."""
    truncated: np.ndarray
    """bool ``[n]``, whether the game was cut off, usually by a time limit."""

    @property
    def done(self) -> np.ndarray:
        """Return whether each game is over, bool ``[n]``."""
        return self.terminated | self.truncated


@dataclass
class _Now:
    """State of ``n`` games, kept outside the environment: EnvBase takes 10 microseconds to set an attribute."""

    pixels: np.ndarray
    game_score: np.ndarray
    lives: np.ndarray
    decisions_since_seed: np.ndarray
    """float64 ``[n]``, infinite before the first seed."""


class GameEnv(EnvBase):
    """TorchRL environment of ``n`` parallel games, with the array interface :meth:`reset_games` and :meth:`step_games`.

    The TorchRL interface reads ``action`` int64 ``[n]`` and writes the fields of :class:`StepResult` and ``done``, all
    but pixels with shape ``[n, 1]``. A reset reads the mask ``_reset`` of the environments to reset.

    Args:
        vector: Vector environment with masked resets, built by :func:`atari_vector` or :func:`gymnasium_games`.
        seed: Seed from which the seeds of all games are drawn.
        decisions_per_seed: Minimum number of decisions between two seeds of an environment.
        watchdog: Terminates the process if an emulator hangs.
    """

    batch_locked = True

    def __init__(
        self,
        vector: gymnasium.vector.VectorEnv,
        seed: int,
        decisions_per_seed: int = 0,
        watchdog: Watchdog | None = None,
    ) -> None:
        num_envs = vector.num_envs
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self.vector = vector
        self.watchdog = watchdog
        self.num_actions = int(vector.single_action_space.n)  # type: ignore[attr-defined]
        self.frame_shape: tuple[int, ...] = tuple(vector.single_observation_space.shape or ())
        pixels = Unbounded((num_envs, *self.frame_shape), dtype=torch.uint8)
        score = UnboundedContinuous((num_envs, 1))
        flag = Binary(1, (num_envs, 1), dtype=torch.bool)
        self.observation_spec = Composite(pixels=pixels, game_score=score, life_lost=flag.clone(), shape=(num_envs,))
        self.action_spec = Categorical(self.num_actions, (num_envs,), dtype=torch.int64)
        self.reward_spec = UnboundedContinuous((num_envs, 1))
        self.done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=(num_envs,)
        )
        self._now = _Now(
            np.zeros((num_envs, *self.frame_shape), dtype=np.uint8),
            np.zeros(num_envs, dtype=np.float32),
            np.zeros(num_envs, dtype=np.int64),
            np.full(num_envs, np.inf),
        )
        self.decisions_per_seed = decisions_per_seed
        self.action_log = ActionLog(num_envs)
        self._is_restored = False
        self._set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        entropy = np.random.SeedSequence(seed)
        self._seed_streams = [np.random.default_rng(child) for child in entropy.spawn(self.batch_size[0])]
        self._now.decisions_since_seed = np.full(self.batch_size[0], np.inf)

    def reset_games(self, mask: np.ndarray, seeds: np.ndarray | None = None) -> np.ndarray:
        """Start new games.

        Args:
            mask: bool ``[n]``, the environments to reset.
            seeds: int64 ``[n]``; :data:`~a2d_lightning.rollouts.action_log.KEEP_RNG` keeps an environment's generator.
                If absent, seeds are drawn for environments that are due.

        Returns:
            Observations of all games, uint8 ``[n, *frame_shape]``.

        Raises:
            RunFailedError: If an environment fails.
        """
        now = self._now
        if seeds is None:
            due = mask & (now.decisions_since_seed >= self.decisions_per_seed)
            seeds = np.full(len(mask), KEEP_RNG)
            for i in np.flatnonzero(due):
                seeds[i] = self._seed_streams[i].integers(2**31)
        self.action_log.reset(mask, seeds)
        now.decisions_since_seed[mask & (seeds != KEEP_RNG)] = 0
        with self._emulating():
            pixels, info = _masked_reset(self.vector, seeds, mask)
        # output for environments that were not reset is unspecified
        now.pixels = now.pixels.copy()
        now.pixels[mask] = pixels[mask]
        now.game_score = np.where(mask, np.float32(0.0), now.game_score)
        if "lives" in info:
            now.lives = np.where(mask, info["lives"], now.lives)
        return now.pixels

    def step_games(self, actions: np.ndarray, frames: np.ndarray | None = None) -> StepResult:
        """Play one decision in each game.

        Args:
            actions: int ``[n]``.
            frames: uint8 ``[n, *frame_shape]``, receives a copy of the pixels.

        Returns:
            Result of the decision.

        Raises:
            ValueError: If an action is out of range.
            RunFailedError: If an environment fails or returns a reward that is not finite.
        """
        # an action out of range kills ale-py's worker thread, and the next call would block forever
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(f"action outside 0..{self.num_actions - 1}: {actions.tolist()}")
        with self._emulating():
            self._now.pixels, reward, terminated, truncated, info = self.vector.step(actions)
        if frames is not None:
            np.copyto(frames, self._now.pixels)
        self.action_log.step(actions)
        self._now.decisions_since_seed += 1
        rewards = reward.astype(np.float32)
        if not np.isfinite(rewards).all():
            self._refuse(rewards)
        self._now.game_score = self._now.game_score + rewards
        lives = np.array(info["lives"]) if "lives" in info else self._now.lives
        life_lost = lives < self._now.lives
        self._now.lives = lives
        ended, cut = terminated.astype(bool), truncated.astype(bool)
        return StepResult(self._now.pixels, rewards, self._now.game_score, life_lost, ended, cut)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        num_envs = self.batch_size[0]
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        mask = np.ones(num_envs, dtype=np.bool_) if chosen is None else chosen.reshape(num_envs).numpy()
        goes_on, self._is_restored = self._is_restored and bool(mask.all()), False
        if not goes_on:
            self.reset_games(mask)
        no = torch.zeros(num_envs, 1, dtype=torch.bool)
        return TensorDict(
            {
                "pixels": torch.from_numpy(self._now.pixels),
                "game_score": _column(self._now.game_score),
                "life_lost": no,
                "done": no.clone(),
                "terminated": no.clone(),
                "truncated": no.clone(),
            },
            self.batch_size,
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        decision = self.step_games(tensordict["action"].numpy())
        return TensorDict(
            {
                "pixels": torch.from_numpy(decision.pixels),
                "game_score": _column(decision.game_score),
                "life_lost": _column(decision.life_lost),
                "reward": _column(decision.reward),
                "done": _column(decision.done),
                "terminated": _column(decision.terminated),
                "truncated": _column(decision.truncated),
            },
            self.batch_size,
        )

    @contextmanager
    def _emulating(self) -> Iterator[None]:
        """Convert errors of the environments to a RunFailedError that names the environment; watch for hangs."""
        with self.watchdog or nullcontext():
            try:
                yield
            except SettingError:
                raise
            except Exception as error:
                raise RunFailedError(f"{self._what} failed: {type(error).__name__}: {error}") from error

    def _refuse(self, rewards: np.ndarray) -> NoReturn:
        """Raise a RunFailedError: clipping would hide a NaN (the sign is 0), a mean without such games is biased."""
        i = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise RunFailedError(
            f"{self._what} gave the reward {rewards[i]} in environment {i}, {self._now.decisions_since_seed[i]:.0f} "
            f"steps after its reset with seed {self.action_log.last_seed(i)}; rewards must be finite."
        )

    @property
    def _what(self) -> str:
        return self.watchdog.what if self.watchdog is not None else "an environment"

    def game_state(self) -> dict[str, Any]:
        """Return the state of the games for :meth:`restore_games`, as tensors, numbers and strings."""
        return {
            "journal": self.action_log.state_dict(),
            "seed_streams": [stream.bit_generator.state for stream in self._seed_streams],
        }

    def restore_games(self, state: dict[str, Any]) -> None:
        """Restore the games of an environment with the same settings by replaying its log.

        The next full reset returns the restored games instead of new ones.

        Args:
            state: Result of :meth:`game_state`. The replay takes seconds per thousand steps.

        Raises:
            ValueError, KeyError, TypeError: If ``state`` is malformed.
            RunFailedError: If an environment fails.
            Interrupted: If the process received a stop signal.
        """
        played = ActionLog.from_state_dict(state["journal"])
        if len(played.seeded_at) != self.batch_size[0]:
            raise ValueError(f"the state has {len(played.seeded_at)} games, not {self.batch_size[0]}")
        self.action_log = ActionLog(self.batch_size[0])
        self.action_log.first_step = played.first_step
        if isinstance(self.vector, AtariVectorEnv):  # ale-py requires a full reset before a masked one
            everything = np.ones(self.batch_size[0], dtype=np.bool_)
            _masked_reset(self.vector, np.full(self.batch_size[0], KEEP_RNG), everything)
        for event in played.events():
            INTERRUPTION.check()
            self._is_restored = True
            if isinstance(event, Reset):
                self.reset_games(event.mask, event.seeds)
            else:
                self.step_games(event)
        self.action_log = played
        for stream, saved in zip(self._seed_streams, state["seed_streams"], strict=True):
            stream.bit_generator.state = saved

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the emulators."""
        if not self.is_closed:
            if self.watchdog is not None:
                self.watchdog.close()
            self.vector.close()
        super().close(raise_if_closed=raise_if_closed)


def make_env(
    game: str,
    num_envs: int,
    frames: FrameSettings,
    seed: int,
    num_threads: int,
    noop_max: int,
    affinity_offset: int = -1,
    watchdog: Watchdog | None = None,
    wrappers: Sequence[WrapperSetting] = (),
    max_env_steps_per_game: int = MAX_ENV_STEPS_PER_GAME,
) -> GameEnv:
    """Build ``num_envs`` games of ``game``.

    Args:
        game: Atari name, or ``Id`` or ``module:Id`` of any Gymnasium environment with images and discrete actions.
        num_envs: Number of games.
        frames: Preprocessing of images.
        seed: Seed from which the seeds of all games are drawn.
        num_threads: Emulator threads (Atari only).
        noop_max: No-op actions at the start of a game are drawn from 0 to ``noop_max - 1`` (Atari only).
        affinity_offset: First core of the emulator threads, pinned one per core; -1 disables pinning (Atari only).
        watchdog: Terminates the process if an emulator hangs.
        wrappers: Wrappers around each Gymnasium environment, the first one innermost (not for Atari).
        max_env_steps_per_game: Step limit of a game, for Gymnasium environments without a time limit.

    Raises:
        SettingError: If the game is unknown, the environment has no images or no discrete actions, or wrappers are
            given for an Atari game.
    """
    if is_gymnasium_id(game):
        games = gymnasium_games(game, num_envs, frames, wrappers, max_env_steps_per_game)
        return GameEnv(games, seed, GYMNASIUM_DECISIONS_PER_SEED, watchdog)
    vector = atari_vector(game, num_envs, frames, num_threads, noop_max, affinity_offset)
    if wrappers:
        raise SettingError("data.wrappers: Atari games run in C++ and cannot use Gymnasium wrappers; remove it.")
    return GameEnv(vector, seed, ATARI_DECISIONS_PER_SEED, watchdog)


def _column(values: np.ndarray) -> torch.Tensor:
    """Reshape ``[n]`` to TorchRL's ``[n, 1]``."""
    return torch.from_numpy(values)[:, None]


def _masked_reset(vector: gymnasium.vector.VectorEnv, seeds: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, dict]:
    options = {"reset_mask": mask}
    if isinstance(vector, AtariVectorEnv):
        # ale-py takes seeds of masked environments only, and the first reset must be full and without a mask
        return vector.reset(seed=seeds[mask]) if mask.all() else vector.reset(seed=seeds[mask], options=options)
    return vector.reset(seed=seeds, options=options)  # type: ignore[arg-type]
