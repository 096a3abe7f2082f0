"""Names of Atari games: what a person writes, and what ale-py calls it."""

import difflib
import functools
import re

from ale_py import roms

from a2d_lightning.errors import SettingError


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


def _squeeze(name: str) -> str:
    name = re.sub(r"^ALE/", "", name)
    name = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", name)
    return re.sub(r"[^a-z0-9]", "", name.lower())
