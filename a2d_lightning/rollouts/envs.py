"""Games as one TorchRL environment of batch ``[n]``, stepped by a vector environment (ale-py's C++ one for Atari).

The state of an Atari environment is (seed, actions and resets since), so that a run can be replayed. A seeded reset
loads the game anew and takes twenty times as long as one that only goes on, so that an environment gets a new seed,
drawn from ``(seed, environment, number of the draw)``, with the first game that begins
:data:`ATARI_DECISIONS_PER_SEED` decisions after the last.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded, UnboundedContinuous
from torchrl.envs import EnvBase

from a2d_lightning.cpu.openmp_threads import ParkedThreads
from a2d_lightning.rollouts.action_log import KEEP_RNG, ActionLog, Reset
from a2d_lightning.rollouts.games import MAX_ENV_STEPS_PER_GAME, FrameSettings, atari_rom, is_gymnasium_id
from a2d_lightning.rollouts.gymnasium_games import WrapperSetting, gymnasium_games
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.signals import INTERRUPTION
from a2d_lightning.runtime.watchdog import Watchdog

ATARI_FRAMES_PER_GAME = 108_000
"""30 minutes at 60 frames a second, the usual cap; a game that reaches it is truncated, not terminated."""

ATARI_DECISIONS_PER_SEED = 4_000
"""So seeded resets cost a few percent of the emulation, and what must be replayed of an environment takes seconds."""


GYMNASIUM_DECISIONS_PER_SEED = 500
"""A seeded reset of a cheap game takes as long as 30 of its steps, and this many are replayed in seconds."""

ATARI_IMAGE = (210, 160)
"""Height and width of the emulator's own image, pixels."""


@dataclass(frozen=True)
class StepResult:
    """What one decision of ``n`` games led to."""

    pixels: np.ndarray
    """uint8 ``[n, *frame_shape]``; where a game ended, its true last observation."""
    reward: np.ndarray
    """float32 ``[n]``, raw."""
    game_score: np.ndarray
    """float32 ``[n]``, the sum of raw rewards since the game began; where it ended, the game's score."""
    life_lost: np.ndarray
    """bool ``[n]``."""
    terminated: np.ndarray
    """bool ``[n]``, of the game."""
    truncated: np.ndarray
    """bool ``[n]``, of the game."""

    @property
    def done(self) -> np.ndarray:
        """Where a game is over, bool ``[n]``."""
        return self.terminated | self.truncated


@dataclass
class _Now:
    """State of ``n`` games. Apart from the environment, whose base class takes 10 microseconds to set an attribute."""

    pixels: np.ndarray
    game_score: np.ndarray
    lives: np.ndarray
    decisions_since_seed: np.ndarray
    """float64 ``[n]``, infinite before the first seed."""


class GameEnv(EnvBase):
    """``n`` games side by side: :meth:`begin` and :meth:`play` on arrays, and the same as a TorchRL environment.

    As such it reads ``action`` int64 ``[n]`` and writes :class:`StepResult`'s fields and ``done``, all but pixels
    ``[n, 1]``. A reset reads ``_reset`` (which environments).

    Args:
        vector: a vector environment with masked resets, made by :func:`atari_vector` or :func:`gymnasium_games`.
        seed: fixes the seeds of all games to come.
        decisions_per_seed: a game that begins seeds an environment that has made as many decisions since its last seed.
        watchdog: ends the process when an emulator hangs.
        parked: makes room for the emulators while they work.
    """

    batch_locked = True

    def __init__(
        self,
        vector: gymnasium.vector.VectorEnv,
        seed: int,
        decisions_per_seed: int = 0,
        watchdog: Watchdog | None = None,
        parked: ParkedThreads | None = None,
    ) -> None:
        num_envs = vector.num_envs
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self.vector = vector
        self.watchdog = watchdog
        self.parked = parked
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
        """Begins new games.

        Args:
            mask: bool ``[n]``, where.
            seeds: int64 ``[n]``, of these games; if absent, drawn where they are due.

        Returns:
            what all games show now, uint8 ``[n, *frame_shape]``.
        """
        now = self._now
        if seeds is None:
            due = mask & (now.decisions_since_seed >= self.decisions_per_seed)
            seeds = np.full(len(mask), KEEP_RNG)
            for i in np.flatnonzero(due):
                seeds[i] = self._seed_streams[i].integers(2**31)
        self.action_log.reset(mask, seeds)
        now.decisions_since_seed[mask & (seeds != KEEP_RNG)] = 0
        with self.parked or nullcontext(), self._emulating():
            pixels, info = _masked_reset(self.vector, seeds, mask)
        # of the others a vector environment need not report anything that holds
        now.pixels = now.pixels.copy()
        now.pixels[mask] = pixels[mask]
        now.game_score = np.where(mask, np.float32(0.0), now.game_score)
        if "lives" in info:
            now.lives = np.where(mask, info["lives"], now.lives)
        return now.pixels

    def step_games(self, actions: np.ndarray, frames: np.ndarray | None = None) -> StepResult:
        """Plays one decision of each game.

        Args:
            actions: int ``[n]``.
            frames: gets a copy of the decision's pixels.

        Raises:
            ValueError: there is no such action.
            RunFailedError: an environment failed.
        """
        # an action out of range kills ale-py's worker thread and the next call waits for ever
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(f"action outside 0..{self.num_actions - 1}: {actions.tolist()}")
        with self.parked or nullcontext():
            with self._emulating():
                self._now.pixels, reward, terminated, truncated, info = self.vector.step(actions)
            if self.parked is not None:
                self.parked.wake()
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
        """An environment that fails or hangs ends the run with a line that names it."""
        with self.watchdog or nullcontext():
            try:
                yield
            except SettingError:
                raise
            except Exception as error:
                raise RunFailedError(f"{self._what} failed: {type(error).__name__}: {error}") from error

    def _refuse(self, rewards: np.ndarray) -> NoReturn:
        """End the run: sign(NaN) is 0, and a mean that leaves such games out is no score."""
        i = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise RunFailedError(
            f"{self._what} gave the reward {rewards[i]} in environment {i}, {self._now.decisions_since_seed[i]:.0f} "
            f"steps after its reset with seed {self.action_log.last_seed(i)}; rewards must be finite."
        )

    @property
    def _what(self) -> str:
        return self.watchdog.what if self.watchdog is not None else "an environment"

    def game_state(self) -> dict[str, Any]:
        """Where the games are, as tensors, numbers and strings: what :meth:`restore_games` plays again."""
        return {
            "journal": self.action_log.state_dict(),
            "seed_streams": [stream.bit_generator.state for stream in self._seed_streams],
        }

    def restore_games(self, state: dict[str, Any]) -> None:
        """Brings the games to where another environment of the same settings was; the next reset begins there.

        Args:
            state: of :meth:`game_state`. Its actions are played again: seconds for each thousand steps.

        Raises:
            ValueError, KeyError, TypeError: it is no such state.
        """
        played = ActionLog.from_state_dict(state["journal"])
        if len(played.seeded_at) != self.batch_size[0]:
            raise ValueError(f"they are {len(played.seeded_at)} games, not {self.batch_size[0]}")
        self.action_log = ActionLog(self.batch_size[0])
        self.action_log.first_step = played.first_step
        if isinstance(self.vector, AtariVectorEnv):  # ale-py needs a full reset before a masked one
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
        """Ends the emulators."""
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
    parked: ParkedThreads | None = None,
    wrappers: Sequence[WrapperSetting] = (),
    max_env_steps_per_game: int = MAX_ENV_STEPS_PER_GAME,
) -> GameEnv:
    """Build ``num_envs`` games of ``game``.

    Args:
        game: an Atari name, or ``Id`` or ``module:Id`` of any Gymnasium environment with images and discrete actions.
        num_envs: games.
        frames: preprocessing of images.
        seed: fixes the seeds of all games to come.
        num_threads: emulator threads (Atari).
        noop_max: null operations at a game's start, 0 to ``noop_max - 1`` (Atari).
        affinity_offset: of the emulator threads' cores; -1 leaves them to the system.
        watchdog: ends the process when an emulator hangs.
        parked: makes room for the emulators while they work.
        wrappers: around each Gymnasium environment, the first one innermost.
        max_env_steps_per_game: the cap of Gymnasium environments without a limit of their own.

    Raises:
        SettingError: an unknown game, or an environment without images or discrete actions.
    """
    if is_gymnasium_id(game):
        games = gymnasium_games(game, num_envs, frames, wrappers, max_env_steps_per_game)
        return GameEnv(games, seed, GYMNASIUM_DECISIONS_PER_SEED, watchdog)
    vector = atari_vector(game, num_envs, frames, num_threads, noop_max, affinity_offset)
    if wrappers:
        raise SettingError("data.wrappers: Atari games run in C++, outside of Gymnasium's wrappers; leave it out.")
    return GameEnv(vector, seed, ATARI_DECISIONS_PER_SEED, watchdog, parked)


class ColorAtari(AtariVectorEnv):
    """ale-py's vector environment with observations ``[n, stack * 3, h, w]``."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        stack, height, width, colors = cast(tuple[int, ...], self.single_observation_space.shape)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (stack * colors, height, width), np.uint8)

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """Begin new games."""
        pixels, info = super().reset(**settings)
        return self._channels_first(cast(np.ndarray, pixels)), info

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all games."""
        pixels, rewards, terminated, truncated, info = super().step(actions)
        return self._channels_first(pixels), rewards, terminated, truncated, info

    def _channels_first(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.transpose(0, 1, 4, 2, 3).reshape(len(pixels), *cast(Any, self.single_observation_space).shape)


def atari_vector(
    game: str, num_envs: int, frames: FrameSettings, num_threads: int, noop_max: int, affinity_offset: int = -1
) -> AtariVectorEnv:
    """ale-py's C++ vector environment with the usual preprocessing: skip, max of two frames, gray, null-op starts.

    Its threads stay on the cores from ``affinity_offset`` on, one each; where the system sees fit if that is -1.

    A lost life neither resets the game nor ends it here (ale-py's ``episodic_life`` would reset it, and
    ``life_loss_info`` marks it as its end); :class:`GameEnv` reports it from the drop in lives.
    """
    if frames.channels is not None or frames.image_key is not None:
        raise SettingError("data.frames: Atari games have one image; leave channels and image_key out.")
    height, width = ATARI_IMAGE if frames.size is None else (frames.size, frames.size)
    return (AtariVectorEnv if frames.gray else ColorAtari)(
        atari_rom(game),
        num_envs,
        num_threads=num_threads,
        thread_affinity_offset=affinity_offset,
        max_num_frames_per_episode=ATARI_FRAMES_PER_GAME,
        repeat_action_probability=frames.sticky_action_probability,
        img_height=height,
        img_width=width,
        grayscale=frames.gray,
        stack_num=frames.stack,
        frameskip=frames.skip,
        noop_max=noop_max,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
    )


def _column(values: np.ndarray) -> torch.Tensor:
    """``[n]`` to ``[n, 1]``, as TorchRL has it."""
    return torch.from_numpy(values)[:, None]


def _masked_reset(vector: gymnasium.vector.VectorEnv, seeds: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, dict]:
    options = {"reset_mask": mask}
    if isinstance(vector, AtariVectorEnv):
        # ale-py asks for the seeds of the masked environments only, and for a full reset without a mask at first
        return vector.reset(seed=seeds[mask]) if mask.all() else vector.reset(seed=seeds[mask], options=options)
    return vector.reset(seed=seeds, options=options)  # type: ignore[arg-type]
