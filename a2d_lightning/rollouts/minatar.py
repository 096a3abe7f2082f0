"""Wrapper that makes MinAtar games (Young and Tian 2019) depend only on their seed."""

from typing import Any

import gymnasium


class ResetStickyAction(gymnasium.Wrapper):
    """Wrapper that clears MinAtar's last action before each game.

    MinAtar's sticky actions repeat the last action with probability 0.1, and its reset keeps the last action of the
    previous game. Without the wrapper, a game would depend on the previous one, and a resumed run could not replay it.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Set the last action to no-op and start a game."""
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return super().reset(seed=seed, options=options)
