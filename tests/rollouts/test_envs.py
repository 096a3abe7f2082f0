"""Games as TorchRL environments. Oracles: ale-py's emulator itself, and a bare vector environment of one game."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from ale_py import ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import check_env_specs
from toy_game import CATCH, LIVES, SIZE, STEPS, register

from a2d_lightning.rollouts import atari
from a2d_lightning.rollouts.envs import GameEnv, make_env
from a2d_lightning.rollouts.games import FrameSettings, canonical_game
from a2d_lightning.runtime.errors import SettingError

register()
ATARI_FRAMES = FrameSettings()
TOY_FRAMES = FrameSettings(size=SIZE, stack=1, skip=1)
MakeGame = Callable[..., GameEnv]


@pytest.fixture
def make() -> Iterator[MakeGame]:
    """:func:`make_env` with one thread; what it makes is closed in the end."""
    made: list[GameEnv] = []

    def build(
        game: str, num_envs: int = 2, frames: FrameSettings = ATARI_FRAMES, seed: int = 0, noop_max: int = 30
    ) -> GameEnv:
        made.append(make_env(game, num_envs, frames, seed, num_threads=1, noop_max=noop_max))
        return made[-1]

    yield build
    for env in made:
        env.close(raise_if_closed=False)


def random_actions(steps: int, num_envs: int, num_actions: int, seed: int = 0) -> Tensor:
    """int64 ``[steps, num_envs]``."""
    return torch.randint(num_actions, (steps, num_envs), generator=torch.Generator().manual_seed(seed))


def start(env: GameEnv, *game_seeds: int) -> TensorDictBase:
    pixels = env.reset_games(np.ones(len(game_seeds), dtype=bool), np.array(game_seeds))
    return TensorDict({"pixels": torch.from_numpy(pixels)}, env.batch_size)


def play(env: GameEnv, actions: Tensor, state: TensorDictBase | None = None) -> tuple[TensorDictBase, TensorDictBase]:
    """Plays ``actions``, resetting what is done; returns the steps ``[n, T]`` and the state after them."""
    state = env.reset() if state is None else state
    steps = []
    for action in actions:
        state["action"] = action
        stepped, state = env.step_and_maybe_reset(state)
        steps.append(stepped.select("pixels", "next"))
    return torch.stack(steps, 1), state


class Game(NamedTuple):
    """One game from its start to its end, after each of its T decisions."""

    pixels: Tensor  # uint8 [T, 4, 84, 84]
    reward: Tensor  # [T]
    lives: Tensor  # [T]


def bare_game(rom: str, seed: int, actions: Tensor) -> Game:
    """The game that ale-py's own vector environment plays from ``seed``, up to its end."""
    vector = AtariVectorEnv(rom, 1, num_threads=1, reward_clipping=False)
    vector.reset(seed=np.array([seed]))
    pixels, rewards, lives = [], [], []
    for action in actions.tolist():
        frame, reward, terminated, _, info = vector.step(np.array([action]))
        pixels.append(torch.from_numpy(frame[0].copy()))
        rewards.append(float(reward[0]))
        lives.append(int(info["lives"][0]))
        if terminated[0]:
            vector.close()
            return Game(torch.stack(pixels), torch.tensor(rewards), torch.tensor(lives))
    raise AssertionError("more actions are needed to end the game")


def emulated_rewards(rom: str, actions: Tensor) -> Tensor:
    """Raw rewards of each decision up to the game's end, by the bare emulator: FIRE, no null-ops, four frames each."""
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    path = roms.get_rom_path(rom)
    assert path is not None
    ale.loadROM(path)
    ale.reset_game()
    buttons = ale.getMinimalActionSet()
    assert buttons[1].name == "FIRE"
    ale.act(buttons[1])
    rewards = []
    for action in actions.tolist():
        rewards.append(float(sum(ale.act(buttons[action]) for _ in range(4))))
        if ale.game_over():
            return torch.tensor(rewards)
    raise AssertionError("more actions are needed to end the game")


# --- TorchRL's contract ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("game", "frames"), [("Pong", FrameSettings()), ("Breakout", FrameSettings(size=42, stack=2)), (CATCH, TOY_FRAMES)]
)
def test_specs_hold(make: MakeGame, game: str, frames: FrameSettings) -> None:
    env = make(game, 3, frames)
    check_env_specs(env)
    assert env.batch_size == (3,)
    assert env.reset()["pixels"].dtype == torch.uint8


@pytest.mark.parametrize(("game", "frames", "steps"), [("Breakout", FrameSettings(), 300), (CATCH, TOY_FRAMES, 30)])
def test_a_seed_and_its_actions_replay_to_the_same_frames(
    make: MakeGame, game: str, frames: FrameSettings, steps: int
) -> None:
    actions = random_actions(steps, 2, 3)
    first, _ = play(make(game, 2, frames, seed=7), actions)
    again, _ = play(make(game, 2, frames, seed=7), actions)
    other, _ = play(make(game, 2, frames, seed=8), actions)
    assert first["next", "done"].any()  # or the seeds of later games would go untested
    for key in ("pixels", ("next", "pixels"), ("next", "game_score"), ("next", "done")):
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["pixels"], other["pixels"])


def test_a_seed_forgets_what_was_played_before_it(make: MakeGame) -> None:
    """What an environment is at the moment depends on its last seed and what came after, over the ends of games too."""
    sticky = FrameSettings(sticky_action_probability=0.25)
    actions = random_actions(300, 2, 3)
    fresh, used = make("Breakout", 2, sticky, seed=1), make("Breakout", 2, sticky, seed=2)
    play(used, random_actions(250, 2, 3, seed=9))
    expected, _ = play(fresh, actions, start(fresh, 5, 6))
    again, _ = play(used, actions, start(used, 5, 6))
    assert expected["next", "done"].sum() >= 2  # several games, whose resets had no seed of their own
    assert torch.equal(expected["next", "pixels"], again["next", "pixels"])


def test_an_environment_is_seeded_anew_with_the_first_game_after_enough_decisions(
    make: MakeGame, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make("Breakout", 2)
    env.decisions_per_seed = 200
    given: list[tuple[np.ndarray, np.ndarray]] = []
    reset: Any = env.vector.reset

    def spy(*, seed: np.ndarray, options: dict | None = None) -> tuple[np.ndarray, dict]:
        given.append((seed, options["reset_mask"] if options else np.ones(2, dtype=bool)))
        return reset(seed=seed, options=options)

    monkeypatch.setattr(env.vector, "reset", spy)
    steps, _ = play(env, random_actions(1000, 2, 4))
    seeds: dict[int, list[int]] = {0: [], 1: []}
    for seed, mask in given:
        for i, own in zip(np.flatnonzero(mask).tolist(), seed, strict=True):
            seeds[i].append(own)
    for i in (0, 1):
        ends = [0, *(1 + steps["next", "done"][i, :, 0].nonzero()[:, 0]).tolist()]
        expected, last = [], -200
        for end in ends:
            expected.append(end - last >= 200)
            last = end if expected[-1] else last
        assert 2 <= sum(expected) < len(expected)
        assert [seed >= 0 for seed in seeds[i]] == expected
        fresh = [seed for seed in seeds[i] if seed >= 0]
        assert len(set(fresh)) == len(fresh)


def test_games_side_by_side_and_after_each_other_differ(make: MakeGame) -> None:
    env = make("Breakout", 3, seed=7)
    seen = []
    for _ in range(2):
        state = env.reset()
        steps, _ = play(env, torch.zeros(40, 3, dtype=torch.int64), state)
        seen += list(steps["pixels"])
    # six games under the same actions; null-op starts of 0 to 29 may meet, so not all six need differ
    assert len({game.numpy().tobytes() for game in seen}) >= 4


@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_action_out_of_range_is_refused_and_the_game_goes_on(make: MakeGame, wrong: int) -> None:
    env = make("Pong")
    assert env.num_actions == 6
    state = env.reset()
    state["action"] = torch.tensor([0, wrong])
    with pytest.raises(ValueError, match=r"action outside 0\.\.5.*" + str(wrong)):
        env.step(state)
    play(env, random_actions(3, 2, 6))


# --- how games end --------------------------------------------------------------------------------------------------


def test_the_step_that_ends_a_game_shows_its_true_last_frames(make: MakeGame) -> None:
    seeds = (11, 12)
    env = make("Breakout")
    actions = random_actions(500, 2, env.num_actions)
    steps, _ = play(env, actions, start(env, *seeds))
    for i, seed in enumerate(seeds):
        truth = bare_game("breakout", seed, actions[:, i])
        last = len(truth.reward) - 1
        done = steps["next", "done"][i, :, 0]
        assert done[last]
        assert not done[:last].any()
        assert torch.equal(steps["next", "pixels"][i, : last + 1], truth.pixels)
        # what is acted on next is another game's first frame
        first_of_next = steps["pixels"][i, last + 1]
        assert not torch.equal(steps["next", "pixels"][i, last], first_of_next)
        assert steps["next", "game_score"][i, last] != 0.0
        assert steps["next", "game_score"][i, last + 1] == steps["next", "reward"][i, last + 1]


def test_a_lost_life_is_told_and_neither_ends_nor_resets_the_game(make: MakeGame) -> None:
    seeds = (3, 4)
    env = make("SpaceInvaders")
    actions = random_actions(1500, 2, env.num_actions, seed=1)
    state = start(env, *seeds)
    steps, _ = play(env, actions, state)
    for i, seed in enumerate(seeds):
        truth = bare_game("space_invaders", seed, actions[:, i])
        length = len(truth.reward)
        lives = torch.cat([torch.tensor([3]), truth.lives])
        lost = lives[1:] < lives[:-1]
        assert lost[:-1].sum() == 2  # of three lives, before the last
        assert torch.equal(steps["next", "life_lost"][i, :length, 0], lost)
        assert steps["next", "done"][i, :length, 0].nonzero().tolist() == [[length - 1]]
        assert torch.equal(steps["next", "game_score"][i, :length, 0], truth.reward.cumsum(0))
        assert torch.equal(steps["next", "pixels"][i, :length], truth.pixels)


def test_the_score_is_the_sum_of_raw_rewards(make: MakeGame) -> None:
    env = make("SpaceInvaders", 1, noop_max=1)  # no null-ops: then the emulator's seed does not matter
    actions = random_actions(1500, 1, env.num_actions, seed=2)
    steps, _ = play(env, actions)
    truth = emulated_rewards("space_invaders", actions[:, 0])
    length = len(truth)
    assert truth.max() > 1  # the rewards are of the kind that clipping changes
    assert torch.equal(steps["next", "reward"][0, :length, 0], truth)
    assert torch.equal(steps["next", "game_score"][0, :length, 0], truth.cumsum(0))
    assert steps["next", "done"][0, :, 0].nonzero()[0] == length - 1
    assert steps["next", "terminated"][0, length - 1]


@pytest.mark.parametrize("skip", [2, 4])
def test_a_game_that_reaches_the_cap_is_truncated_not_terminated(
    make: MakeGame, monkeypatch: pytest.MonkeyPatch, skip: int
) -> None:
    monkeypatch.setattr(atari, "ATARI_FRAMES_PER_GAME", 400)
    env = make("Pong", 1, FrameSettings(skip=skip))
    length = 400 // skip
    steps, state = play(env, torch.zeros(length, 1, dtype=torch.int64))
    after = steps["next"]
    assert after["truncated"][0, :, 0].nonzero().tolist() == [[length - 1]]
    assert after["done"][0, :, 0].nonzero().tolist() == [[length - 1]]
    assert not after["terminated"].any()
    assert state["game_score"] == 0.0


# --- resets ---------------------------------------------------------------------------------------------------------


def test_a_masked_reset_touches_only_what_is_masked(make: MakeGame) -> None:
    actions = random_actions(120, 3, 6, seed=3)
    disturbed, quiet = make("SpaceInvaders", 3), make("SpaceInvaders", 3)
    before, state = play(disturbed, actions[:90], start(disturbed, 1, 2, 3))
    _, quiet_state = play(quiet, actions[:90], start(quiet, 1, 2, 3))
    assert (before["next", "game_score"][:, -1] > 0).all()  # so that a lost score would be seen
    assert not before["next", "done"].any()

    fresh = disturbed.reset_games(np.array([False, True, False]), np.array([0, 9, 0]))
    new = start(make("SpaceInvaders", 1), 9)
    assert torch.equal(torch.from_numpy(fresh[1]), new["pixels"][0])

    rest, _ = play(disturbed, actions[90:], state.replace({"pixels": torch.from_numpy(fresh)}))
    assert torch.equal(rest["next", "game_score"][1], rest["next", "reward"][1].cumsum(0))
    truth, _ = play(quiet, actions[90:], quiet_state)
    others = torch.tensor([0, 2])
    assert torch.equal(rest["pixels"][others], truth["pixels"][others])
    for key in ("pixels", "game_score", "life_lost", "done"):
        assert torch.equal(rest["next", key][others], truth["next", key][others])


def test_a_reset_of_one_game_hides_no_lost_life_of_another(make: MakeGame) -> None:
    env = make(LIVES, 2, TOY_FRAMES)
    # the first environment loses its three lives and is reset; the second one then loses its first
    actions = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]])
    steps, _ = play(env, actions)
    assert steps["next", "life_lost"][:, :, 0].tolist() == [[True, True, True, False], [False, False, False, True]]
    assert steps["next", "done"][:, :, 0].tolist() == [[False, False, True, False], [False] * 4]


def test_lives_that_come_back_are_not_lost(make: MakeGame) -> None:
    env = make(LIVES, 1, TOY_FRAMES)
    # loses two, wins one, loses the last two; the next game begins with three again
    actions = torch.tensor([[1], [1], [2], [1], [1], [0], [1]])
    steps, _ = play(env, actions)
    assert steps["next", "life_lost"][0, :, 0].tolist() == [True, True, False, True, True, False, True]
    assert steps["next", "done"][0, :, 0].nonzero().tolist() == [[4]]


# --- frame settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", ["Pong", CATCH])
def test_size_and_stack_shape_the_frames(make: MakeGame, game: str) -> None:
    env = make(game, 2, FrameSettings(size=21, stack=3, skip=2))
    assert env.frame_shape == (3, 21, 21)
    assert env.reset()["pixels"].shape == (2, 3, 21, 21)


def test_sticky_actions_change_what_happens(make: MakeGame) -> None:
    actions = random_actions(60, 1, 6)

    def frames(probability: float) -> Tensor:
        env = make("Pong", 1, FrameSettings(sticky_action_probability=probability))
        return play(env, actions, start(env, 5))[0]["next", "pixels"]

    plain = frames(0.0)
    assert torch.equal(plain, frames(0.0))
    assert not torch.equal(plain, frames(0.25))
    # stuck for ever on the first action, which is the null one: nothing that is asked for matters
    stuck = make("Pong", 1, FrameSettings(sticky_action_probability=1.0), noop_max=1)
    asked, _ = play(stuck, actions, start(stuck, 5))
    idle, _ = play(stuck, 0 * actions, start(stuck, 5))
    assert torch.equal(asked["next", "pixels"], idle["next", "pixels"])


# --- Gymnasium's own environments -----------------------------------------------------------------------------------


def test_frames_of_a_gymnasium_id_are_its_gray_picture(make: MakeGame) -> None:
    env = make(CATCH, 1, TOY_FRAMES)
    steps, _ = play(env, torch.ones(STEPS, 1, dtype=torch.int64))
    pixels = steps["next", "pixels"][0, :, 0]
    for row, picture in enumerate(pixels, start=1):
        assert sorted(picture.unique().tolist())[-1] == 255
        assert (picture == 255).any(1).nonzero().tolist() == [[row]]
    # the paddle stays where it is, on the last row
    paddle = (pixels[:-1, -1] == 128).float()
    assert (paddle.sum(1) == 2).all()
    assert (paddle == paddle[0]).all()


def test_a_stack_keeps_the_last_pictures_oldest_first(make: MakeGame) -> None:
    env = make(CATCH, 1, FrameSettings(size=SIZE, stack=3, skip=1))
    steps, _ = play(env, torch.ones(5, 1, dtype=torch.int64))
    rows = (steps["next", "pixels"][0] == 255).any(-1).long().argmax(-1)  # [5, 3], the ball's height
    assert rows.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


def test_a_game_of_a_gymnasium_id_ends_with_its_score_and_last_picture(make: MakeGame) -> None:
    env = make(CATCH, 4, TOY_FRAMES)
    steps, state = play(env, random_actions(STEPS, 4, 3))
    after = steps["next"]
    assert after["terminated"][:, :, 0].sum(1).tolist() == [1] * 4
    assert after["done"][:, -1].all()
    assert torch.equal(after["game_score"][:, -1], after["reward"].sum(1))
    assert (after["reward"][:, -1].abs() == 1).all()
    assert (after["pixels"][:, -1, 0, -1] == 255).any(1).all()  # the ball has arrived
    assert (state["pixels"][:, 0, 0] == 255).any(1).all()  # and a new one starts at the top


@pytest.mark.parametrize("skip", [2, 3, 4, 5])
def test_a_game_that_ends_between_skipped_frames_still_shows_its_last_picture(make: MakeGame, skip: int) -> None:
    # 11 frames are no multiple of any of these, so the last decision is cut short
    env = make(CATCH, 2, FrameSettings(size=SIZE, stack=1, skip=skip))
    decisions = -(-STEPS // skip)
    steps, _ = play(env, torch.ones(decisions, 2, dtype=torch.int64))
    assert steps["next", "done"][:, :, 0].sum(1).tolist() == [1, 1]
    for picture in steps["next", "pixels"][:, -1, 0]:
        rows = (picture == 255).any(1).nonzero()[:, 0].tolist()
        # the maximum of the last two frames: the ball has arrived, and nothing older is seen
        assert STEPS in rows
        assert set(rows) <= {STEPS - 1, STEPS}


@pytest.mark.parametrize(("name", "trouble"), [("Pendulum-v1", "discrete"), ("CartPole-v1", "images")])
def test_an_environment_that_cannot_serve_is_refused(name: str, trouble: str) -> None:
    with pytest.raises(SettingError, match=f"data.game: {name}.*{trouble}"):
        make_env(name, 1, FrameSettings(), seed=0, num_threads=1, noop_max=1)


def test_a_gymnasium_id_keeps_its_name_and_an_atari_one_becomes_its_rom() -> None:
    assert canonical_game("CarRacing-v3") == "CarRacing-v3"
    assert canonical_game(CATCH) == CATCH
    assert canonical_game("ALE/Pong-v5") == canonical_game("PongNoFrameskip-v4") == "pong"


def test_car_racing_drives_and_is_reset_where_it_was_truncated(make: MakeGame, monkeypatch: pytest.MonkeyPatch) -> None:
    # 40 frames, ten decisions, instead of 1000
    monkeypatch.setattr(gymnasium.registry["CarRacing-v3"], "max_episode_steps", 40)
    env = make("CarRacing-v3", 2, FrameSettings(size=48))
    assert env.num_actions == 5
    state = env.reset()
    assert state["pixels"].shape == (2, 4, 48, 48)
    assert state["pixels"].dtype == torch.uint8
    _, state = play(env, torch.full((4, 2), 3), state)
    # restart the second car, so that only the first reaches its end in six more decisions
    state["_reset"] = torch.tensor([[False], [True]])
    state = env.reset(state)
    assert (state["game_score"][:, 0] == 0).tolist() == [False, True]
    steps, state = play(env, torch.full((6, 2), 3), state)
    assert steps["next", "truncated"][:, :, 0].tolist() == [[False] * 5 + [True], [False] * 6]
    assert not steps["next", "terminated"].any()
    assert torch.allclose(steps["next", "game_score"][1, -1], steps["next", "reward"][1].sum(0))
    assert (state["game_score"][:, 0] == 0).tolist() == [True, False]
    assert torch.equal(state["pixels"][1], steps["next", "pixels"][1, -1])
    assert not torch.equal(state["pixels"][0], steps["next", "pixels"][0, -1])
