"""Log of seeds, resets and actions from which the state of emulators can be replayed.

Replay is needed because ale-py's vector environment cannot save its emulators.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

KEEP_RNG = -1
"""Seed value that leaves an environment's random generator unchanged (ale-py's convention)."""


@dataclass(frozen=True)
class Reset:
    """Start of new games in some environments."""

    step: int
    """Steps of the vector environment before the reset."""
    mask: np.ndarray
    """bool ``[n]``, the environments that are reset."""
    seeds: np.ndarray
    """int64 ``[n]``, :data:`KEEP_RNG` where the generator is not reseeded."""


class ActionLog:
    """Actions and resets of ``n`` environments that step together, back to the oldest seed still in use.

    Args:
        num_envs: Number of environments ``n``.
    """

    def __init__(self, num_envs: int) -> None:
        self.actions: deque[np.ndarray] = deque()  # int32 [n] each
        self.resets: deque[Reset] = deque()
        self.first_step = 0
        """Steps before the oldest action in the log."""
        self.seeded_at = np.zeros(num_envs, dtype=np.int64)
        """Steps before each environment's last seed, int64 ``[n]``."""

    @property
    def steps(self) -> int:
        """Return the number of steps so far."""
        return self.first_step + len(self.actions)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> None:
        """Record a reset, and drop all events before the oldest seed still in use.

        Args:
            mask: bool ``[n]``, the environments that are reset.
            seeds: int64 ``[n]``, :data:`KEEP_RNG` where the generator is not reseeded.
        """
        self.resets.append(Reset(self.steps, mask.copy(), seeds.copy()))
        self.seeded_at[mask & (seeds != KEEP_RNG)] = self.steps
        oldest = self.seeded_at.min()
        while self.first_step < oldest:
            self.actions.popleft()
            self.first_step += 1
        while self.resets[0].step < oldest:
            self.resets.popleft()

    def last_seed(self, environment: int) -> int:
        """Return the last seed of an environment."""
        seeds = (int(r.seeds[environment]) for r in reversed(self.resets) if r.mask[environment])
        return next(seed for seed in seeds if seed != KEEP_RNG)

    def step(self, actions: np.ndarray) -> None:
        """Record the actions of one step, int ``[n]``."""
        self.actions.append(actions.astype(np.int32))

    def events(self) -> Iterator[Reset | np.ndarray]:
        """Yield resets and actions (int32 ``[n]``) in order.

        The masks of resets leave out environments that were reseeded later.
        """
        resets = deque(self.resets)
        for step in range(self.first_step, self.steps + 1):
            while resets and resets[0].step == step:
                reset = resets.popleft()
                mask = reset.mask & (self.seeded_at <= step)
                if mask.any():
                    yield Reset(step, mask, reset.seeds)
            if step < self.steps:
                yield self.actions[step - self.first_step]

    def state_dict(self) -> dict[str, Any]:
        """Return the log as tensors and numbers."""
        num_envs = len(self.seeded_at)
        return {
            "first_step": self.first_step,
            "seeded_at": torch.from_numpy(self.seeded_at.copy()),
            "actions": torch.from_numpy(np.array(self.actions, dtype=np.int32).reshape(-1, num_envs)),
            "reset_steps": torch.tensor([reset.step for reset in self.resets], dtype=torch.int64),
            "reset_masks": torch.from_numpy(np.array([r.mask for r in self.resets], dtype=bool).reshape(-1, num_envs)),
            "reset_seeds": torch.from_numpy(
                np.array([r.seeds for r in self.resets], dtype=np.int64).reshape(-1, num_envs)
            ),
        }

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> "ActionLog":
        """Build a log from the result of :meth:`state_dict`.

        Raises:
            ValueError, KeyError, TypeError: If ``state`` is malformed.
        """
        number, num_envs = len(state["reset_steps"]), len(state["seeded_at"])
        for name, dtype, shape in (
            ("seeded_at", torch.int64, [num_envs]),
            ("actions", torch.int32, [len(state["actions"]), num_envs]),
            ("reset_steps", torch.int64, [number]),
            ("reset_masks", torch.bool, [number, num_envs]),
            ("reset_seeds", torch.int64, [number, num_envs]),
        ):
            if state[name].dtype != dtype or list(state[name].shape) != shape:
                raise ValueError(f"{name} is {state[name].dtype} {list(state[name].shape)}, not {dtype} {shape}")
        if (state["reset_seeds"] < KEEP_RNG).any() or state["first_step"] < 0:
            raise ValueError("seeds and steps must not be negative")
        action_log = ActionLog(num_envs)
        action_log.first_step = state["first_step"]
        action_log.seeded_at = state["seeded_at"].numpy().copy()
        action_log.actions.extend(state["actions"].numpy())
        resets = zip(state["reset_steps"].tolist(), state["reset_masks"], state["reset_seeds"], strict=True)
        action_log.resets.extend(Reset(step, mask.numpy(), seeds.numpy()) for step, mask, seeds in resets)
        return action_log
