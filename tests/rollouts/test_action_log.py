"""Games that are played again from their action_log go on exactly as those that were never left."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from toy_game import CATCH, register

from a2d_lightning.rollouts.action_log import KEEP_RNG, ActionLog, Reset
from a2d_lightning.rollouts.envs import FrameSettings, GameEnv, make_env

register()
NUM_ENVS = 3


def make(game: str, seed: int, decisions_per_seed: int) -> GameEnv:
    frames = FrameSettings(size=42, sticky_action_probability=0.25 if game == "Breakout" else 0.0, stack=2, skip=2)
    env = make_env(game, NUM_ENVS, frames, seed, num_threads=1, noop_max=30)
    env.decisions_per_seed = decisions_per_seed
    return env


def play(env: GameEnv, state: TensorDictBase, steps: int, seed: int) -> tuple[TensorDictBase, TensorDictBase]:
    actions = torch.randint(3, (steps, NUM_ENVS), generator=torch.Generator().manual_seed(seed))
    seen = []
    for action in actions:
        state["action"] = action
        stepped, state = env.step_and_maybe_reset(state)
        seen.append(stepped)
    return torch.stack(seen, 1), state


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("game", "steps", "decisions_per_seed"),
    [("Breakout", 400, 100), ("Breakout", 400, 10_000), (CATCH, 40, 0), (CATCH, 40, 12), (CATCH, 0, 0)],
)
def test_restored_games_go_on_as_if_they_had_never_stopped(game: str, steps: int, decisions_per_seed: int) -> None:
    env = make(game, 1, decisions_per_seed)
    state = env.reset()
    if steps:
        before, state = play(env, state, steps, seed=2)
        assert before["next", "done"].any()
    saved = through_a_file(env.game_state())
    expected, _ = play(env, state, 300, seed=3)

    other = make(game, 99, decisions_per_seed)
    other.restore_games(saved)
    again = other.reset()
    assert torch.equal(again["pixels"], expected["pixels"][:, 0])
    found, _ = play(other, again, 300, seed=3)
    assert expected["next", "done"].any()
    for key in ("pixels", "game_score", "life_lost", "reward", "done", "terminated", "truncated"):
        assert torch.equal(found["next", key], expected["next", key]), key
    # the journals agree, too, so that a run can be stopped again
    for name, value in env.game_state()["journal"].items():
        mine = other.game_state()["journal"][name]
        assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value, name
    env.close()
    other.close()


def test_only_the_first_reset_begins_where_the_games_were() -> None:
    env = make(CATCH, 1, 0)
    _, state = play(env, env.reset(), 5, seed=2)
    other = make(CATCH, 1, 0)
    other.restore_games(env.game_state())
    assert torch.equal(other.reset()["pixels"], state["pixels"])
    assert (other.reset()["pixels"][:, -1, 0] == 255).any(-1).all()  # a new game: each ball is in the first row


def test_a_journal_forgets_what_lies_before_the_oldest_seed() -> None:
    action_log = ActionLog(2)
    everywhere, first, second = (np.array(mask) for mask in ([True, True], [True, False], [False, True]))
    action_log.reset(everywhere, np.array([5, 6]))
    for step in range(4):
        action_log.step(np.array([step, step]))
    action_log.reset(first, np.array([7, KEEP_RNG]))  # environment 0 anew at 4, environment 1 is of 0
    action_log.step(np.array([4, 4]))
    action_log.reset(second, np.array([KEEP_RNG, KEEP_RNG]))  # a game of environment 1 without a seed
    assert (action_log.first_step, action_log.steps) == (0, 5)
    events = list(action_log.events())
    resets = [(event.step, event.mask.tolist()) for event in events if isinstance(event, Reset)]
    # what environment 0 was before its seed at 4 does not matter
    assert resets == [(0, [False, True]), (4, [True, False]), (5, [False, True])]
    assert [event[0] for event in events if not isinstance(event, Reset)] == [0, 1, 2, 3, 4]
    action_log.step(np.array([5, 5]))
    action_log.reset(second, np.array([KEEP_RNG, 8]))  # environment 1 anew at 6: the oldest seed is now of 4
    assert (action_log.first_step, len(action_log.actions)) == (4, 2)
    assert [reset.step for reset in action_log.resets] == [4, 5, 6]


@pytest.mark.parametrize(
    "change",
    [
        lambda action_log: action_log.update(
            actions=torch.full_like(action_log["actions"], 77)
        ),  # would kill the emulator
        lambda action_log: action_log.update(actions=action_log["actions"][:, :1]),
        lambda action_log: action_log.update(actions=action_log["actions"].float()),
        lambda action_log: action_log.update(reset_seeds=torch.full_like(action_log["reset_seeds"], -5)),
        lambda action_log: action_log.update(reset_masks=action_log["reset_masks"][:0]),
        lambda action_log: action_log.pop("seeded_at"),
        lambda action_log: action_log.update(  # of one environment
            seeded_at=action_log["seeded_at"][:1],
            **{name: action_log[name][:, :1] for name in ("actions", "reset_masks", "reset_seeds")},
        ),
        lambda action_log: action_log.update(first_step=-1),
    ],
)
def test_a_journal_that_somebody_made_up_is_refused(change: Callable[[Any], Any]) -> None:
    env = make(CATCH, 2, 0)
    play(env, env.reset(), 5, seed=2)
    state = env.game_state()
    change(state["journal"])
    with pytest.raises((ValueError, KeyError)):
        make(CATCH, 2, 0).restore_games(state)
