"""Games by name, what a person writes and what ale-py calls it, and how their pictures become observations."""

import difflib
import functools
import importlib
import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

import gymnasium
from ale_py import roms

from a2d_lightning.runtime.errors import SettingError

MAX_ENV_STEPS_PER_GAME = 27_000
"""Atari's cap of 108,000 frames in decisions of four, for games of others without a limit."""


@dataclass(frozen=True)
class FrameSettings:
    """Preprocessing of images to observations ``uint8 [stack * channels, height, width]``.

    ``gray: false`` keeps all channels, ``size: null`` the image's height and width, ``skip: 1`` every step and
    ``stack: 1`` the newest frame alone.
    """

    size: int | None = 84
    """Height and width, pixels."""
    stack: int = 4
    """Frames in an observation, the newest one last."""
    skip: int = 4
    """Steps of the emulator in a decision, all with one action."""
    sticky_action_probability: float = 0.0
    """Probability that the emulator repeats the last action (Atari only)."""
    gray: bool = True
    """Replace red, green and blue by their luminance."""
    channels: Literal["first", "last"] | None = None
    """Where images ``[c, h, w]`` or ``[h, w, c]`` have their channels; if absent, by their shape (not for Atari)."""
    image_key: str | None = None
    """The image's name in a Dict of observations; not needed for the only image (not for Atari)."""


@functools.cache
def atari_games() -> tuple[str, ...]:
    """Every game that ale-py ships, in its own spelling (``space_invaders``)."""
    return tuple(sorted(roms.get_all_rom_ids()))


def atari_rom(game: str) -> str:
    """The ale-py name of ``game``: ``SpaceInvaders``, ``space_invaders`` and ``ALE/SpaceInvaders-v5`` are one game.

    Raises:
        SettingError: no such game; near matches are named.
    """
    namespace, slash, _ = game.partition("/")
    if slash and namespace != "ALE":
        install = (
            "install a2d-lightning with [minatar]."
            if namespace == "MinAtar"
            else (f"install the package that registers it, or name the module too: module:{game}.")
        )
        raise SettingError(f"data.game: Gymnasium knows no environment {game!r}; {install}")
    wanted = _squeeze(game)
    by_key = {_squeeze(rom): rom for rom in atari_games()}
    if wanted in by_key:
        return by_key[wanted]
    registered = [env_id for env_id in gymnasium.registry if is_gymnasium_id(env_id)]
    near = difflib.get_close_matches(game, registered, n=2, cutoff=0.8)
    near = near or [by_key[key] for key in difflib.get_close_matches(wanted, by_key, n=3, cutoff=0.6)]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "for another Gymnasium environment give its id with the version, as it is registered."
    )
    raise SettingError(f"data.game: ale-py ships no game called {game!r}; {hint}")


@functools.cache
def import_game(game: str) -> str:
    """Register the environment that ``game`` names and return its id alone; Atari games are returned as they are.

    Args:
        game: ``Id``, or ``module:Id`` to import the module first. The id's namespace may be the name of an entry point
            ``gymnasium.envs`` of an installed package, a function that registers environments (as in Gym 0.26).

    Raises:
        SettingError: the module cannot be imported, or registers no such id.
    """
    module, _, env_id = game.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the user's module does
            raise SettingError(
                f"data.game: {module!r} of {game!r} cannot be imported ({type(error).__name__}: {error}); correct the "
                "name or the module."
            ) from error
    namespace, slash, _ = env_id.rpartition("/")
    if slash and env_id not in gymnasium.registry:
        for plugin in entry_points(group="gymnasium.envs", name=namespace):
            try:
                plugin.load()()
            except Exception as error:
                raise SettingError(
                    f"data.game: the package that registers {namespace!r} cannot be loaded ({type(error).__name__}: "
                    f"{error}); reinstall it."
                ) from error
    if module and env_id not in gymnasium.registry:
        raise SettingError(f"data.game: importing {module!r} registers no environment {env_id!r}.")
    return env_id


def is_gymnasium_id(game: str) -> bool:
    """Return whether ``game`` names a Gymnasium environment that is not an Atari game: ``Id`` or ``module:Id``."""
    env_id = import_game(game)
    return (
        not env_id.startswith("ALE/")
        and env_id in gymnasium.registry
        and "ale_py" not in str(gymnasium.registry[env_id].entry_point)
    )


def canonical_game(game: str) -> str:
    """One spelling for each game, so that teachers, architectures and runs can be compared."""
    return game if is_gymnasium_id(game) else atari_rom(import_game(game))


def without_module(game: str) -> str:
    """Return the id of ``module:Id`` alone: runs of one game are comparable whichever way it was imported."""
    return game.rpartition(":")[2]


def _squeeze(name: str) -> str:
    name = re.sub(r"^ALE/", "", name)
    name = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", name)
    return re.sub(r"[^a-z0-9]", "", name.lower())
