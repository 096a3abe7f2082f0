"""Games as one TorchRL environment of batch ``[n]``, stepped by a vector environment (ale-py's C++ one for Atari).

The state of an Atari environment is (seed, actions and resets since), so that a run can be replayed. A seeded reset
loads the game anew and takes twenty times as long as one that only goes on, so that an environment gets a new seed,
drawn from ``(seed, environment, number of the draw)``, with the first game that begins
:data:`ATARI_DECISIONS_PER_SEED` decisions after the last.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded, UnboundedContinuous
from torchrl.envs import EnvBase

from a2d_lightning.errors import RunFailedError, SettingError
from a2d_lightning.games import atari_rom
from a2d_lightning.interruption import INTERRUPTION
from a2d_lightning.journal import GO_ON, Journal, Reset
from a2d_lightning.watchdog import Watchdog

ATARI_FRAMES_PER_GAME = 108_000
"""30 minutes at 60 frames a second, the usual cap; a game that reaches it is truncated, not terminated."""

ATARI_DECISIONS_PER_SEED = 4_000
"""So seeded resets cost a few percent of the emulation, and what must be replayed of an environment takes seconds."""


@dataclass(frozen=True)
class FrameSettings:
    """How the emulator's pictures become observations ``uint8 [stack, size, size]``."""

    size: int = 84
    stack: int = 4
    skip: int = 4
    sticky_action_probability: float = 0.0
    """Probability that the emulator repeats the last action (Atari only)."""


class GameEnv(EnvBase):
    """``n`` games side by side as a TorchRL environment.

    Reads ``action`` int64 ``[n]``. Writes ``pixels`` uint8 ``[n, stack, size, size]``, and per step ``reward`` (raw,
    float32 ``[n, 1]``), ``terminated`` / ``truncated`` / ``done`` (of the game), ``life_lost``, and ``game_score``
    (the sum of raw rewards since the game began; where ``done``, the game's score). The observation of a step that
    ends a game is that game's true last one. A reset reads ``_reset`` (which environments) and, where given,
    ``game_seed`` int64 ``[n]``.

    Args:
        vector: a vector environment with masked resets, made by :func:`atari_vector` or :func:`gymnasium_vector`.
        seed: fixes the seeds of all games to come.
        decisions_per_seed: a reset seeds an environment that has made as many decisions since it was seeded.
        watchdog: ends the process when an emulator hangs.
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
        self._game_score = torch.zeros(num_envs, 1)
        self._lives = np.zeros(num_envs, dtype=np.int64)
        self.decisions_per_seed = decisions_per_seed
        self.journal = Journal(num_envs)
        self._restored: TensorDictBase | None = None
        self._set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        entropy = np.random.SeedSequence(seed)
        self._seed_streams = [np.random.default_rng(child) for child in entropy.spawn(self.batch_size[0])]
        self._decisions_since_seed = np.full(self.batch_size[0], np.inf)  # never

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        num_envs = self.batch_size[0]
        mask = np.ones(num_envs, dtype=np.bool_)
        seeds = None
        if tensordict is not None:
            if (chosen := tensordict.get("_reset", None)) is not None:
                mask = chosen.reshape(num_envs).numpy()
            seeds = tensordict.get("game_seed", None)
        if self._restored is not None:
            restored, self._restored = self._restored, None
            if mask.all() and seeds is None:
                return restored
        if seeds is None:
            due = mask & (self._decisions_since_seed >= self.decisions_per_seed)
            streams = zip(self._seed_streams, due, strict=True)
            return self._begin(mask, np.array([stream.integers(2**31) if now else GO_ON for stream, now in streams]))
        return self._begin(mask, seeds.numpy())

    def _begin(self, mask: np.ndarray, seeds: np.ndarray) -> TensorDictBase:
        """New games in the environments of ``mask``."""
        num_envs = self.batch_size[0]
        self.journal.reset(mask, seeds)
        self._decisions_since_seed[mask & (seeds != GO_ON)] = 0
        with self._emulating():
            pixels, info = _masked_reset(self.vector, seeds, mask)
        index = torch.from_numpy(mask)
        self._game_score = self._game_score.masked_fill(index[:, None], 0.0)
        if "lives" in info:
            # of the others Gymnasium reports 0 here
            self._lives = np.where(mask, info["lives"], self._lives)
        no = torch.zeros(num_envs, 1, dtype=torch.bool)
        return TensorDict(
            {
                "pixels": torch.from_numpy(pixels),
                "game_score": self._game_score,
                "life_lost": no,
                "done": no.clone(),
                "terminated": no.clone(),
                "truncated": no.clone(),
            },
            self.batch_size,
            device=self.device,  # without one the collector would look through each step's tensors
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].numpy()
        # an action out of range kills ale-py's worker thread and the next call waits for ever
        if action.min() < 0 or action.max() >= self.num_actions:
            raise ValueError(f"action outside 0..{self.num_actions - 1}: {action.tolist()}")
        with self._emulating():
            pixels, reward, terminated, truncated, info = self.vector.step(action)
        self.journal.step(action)
        self._decisions_since_seed += 1
        rewards = torch.from_numpy(reward).float()[:, None]
        self._game_score = self._game_score + rewards
        lives = np.array(info["lives"]) if "lives" in info else self._lives
        life_lost = torch.from_numpy(lives < self._lives)[:, None]
        self._lives = lives
        over = torch.from_numpy(terminated.copy())[:, None]
        cut = torch.from_numpy(truncated.copy())[:, None]
        return TensorDict(
            {
                "pixels": torch.from_numpy(pixels),
                "game_score": self._game_score,
                "life_lost": life_lost,
                "reward": rewards,
                "done": over | cut,
                "terminated": over,
                "truncated": cut,
            },
            self.batch_size,
            device=self.device,
        )

    @contextmanager
    def _emulating(self) -> Iterator[None]:
        """An environment that fails or hangs ends the run with a line that names it."""
        what = self.watchdog.what if self.watchdog is not None else "an environment"
        with self.watchdog or nullcontext():
            try:
                yield
            except Exception as error:
                raise RunFailedError(f"{what} failed: {type(error).__name__}: {error}") from error

    def _step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """EnvBase's own does the same with checks that cost a few percent of the emulation."""
        after = self._step(tensordict)
        onwards = tensordict.exclude("next")
        tensordict.set("next", after)
        now = after.exclude("reward")
        ended = after["done"]
        if ended.any():
            now = self._reset(TensorDict({"_reset": ended}, self.batch_size)).where(ended[:, 0], now)
        return tensordict, onwards.update(now)

    def game_state(self) -> dict[str, Any]:
        """Where the games are, as tensors, numbers and strings: what :meth:`restore_games` plays again."""
        return {
            "journal": self.journal.state_dict(),
            "seed_streams": [stream.bit_generator.state for stream in self._seed_streams],
        }

    def restore_games(self, state: dict[str, Any]) -> None:
        """Brings the games to where another environment of the same settings was; the next reset begins there.

        Args:
            state: of :meth:`game_state`. Its actions are played again: seconds for each thousand steps.

        Raises:
            ValueError, KeyError, TypeError: it is no such state.
        """
        played = Journal.from_state_dict(state["journal"])
        if len(played.seeded_at) != self.batch_size[0]:
            raise ValueError(f"they are {len(played.seeded_at)} games, not {self.batch_size[0]}")
        self.journal = Journal(self.batch_size[0])
        self.journal.first_step = played.first_step
        everything = np.ones(self.batch_size[0], dtype=np.bool_)
        _masked_reset(self.vector, np.full(self.batch_size[0], GO_ON), everything)  # ale-py asks for a full one first
        now = None
        for event in played.events():
            INTERRUPTION.check()
            if isinstance(event, Reset):
                now = self._begin(event.mask, event.seeds)
            else:
                now = self._step(TensorDict({"action": torch.from_numpy(event)}, self.batch_size))
        self.journal = played
        self._restored = None if now is None else now.exclude("reward")
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
    watchdog: Watchdog | None = None,
) -> GameEnv:
    """``num_envs`` games of ``game``: an Atari name, or the id of any Gymnasium environment with images and discrete
    actions, written with its version and no ``ALE/`` (``CarRacing-v3``).

    Raises:
        SettingError: an unknown game, or an environment without images or discrete actions.
    """
    if is_gymnasium_id(game):
        return GameEnv(gymnasium_vector(game, num_envs, frames), seed, watchdog=watchdog)
    vector = atari_vector(game, num_envs, frames, num_threads, noop_max)
    return GameEnv(vector, seed, ATARI_DECISIONS_PER_SEED, watchdog)


def is_gymnasium_id(game: str) -> bool:
    """Whether ``game`` names a registered Gymnasium environment that is not an Atari game."""
    return (
        not game.startswith("ALE/")
        and game in gymnasium.registry
        and "ale_py" not in str(gymnasium.registry[game].entry_point)
    )


def canonical_game(game: str) -> str:
    """One spelling for each game, so that teachers, architectures and runs can be compared."""
    return game if is_gymnasium_id(game) else atari_rom(game)


def atari_vector(game: str, num_envs: int, frames: FrameSettings, num_threads: int, noop_max: int) -> AtariVectorEnv:
    """ale-py's C++ vector environment with the usual preprocessing: skip, max of two frames, gray, null-op starts.

    A lost life neither resets the game nor ends it here (ale-py's ``episodic_life`` would reset it, and
    ``life_loss_info`` marks it as its end); :class:`GameEnv` reports it from the drop in lives.
    """
    return AtariVectorEnv(
        atari_rom(game),
        num_envs,
        num_threads=num_threads,
        max_num_frames_per_episode=ATARI_FRAMES_PER_GAME,
        repeat_action_probability=frames.sticky_action_probability,
        img_height=frames.size,
        img_width=frames.size,
        stack_num=frames.stack,
        frameskip=frames.skip,
        noop_max=noop_max,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
    )


class SkipFrames(gymnasium.Wrapper):
    """Repeats each action ``skip`` times and observes the maximum of the last two frames that were really shown.

    Gymnasium's MaxAndSkipObservation shows frames of the decision before where a game ends inside a skip.
    """

    def __init__(self, env: gymnasium.Env, skip: int) -> None:
        super().__init__(env)
        self.skip = skip

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One decision."""
        shown, rewards = [], []
        for _ in range(self.skip):
            frame, reward, terminated, truncated, info = self.env.step(action)
            shown.append(frame)
            rewards.append(float(reward))
            if terminated or truncated:
                break
        return np.max(shown[-2:], axis=0), sum(rewards), terminated, truncated, info


# Environments whose actions are continuous unless asked.
_DISCRETE_OPTION: dict[str, dict[str, Any]] = {"CarRacing": {"continuous": False}}


def gymnasium_vector(game: str, num_envs: int, frames: FrameSettings) -> gymnasium.vector.SyncVectorEnv:
    """Any Gymnasium environment with images ``[h, w, 3]`` and discrete actions, with the same preprocessing.

    Raises:
        SettingError: the environment has no images, or its actions are not discrete.
    """
    options = _DISCRETE_OPTION.get(game.rpartition("-v")[0].rpartition("/")[2], {})

    def make() -> gymnasium.Env:
        env = gymnasium.make(game, **options)
        if not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise SettingError(f"data.game: {game} has actions {env.action_space}; a2d needs discrete ones.")
        shape = env.observation_space.shape
        if shape is None or len(shape) != 3 or shape[-1] != 3:
            raise SettingError(f"data.game: {game} observes {env.observation_space}; a2d needs images [h, w, 3].")
        if frames.skip > 1:
            env = SkipFrames(env, frames.skip)
        env = gymnasium.wrappers.GrayscaleObservation(env)
        env = gymnasium.wrappers.ResizeObservation(env, (frames.size, frames.size))
        return gymnasium.wrappers.FrameStackObservation(env, frames.stack)

    makers: list[Callable[[], gymnasium.Env]] = [make] * num_envs
    return gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)


def _masked_reset(vector: gymnasium.vector.VectorEnv, seeds: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, dict]:
    options = {"reset_mask": mask}
    if isinstance(vector, AtariVectorEnv):
        # ale-py asks for the seeds of the masked environments only, and for a full reset without a mask at first
        return vector.reset(seed=seeds[mask]) if mask.all() else vector.reset(seed=seeds[mask], options=options)
    own = [None if seed == GO_ON else int(seed) for seed in seeds]
    return vector.reset(seed=own, options=options)  # type: ignore[arg-type]
