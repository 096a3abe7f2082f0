"""Input contract of an exported agent: everything a player needs besides the network's file."""

from dataclasses import asdict
from typing import Any

import ale_py

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.rollouts.games import FrameSettings, atari_rom, is_gymnasium_id, without_module

NOOP_MAX = 30
"""No-op actions at the start of a game are drawn from 0 to ``NOOP_MAX - 1`` (Atari)."""


def frames_of(card: AgentCard) -> FrameSettings:
    """Return the preprocessing that an agent was trained with.

    For cards of earlier versions, without ``frames``, this is the default at the size of their observations.
    """
    if card.frames is not None:
        return FrameSettings(**card.frames)
    stack, height, _ = card.frame_shape
    return FrameSettings(size=height, stack=stack)


def input_contract(card: AgentCard) -> dict[str, Any]:
    """Return the contract as plain values for JSON.

    Returns:
        ``game``, ``input`` (type, layout, range), ``frames`` (:class:`~a2d_lightning.rollouts.games.FrameSettings`),
        ``preprocessing`` in words, ``noop_max``, ``actions`` (names by index; numbers for games without names) and
        ``outputs``.
    """
    frames = frames_of(card)
    atari = not is_gymnasium_id(card.game)
    stack, height, width = card.frame_shape
    words = [
        *([f"maximum of the last two of {frames.skip} emulator frames"] if atari and frames.skip > 1 else []),
        *(["luminance"] if frames.gray else []),
        *([f"resized to {height}x{width} by area (OpenCV INTER_AREA)"] if frames.size is not None else []),
        f"the last {frames.stack} frames stacked, the newest last",
    ]
    return {
        "game": without_module(card.game),
        "input": {"name": "pixels", "type": "uint8", "shape": ["batch", stack, height, width], "range": [0, 255]},
        "frames": asdict(frames),
        "preprocessing": words,
        "noop_max": NOOP_MAX if atari else 0,
        "actions": _action_names(card.game) if atari else [str(action) for action in range(card.num_actions)],
        "outputs": {"logits": ["batch", card.num_actions], "value": ["batch"]},
    }


def _action_names(game: str) -> list[str]:
    """Return the names of a game's actions in ale-py's order."""
    emulator = ale_py.ALEInterface()
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    rom = ale_py.roms.get_rom_path(atari_rom(game))
    assert rom is not None
    emulator.loadROM(rom)
    return [action.name for action in emulator.getMinimalActionSet()]
