"""Games by name, what a person writes and what ale-py calls it, and how their pictures become observations."""

import difflib
import functools
import re
from dataclasses import dataclass

import gymnasium
from ale_py import roms

from a2d_lightning.errors import SettingError


@dataclass(frozen=True)
class FrameSettings:
    """How the emulator's pictures become observations ``uint8 [stack, size, size]``."""

    size: int = 84
    stack: int = 4
    skip: int = 4
    sticky_action_probability: float = 0.0
    """Probability that the emulator repeats the last action (Atari only)."""


@functools.cache
def atari_games() -> tuple[str, ...]:
    """Every game that ale-py ships, in its own spelling (``space_invaders``)."""
    return tuple(sorted(roms.get_all_rom_ids()))


def atari_rom(game: str) -> str:
    """The ale-py name of ``game``: ``SpaceInvaders``, ``space_invaders`` and ``ALE/SpaceInvaders-v5`` are one game.

    Raises:
        SettingError: no such game; near matches are named.
    """
    wanted = _squeeze(game)
    by_key = {_squeeze(rom): rom for rom in atari_games()}
    if wanted in by_key:
        return by_key[wanted]
    near = difflib.get_close_matches(wanted, by_key, n=3, cutoff=0.6)
    hint = (
        f"did you mean {' or '.join(by_key[key] for key in near)}?"
        if near
        else "for another Gymnasium environment give its id with the version, as it is registered."
    )
    raise SettingError(f"data.game: ale-py ships no game called {game!r}; {hint}")


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


def _squeeze(name: str) -> str:
    name = re.sub(r"^ALE/", "", name)
    name = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", name)
    return re.sub(r"[^a-z0-9]", "", name.lower())
