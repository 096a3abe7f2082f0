"""ale-py's C++ vector environment, with the usual preprocessing of Atari games."""

from typing import Any, cast

import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from a2d_lightning.rollouts.games import FrameSettings, atari_rom
from a2d_lightning.runtime.errors import SettingError

ATARI_FRAMES_PER_GAME = 108_000
"""Usual limit of 30 minutes at 60 frames per second; a game that reaches the limit is truncated, not terminated."""

ATARI_IMAGE = (210, 160)
"""Height and width of the emulator's image, pixels."""


class ColorAtari(AtariVectorEnv):
    """Vector environment of ale-py with RGB observations uint8 ``[n, stack * 3, h, w]``."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        stack, height, width, colors = cast(tuple[int, ...], self.single_observation_space.shape)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (stack * colors, height, width), np.uint8)

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """Start new games."""
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
    """Build ale-py's C++ vector environment with the usual preprocessing.

    Preprocessing is frame skip, maximum of two frames, grayscale and no-op starts.

    A lost life neither resets nor ends the game: ale-py's ``episodic_life`` (resets) and ``life_loss_info`` (reports an
    end) are off. :class:`GameEnv` derives lost lives from the drop in lives.

    Args:
        game: Atari name.
        num_envs: Number of games.
        frames: Preprocessing of images.
        num_threads: Emulator threads.
        noop_max: No-op actions at the start of a game are drawn from 0 to ``noop_max - 1``.
        affinity_offset: First core of the threads, pinned one per core; -1 disables pinning.

    Raises:
        SettingError: If the game is unknown, or ``frames`` sets ``channels`` or ``image_key``.
    """
    if frames.channels is not None or frames.image_key is not None:
        raise SettingError("data.frames: Atari games have one image; remove channels and image_key.")
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
