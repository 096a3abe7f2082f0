"""Vector environment for any Gymnasium environments with images.

It replaces Gymnasium's SyncVectorEnv, which with wrappers for gray, resized and stacked frames takes several times as
long as a cheap game, and which cannot step finished games, as the replay of a run requires.
"""

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from a2d_lightning.rollouts.action_log import KEEP_RNG
from a2d_lightning.rollouts.games import FrameSettings, import_game
from a2d_lightning.rollouts.image_format import image_format
from a2d_lightning.runtime.errors import SettingError

Step = Callable[[Any], tuple[Any, Any, bool, bool, dict[str, Any]]]
"""Function from an action to observation, reward, terminated, truncated and info, as in Gymnasium."""

WrapperSetting = str | dict[str, Any]
"""Gymnasium wrapper: a class path, or a dict of ``class_path`` and ``init_args``."""

# options of environments whose actions are continuous by default
_DISCRETE_OPTION: dict[str, dict[str, Any]] = {"CarRacing": {"continuous": False}}


class GymnasiumGames(gymnasium.vector.VectorEnv):
    """Vector environment with observations uint8 ``[num_envs, stack * channels, h, w]``, the newest frame last.

    Steps do not change a finished game: its observation stays the same until the next reset, and its reward is 0.

    Args:
        make: Builds one environment.
        game: Name of the environment, for error messages.
        num_envs: Number of environments.
        frames: Preprocessing of images.
        max_env_steps_per_game: Steps after which a game is truncated, unless the environment has a time limit.

    Raises:
        SettingError: If the environment has no images or no discrete actions.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        game: str,
        num_envs: int,
        frames: FrameSettings,
        max_env_steps_per_game: int,
    ) -> None:
        self.envs = [make() for _ in range(num_envs)]
        self.num_envs = num_envs
        actions, observations = self.envs[0].action_space, self.envs[0].observation_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise SettingError(
                f"data.game: {game} has actions {actions}; a2d needs discrete ones. data.wrappers can convert actions."
            )
        self.first_action = int(actions.start)
        self.game = game
        self.format = image_format(game, observations, frames)
        channels, height, width = self.format.frame_shape
        self.channels = channels
        self.single_action_space = gymnasium.spaces.Discrete(int(actions.n))
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (frames.stack * channels, height, width), np.uint8)
        spec = self.envs[0].spec
        self.max_steps = None if spec is not None and spec.max_episode_steps else max_env_steps_per_game
        self._images = np.zeros((num_envs, *self.format.space.shape), self.format.space.dtype)
        self._observations = np.zeros((num_envs, *self.single_observation_space.shape), np.uint8)
        self._step_game = [_step_of(env, self.format.key, frames.skip) for env in self.envs]
        self._over = np.ones(num_envs, dtype=np.bool_)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._lives: np.ndarray | None = None
        self._is_checked = False

    def reset(  # type: ignore[override]
        self, *, seed: np.ndarray, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new games.

        Args:
            seed: int64 ``[num_envs]``; :data:`~a2d_lightning.rollouts.action_log.KEEP_RNG` keeps an environment's
                random generator.
            options: ``reset_mask``, bool ``[num_envs]``, the environments to reset; all if ``options`` is absent.

        Returns:
            Observations uint8 ``[num_envs, stack * channels, h, w]`` and infos of all environments.

        Raises:
            SettingError: If the first image does not match the observation space.
        """
        mask = np.ones(self.num_envs, dtype=np.bool_) if options is None else options["reset_mask"]
        for i in np.flatnonzero(mask).tolist():
            observation, info = self.envs[i].reset(seed=None if seed[i] == KEEP_RNG else int(seed[i]))
            image = observation if self.format.key is None else observation[self.format.key]
            if not self._is_checked:
                self.format.check(self.game, image)
            self._images[i] = image
            if self._lives is not None:
                self._lives[i] = 0  # until the new game reports its lives
            self._note_lives(i, info)
        self._is_checked = True
        self._over[mask] = False
        self._steps[mask] = 0
        stacked = self._observations.copy()
        stacked[mask] = np.tile(self.format.frames(self._images[mask]), (1, self._num_frames, 1, 1))
        self._observations = stacked
        return stacked, self._infos()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the games that are not over.

        Args:
            actions: int ``[num_envs]``, from 0.

        Returns:
            Observations uint8 ``[num_envs, stack * channels, h, w]``, rewards float64 ``[num_envs]``, terminated and
            truncated bool ``[num_envs]`` (False for games that were over already), and infos.
        """
        reward, ended, cut = [0.0] * self.num_envs, [False] * self.num_envs, [False] * self.num_envs
        images, step_game, playing = self._images, self._step_game, ~self._over
        env_actions = (actions + self.first_action).tolist()
        for i in np.flatnonzero(playing).tolist():
            images[i], reward[i], ended[i], cut[i], info = step_game[i](env_actions[i])
            if info:
                self._note_lives(i, info)
        # fixed dtypes, whatever the environments return; fromiter rejects arrays as rewards
        rewards = np.fromiter(reward, np.float64, self.num_envs)
        terminated, truncated = np.array(ended, dtype=np.bool_), np.array(cut, dtype=np.bool_)
        self._steps += 1
        if self.max_steps is not None:
            truncated |= (self._steps >= self.max_steps) & playing & ~terminated
        self._observations = self._with_new_frames(playing)
        self._over |= terminated | truncated
        return self._observations, rewards, terminated, truncated, self._infos()

    @property
    def _num_frames(self) -> int:
        return self._observations.shape[1] // self.channels

    def _with_new_frames(self, stepped: np.ndarray) -> np.ndarray:
        """Return new observations: those of stepped games are shifted by one frame."""
        frames = self.format.frames(self._images)
        if self._num_frames == 1:
            shifted = frames.copy()  # in C order; frames may be a transposed view
        else:
            shifted = np.concatenate([self._observations[:, self.channels :], frames], axis=1)
        if not stepped.all():
            shifted[~stepped] = self._observations[~stepped]
        return shifted

    def _note_lives(self, i: int, info: Mapping[str, Any]) -> None:
        if "lives" in info:
            if self._lives is None:
                self._lives = np.zeros(self.num_envs, dtype=np.int64)
            self._lives[i] = info["lives"]

    def _infos(self) -> dict[str, Any]:
        return {} if self._lives is None else {"lives": self._lives.copy()}

    def close(self, **_: Any) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()
        self.closed = True


def _step_of(env: gymnasium.Env, key: str | None, skip: int) -> Step:
    """Return the function that plays one decision and returns the image as observation."""
    # each wrapper that only forwards steps costs a tenth of a cheap step
    while getattr(env.step, "__func__", None) is gymnasium.Wrapper.step and isinstance(env, gymnasium.Wrapper):
        env = env.env
    step = env.step if key is None else _image_of(env.step, key)
    return step if skip == 1 else _skipping(step, skip)


def _image_of(step: Step, key: str) -> Step:
    def step_image(action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = step(action)
        return observation[key], *rest

    return step_image


def _skipping(step: Step, skip: int) -> Step:
    """Repeat each action, and return the maximum of the last two images of the decision.

    Gymnasium's MaxAndSkipObservation is not used: it returns an image of the previous decision if a game ends within a
    skip.
    """

    def step_skipping(action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        total, shown = 0.0, []
        for _ in range(skip):
            image, reward, terminated, truncated, info = step(action)
            shown.append(np.array(image))  # a copy: an environment may reuse the memory
            total += float(reward)
            if terminated or truncated:
                break
        return np.max(shown[-2:], axis=0), total, terminated, truncated, info

    return step_skipping


def gymnasium_games(
    game: str,
    num_envs: int,
    frames: FrameSettings,
    wrappers: Sequence[WrapperSetting],
    max_env_steps_per_game: int,
) -> GymnasiumGames:
    """Build a vector environment from a Gymnasium id.

    Args:
        game: ``Id`` or ``module:Id``.
        num_envs: Number of environments.
        frames: Preprocessing of images.
        wrappers: Wrappers around each environment, the first one innermost.
        max_env_steps_per_game: Steps after which a game is truncated, unless the environment has a time limit.

    Raises:
        SettingError: If the environment or a wrapper cannot be built, or the environment has no images or no discrete
            actions.
    """
    env_id = import_game(game)
    options = _DISCRETE_OPTION.get(env_id.rpartition("-v")[0], {})
    spec = copy.deepcopy(gymnasium.spec(env_id))
    spec.order_enforce = False  # GymnasiumGames always resets first, and the check costs a tenth of a cheap step
    layers = [_wrapper(setting) for setting in wrappers]

    def make() -> gymnasium.Env:
        try:
            env = gymnasium.make(spec, disable_env_checker=True, **options)
        except Exception as error:  # a constructor can raise anything
            raise SettingError(
                f"data.game: {game} cannot be created ({type(error).__name__}: {error}); correct the environment or "
                "choose another."
            ) from error
        for class_path, wrap in layers:
            try:
                env = wrap(env)
            except Exception as error:
                raise SettingError(f"data.wrappers: {class_path} cannot wrap {game} ({error}).") from error
            if not isinstance(env, gymnasium.Env):
                raise SettingError(
                    f"data.wrappers: {class_path} returns {type(env).__name__}, not an environment; use a subclass of "
                    "gymnasium.Wrapper."
                )
        return env

    return GymnasiumGames(make, game, num_envs, frames, max_env_steps_per_game)


def _wrapper(setting: WrapperSetting) -> tuple[str, Callable[[gymnasium.Env], gymnasium.Env]]:
    described: dict[str, Any] = {"class_path": setting} if isinstance(setting, str) else setting
    class_path, init_args = described.get("class_path"), described.get("init_args") or {}
    if not isinstance(class_path, str) or set(described) - {"class_path", "init_args"}:
        raise SettingError(
            f"data.wrappers: {setting!r} is not a class path or a dict of class_path and init_args; write "
            "{class_path: package.Wrapper, init_args: {...}}."
        )
    module, _, name = class_path.rpartition(".")
    try:
        wrapper = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module can raise anything
        raise SettingError(
            f"data.wrappers: {class_path} cannot be imported ({type(error).__name__}: {error}); write package.Wrapper."
        ) from error
    return class_path, lambda env: wrapper(env, **init_args)
