"""Names of games, in the spellings of users, ale-py and Gymnasium, and the preprocessing settings of their frames."""

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
"""Step limit of Gymnasium games without a time limit: Atari's 108,000 frames at a frame skip of 4."""


@dataclass(frozen=True)
class FrameSettings:
    """Preprocessing of images to observations ``uint8 [stack * channels, height, width]``.

    ``gray: false`` keeps all channels, ``size: null`` keeps the image's height and width, ``skip: 1`` acts at every
    step, and ``stack: 1`` observes only the newest frame.
    """

    size: int | None = 84
    """Height and width of a frame, pixels."""
    stack: int = 4
    """Number of frames in an observation, the newest one last."""
    skip: int = 4
    """Frame skip: emulator steps per decision, which repeat its action."""
    sticky_action_probability: float = 0.0
    """Probability that the emulator repeats the last action (Atari only)."""
    gray: bool = True
    """Convert RGB to luminance."""
    channels: Literal["first", "last"] | None = None
    """Position of the channels, ``[c, h, w]`` or ``[h, w, c]``; if absent, inferred from the shape (not for Atari)."""
    image_key: str | None = None
    """Key of the image in a Dict observation; only needed if there are several images (not for Atari)."""


@functools.cache
def atari_games() -> tuple[str, ...]:
    """Return the names of all games in ale-py, in ale-py's spelling (``space_invaders``)."""
    return tuple(sorted(roms.get_all_rom_ids()))


def atari_rom(game: str) -> str:
    """Return the ale-py name of ``game``.

    ``SpaceInvaders``, ``space_invaders`` and ``ALE/SpaceInvaders-v5`` are the same game.

    Raises:
        SettingError: If there is no such game; the message suggests near matches.
    """
    namespace, slash, _ = game.partition("/")
    if slash and namespace != "ALE":
        install = (
            "install a2d-lightning with [minatar]."
            if namespace == "MinAtar"
            else (f"install the package that registers it, or give the module too: module:{game}.")
        )
        raise SettingError(f"data.game: Gymnasium has no environment {game!r}; {install}")
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
        else "for a Gymnasium environment, give the registered id with its version."
    )
    raise SettingError(f"data.game: ale-py has no game called {game!r}; {hint}")


@functools.cache
def import_game(game: str) -> str:
    """Register the environment named by ``game`` and return its id; names without a module are returned unchanged.

    Args:
        game: ``Id``, or ``module:Id`` to import the module first. If an installed package has an entry point in
            the group ``gymnasium.envs`` named like the id's namespace (as in Gym 0.26), that function is called to
            register environments.

    Raises:
        SettingError: If the module or the entry point cannot be loaded, or the module does not register the id.
    """
    module, _, env_id = game.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # a user's module can raise anything
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
    """Return whether ``game`` (``Id`` or ``module:Id``) names a Gymnasium environment other than an Atari game.

    Raises:
        SettingError: See :func:`import_game`.
    """
    env_id = import_game(game)
    return (
        not env_id.startswith("ALE/")
        and env_id in gymnasium.registry
        and "ale_py" not in str(gymnasium.registry[env_id].entry_point)
    )


def canonical_game(game: str) -> str:
    """Return the spelling of a game by which teachers, architectures and runs are compared.

    Raises:
        SettingError: If there is no such game.
    """
    return game if is_gymnasium_id(game) else atari_rom(import_game(game))


def without_module(game: str) -> str:
    """Return the id without the module of ``module:Id``: the module does not change the game."""
    return game.rpartition(":")[2]


def _squeeze(name: str) -> str:
    name = re.sub(r"^ALE/", "", name)
    name = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", name)
    return re.sub(r"[^a-z0-9]", "", name.lower())
