"""Small environments, each with one property that Atari's do not have."""

from typing import Any

import gymnasium
import numpy as np

OVER_AT = 6
"""Steps of a game of :class:`Counter`."""


MISTAKES: dict[str, dict[str, Any]] = {
    "Floats": {"shown": np.full((4, 4), 0.5)},
    "TooSmall": {"shown": np.zeros((4, 1), np.uint8)},
    "Nothing": {"shown": None},
    "InitFails": {"where": "init"},
    "ResetFails": {"where": "reset"},
    "StepFails": {"where": "step"},
}
"""Arguments of environments that their authors should correct, by name."""

TYPES: dict[str, dict[str, Any]] = {
    "NumpyTypes": {"reward": np.float32(1.0), "flag": np.bool_},
    "Integers": {"reward": 1, "flag": int},
    "RewardInArray": {"reward": np.ones(1)},
}
"""Arguments of :class:`Returns`, by name."""


class Counter(gymnasium.Env):
    """Shows the number of steps since the game began as every pixel's value and ends after :data:`OVER_AT` steps.

    Args:
        layout: shape of the image.
        endless: whether games never end.
        first_action: the first of three actions.
    """

    def __init__(self, layout: tuple[int, ...] = (4, 4), endless: bool = False, first_action: int = 0) -> None:
        self.observation_space: gymnasium.Space = gymnasium.spaces.Box(0, 255, layout, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3, start=first_action)
        self.endless = endless
        self.count = 0
        self.actions: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.count = 0
        return self.observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        assert self.endless or self.count < OVER_AT, "a game that is over was stepped"
        assert self.action_space.contains(np.int64(action))
        self.actions.append(int(action))
        self.count += 1
        return self.observation(), 1.0, self.count == OVER_AT and not self.endless, False, {}

    def observation(self) -> Any:
        shape = self.observation_space.shape
        assert shape is not None
        return np.full(shape, self.count, np.uint8)


class NoisyWalk(Counter):
    """Shows random pixels; games last 2 to 9 steps, drawn by the environment's own generator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        shown, info = super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, 10))
        return shown, info

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.count += 1
        return self.observation(), float(action), self.count == self.length, False, {}

    def observation(self) -> np.ndarray:
        return self.np_random.integers(0, 256, self.observation_space.shape, np.uint8)


class InDict(Counter):
    """The image is ``image`` of a Dict, beside a number."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Dict(
            image=gymnasium.spaces.Box(0, 255, (4, 4), np.uint8), direction=gymnasium.spaces.Discrete(4)
        )

    def observation(self) -> dict[str, Any]:
        return {"image": np.full((4, 4), self.count, np.uint8), "direction": 0}


class WithLives(Counter):
    """Loses one of three lives with every second step, and draws every image into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = np.zeros((4, 4), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return super().reset(seed=seed)[0], {"lives": 3}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        *rest, _ = super().step(action)
        return (*rest, {"lives": 3 - self.count // 2})

    def observation(self) -> np.ndarray:
        self.memory[:] = OVER_AT - self.count
        return self.memory


class LivesInSteps(Counter):
    """Tells its lives in odd steps alone: five in the first game, one less in each game after it."""

    def __init__(self) -> None:
        super().__init__()
        self.games = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.games += 1
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        *rest, _ = super().step(action)
        return (*rest, {"lives": 6 - self.games} if self.count % 2 else {"other": 1})


class NaNAfterOddSeeds(Counter):
    """Gives the reward NaN in its second step after a reset with an odd seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.odd = seed is not None and seed % 2 == 1
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        shown, reward, *rest = super().step(action)
        return (shown, float("nan") if self.odd and self.count == 2 else reward, *rest)


class Misdeclared(Counter):
    """Shows images that do not fit its space.

    Args:
        shown: what it shows.
    """

    def __init__(self, shown: Any = None) -> None:
        super().__init__()
        self.shown = shown

    def observation(self) -> Any:
        return self.shown


class Returns(Counter):
    """Returns reward and flags of other types than Python's own."""

    def __init__(self, reward: Any = 1.0, flag: Any = bool) -> None:
        super().__init__()
        self.reward, self.flag = reward, flag

    def step(self, action: int) -> tuple[Any, Any, Any, Any, dict]:
        shown, _, terminated, truncated, info = super().step(action)
        return shown, self.reward, self.flag(terminated), self.flag(truncated), info


class Fails(Counter):
    """Raises an error of two lines where it is told to: ``init``, ``reset`` or ``step``."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.fail("init")

    def fail(self, here: str) -> None:
        if here == self.where:
            raise ValueError("no\ndisplay")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.fail("reset")
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.fail("step")
        return super().step(action)


class BrighterBy(gymnasium.ObservationWrapper):
    """A user's wrapper: adds ``amount`` to every pixel."""

    def __init__(self, env: gymnasium.Env, amount: int) -> None:
        super().__init__(env)
        self.amount = amount

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation + np.uint8(self.amount)


class TwiceAsBright(gymnasium.ObservationWrapper):
    """A user's wrapper without settings."""

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation * np.uint8(2)


class TenTimesTheReward(gymnasium.Wrapper):
    """A user's wrapper that replaces its step when it is made."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)

        def step(action: int) -> tuple[Any, Any, bool, bool, dict]:
            shown, reward, terminated, truncated, info = env.step(action)
            return shown, 10 * float(reward), terminated, truncated, info

        wrapper: Any = self
        wrapper.step = step


def no_wrapper(env: gymnasium.Env) -> None:
    """Return no environment."""


def register() -> None:
    """Register the games; can be called twice."""
    add: Any = gymnasium.register  # by its types it takes no class whose arguments have names
    for game in (Counter, NoisyWalk, InDict, WithLives, LivesInSteps, NaNAfterOddSeeds):
        if f"odd/{game.__name__}-v0" not in gymnasium.registry:
            add(f"odd/{game.__name__}-v0", game)
    if "odd/Endless-v0" not in gymnasium.registry:
        add("odd/Endless-v0", Counter, kwargs={"endless": True})
        add("odd/Limited-v0", Counter, kwargs={"endless": True}, max_episode_steps=4)
        add("odd/FromOne-v0", Counter, kwargs={"first_action": 1})
        add("odd/CarRacing-v0", Counter)
        for name, kwargs in MISTAKES.items():
            add(f"odd/{name}-v0", Misdeclared if "shown" in kwargs else Fails, kwargs=kwargs)
        for name, kwargs in TYPES.items():
            add(f"odd/{name}-v0", Returns, kwargs=kwargs)
