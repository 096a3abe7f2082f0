"""A wrapper that makes games of MinAtar (Young and Tian 2019) depend on their seed alone."""

from typing import Any

import gymnasium


class ResetStickyAction(gymnasium.Wrapper):
    """Begin each game with the null action as the last one.

    MinAtar's sticky actions repeat the last action with probability 0.1, and its reset keeps the last action of the
    game before. A game would depend on the one before it, and a resumed run could not replay it.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game."""
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return super().reset(seed=seed, options=options)
