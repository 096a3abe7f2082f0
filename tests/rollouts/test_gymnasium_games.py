"""Any Gymnasium environment as games. Oracles: games whose pixels count their own steps."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from odd_games import OVER_AT, register
from torchrl.envs.utils import check_env_specs

from a2d_lightning.data import RolloutDataModule
from a2d_lightning.rollouts.envs import GameEnv, make_env
from a2d_lightning.rollouts.evaluation import play_games
from a2d_lightning.rollouts.games import FrameSettings, canonical_game, is_gymnasium_id
from a2d_lightning.runtime.errors import RunFailedError, SettingError

register()
AS_IT_IS = FrameSettings(size=None, stack=1, skip=1, gray=False)
EVERYWHERE = np.ones(2, dtype=bool)
MakeGame = Callable[..., GameEnv]


@pytest.fixture
def make() -> Iterator[MakeGame]:
    """:func:`make_env` of two games; what it makes is closed in the end."""
    made: list[GameEnv] = []

    def build(
        game: str, frames: FrameSettings = AS_IT_IS, num_envs: int = 2, seed: int = 0, **settings: Any
    ) -> GameEnv:
        made.append(make_env(game, num_envs, frames, seed, num_threads=1, noop_max=1, **settings))
        return made[-1]

    yield build
    for env in made:
        env.close(raise_if_closed=False)


def counts(pixels: np.ndarray) -> list[list[int]]:
    """The number that each frame shows, ``[n, stack]``."""
    assert (pixels == pixels[:, :, :1, :1]).all()
    return pixels[:, :, 0, 0].tolist()


@pytest.mark.parametrize("game", ["odd/NoisyWalk-v0", "odd/InDict-v0"])
def test_specs_hold(make: MakeGame, game: str) -> None:
    check_env_specs(make(game, num_envs=3))


def test_a_game_that_is_over_stays_as_it_is_until_its_reset(make: MakeGame) -> None:
    env = make("odd/Counter-v0")
    env.reset_games(EVERYWHERE)
    idle = np.zeros(2, dtype=np.int64)
    for _ in range(2):
        env.step_games(idle)
    env.reset_games(np.array([True, False]))
    for _ in range(OVER_AT - 2):
        decision = env.step_games(idle)
    assert decision.terminated.tolist() == [False, True]
    held = env.step_games(idle)
    assert counts(held.pixels) == [[OVER_AT - 1], [OVER_AT]]
    assert held.reward.tolist() == [1.0, 0.0]
    assert held.done.tolist() == [False, False]
    assert counts(env.reset_games(np.array([False, True]))) == [[OVER_AT - 1], [0]]


def test_a_stack_begins_with_copies_of_the_first_frame_and_moves_by_one(make: MakeGame) -> None:
    env = make("odd/Counter-v0", FrameSettings(size=None, stack=3, skip=1, gray=False))
    assert counts(env.reset_games(EVERYWHERE)) == [[0, 0, 0]] * 2
    assert [counts(env.step_games(np.zeros(2, dtype=np.int64)).pixels)[0] for _ in range(4)] == [
        [0, 0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
    ]


def test_a_stack_of_colors_is_ordered_by_frame_then_channel(make: MakeGame) -> None:
    """Frame t shows t + 10 c in channel c, by a wrapper."""
    env = make(
        "odd/Counter-v0",
        FrameSettings(size=None, stack=2, skip=1, gray=False),
        wrappers=["test_gymnasium_games.InThreeChannels"],
    )
    assert env.frame_shape == (6, 4, 4)
    env.reset_games(EVERYWHERE)
    assert counts(env.step_games(np.zeros(2, dtype=np.int64)).pixels)[0] == [0, 10, 20, 1, 11, 21]


class InThreeChannels(gymnasium.ObservationWrapper):
    """Adds 10 to the second and 20 to the third channel."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[..., None] + np.array([0, 10, 20], np.uint8)


@pytest.mark.parametrize("skip", [2, 4])
def test_skipped_frames_add_up_and_show_the_maximum_of_the_last_two(make: MakeGame, skip: int) -> None:
    env = make("odd/Counter-v0", FrameSettings(size=None, stack=1, skip=skip, gray=False))
    env.reset_games(EVERYWHERE)
    decisions = [env.step_games(np.zeros(2, dtype=np.int64)) for _ in range(-(-OVER_AT // skip))]
    assert [counts(d.pixels)[0][0] for d in decisions] == [min(skip * i, OVER_AT) for i in range(1, len(decisions) + 1)]
    assert sum(d.reward[0] for d in decisions) == OVER_AT
    assert [bool(d.terminated[0]) for d in decisions] == [False] * (len(decisions) - 1) + [True]


@pytest.mark.parametrize(("game", "length"), [("odd/Endless-v0", 7), ("odd/Limited-v0", 4)])
def test_a_game_without_a_limit_of_its_own_is_truncated(make: MakeGame, game: str, length: int) -> None:
    env = make(game, max_env_steps_per_game=7)
    env.reset_games(EVERYWHERE)
    ends = []
    for step in range(1, 20):
        decision = env.step_games(np.zeros(2, dtype=np.int64))
        assert not decision.terminated.any()
        if decision.truncated.any():
            assert decision.truncated.all()
            ends.append(step)
            env.reset_games(decision.done)
    assert ends == list(range(length, 20, length))


def test_the_limit_counts_the_steps_of_each_game(make: MakeGame) -> None:
    env = make("odd/Endless-v0", max_env_steps_per_game=5)
    env.reset_games(EVERYWHERE)
    idle = np.zeros(2, dtype=np.int64)
    for _ in range(3):
        env.step_games(idle)
    env.reset_games(np.array([True, False]))
    ends = [env.step_games(idle).truncated.tolist() for _ in range(6)]
    assert ends == [[False, False], [False, True], *[[False, False]] * 2, [True, False], [False, False]]


@pytest.mark.parametrize(("skip", "lost"), [(1, [False, True] * 3), (2, [True] * 3), (3, [True, True])])
def test_lives_are_followed_over_skipped_frames_and_games(make: MakeGame, skip: int, lost: list[bool]) -> None:
    env = make("odd/WithLives-v0", FrameSettings(size=None, stack=1, skip=skip, gray=False))
    idle = np.zeros(2, dtype=np.int64)
    for _ in range(2):
        env.reset_games(EVERYWHERE)
        assert [bool(env.step_games(idle).life_lost[0]) for _ in lost] == lost
    env.reset_games(np.array([False, True]))
    assert env.step_games(idle).life_lost.tolist() == [False, skip > 1]


def test_a_game_that_tells_no_lives_keeps_its_count_and_a_new_one_has_none(make: MakeGame) -> None:
    env = make("odd/LivesInSteps-v0")
    for _ in range(3):
        env.reset_games(EVERYWHERE)
        assert not any(env.step_games(np.zeros(2, dtype=np.int64)).life_lost.any() for _ in range(OVER_AT))


def test_a_reward_that_is_not_finite_ends_the_run_with_its_game_and_seed(make: MakeGame) -> None:
    env = make("odd/NaNAfterOddSeeds-v0", num_envs=3)
    idle = np.zeros(3, dtype=np.int64)
    env.reset_games(np.ones(3, dtype=bool), np.array([4, 8, 11]))
    env.step_games(idle)
    named = "gave the reward nan in environment 2, 2 steps after its reset with seed 11; rewards must be finite"
    with pytest.raises(RunFailedError, match=named):
        env.step_games(idle)


def test_an_evaluation_drops_no_game_whose_score_is_not_finite(make: MakeGame) -> None:
    env, seeds = make("odd/NaNAfterOddSeeds-v0"), torch.tensor([4, 11])
    with pytest.raises(RunFailedError, match=r"reward nan in environment 1, .* seed 11"):
        play_games(env, lambda pixels: torch.zeros(len(pixels)).long(), seeds)


def test_images_drawn_into_the_same_memory_are_kept_apart(make: MakeGame) -> None:
    env = make("odd/WithLives-v0", FrameSettings(size=None, stack=2, skip=3, gray=False))
    first = env.reset_games(EVERYWHERE)
    second = env.step_games(np.zeros(2, dtype=np.int64)).pixels
    assert counts(first)[0] == [OVER_AT, OVER_AT]
    assert counts(second)[0] == [OVER_AT, OVER_AT - 2]  # the maximum of the last two of three, which get darker
    env.reset_games(EVERYWHERE)
    assert counts(second)[0] == [OVER_AT, OVER_AT - 2]


def test_a_skip_ends_where_a_game_is_truncated(make: MakeGame) -> None:
    env = make("odd/Limited-v0", FrameSettings(size=None, stack=1, skip=3, gray=False))
    env.reset_games(EVERYWHERE)
    decisions = [env.step_games(np.zeros(2, dtype=np.int64)) for _ in range(2)]
    assert [d.reward.tolist() for d in decisions] == [[3.0] * 2, [1.0] * 2]
    assert decisions[1].truncated.all()


def test_actions_that_begin_at_one_are_shifted(make: MakeGame) -> None:
    env = make("odd/FromOne-v0")
    assert env.num_actions == 3
    env.reset_games(EVERYWHERE)
    env.step_games(np.array([0, 2]))
    vector: Any = env.vector
    assert [game.unwrapped.actions for game in vector.envs] == [[1], [3]]


def test_the_users_wrappers_are_applied_from_the_innermost(make: MakeGame) -> None:
    brighter = {"class_path": "odd_games.BrighterBy", "init_args": {"amount": 5}}
    env = make("odd/Counter-v0", wrappers=[brighter, "odd_games.TwiceAsBright"])
    assert counts(env.reset_games(EVERYWHERE)) == [[10], [10]]  # (0 + 5) * 2
    env = make("odd/Counter-v0", wrappers=["odd_games.TwiceAsBright", brighter])
    assert counts(env.reset_games(EVERYWHERE)) == [[5], [5]]


@pytest.mark.parametrize(
    ("wrapper", "error"),
    [
        ("odd_games.Missing", "odd_games.Missing cannot be imported"),
        ("nowhere.Wrapper", "nowhere.Wrapper cannot be imported"),
        ({"class_path": "odd_games.BrighterBy"}, "odd_games.BrighterBy cannot wrap odd/Counter-v0.*amount"),
        ({"path": "odd_games.BrighterBy"}, "is not a class path"),
        ({"class_path": "odd_games.BrighterBy", "args": {}}, "is not a class path"),
        (".odd_games.BrighterBy", ".odd_games.BrighterBy cannot be imported"),
        ("odd_games.no_wrapper", "odd_games.no_wrapper returns NoneType"),
    ],
)
def test_a_wrapper_that_cannot_be_applied_is_named(make: MakeGame, wrapper: Any, error: str) -> None:
    with pytest.raises(SettingError, match=f"data.wrappers: .*{error}"):
        make("odd/Counter-v0", wrappers=[wrapper])


def test_a_wrapper_that_replaces_its_own_step_is_not_left_out(make: MakeGame) -> None:
    env = make("odd/Counter-v0", wrappers=["odd_games.TenTimesTheReward"])
    env.reset_games(EVERYWHERE)
    assert env.step_games(np.zeros(2, dtype=np.int64)).reward.tolist() == [10.0, 10.0]


@pytest.mark.parametrize("game", ["odd/NumpyTypes-v0", "odd/Integers-v0"])
def test_rewards_and_flags_may_have_other_types(make: MakeGame, game: str) -> None:
    env = make(game, max_env_steps_per_game=OVER_AT)
    env.reset_games(EVERYWHERE)
    for _ in range(OVER_AT):
        decision = env.step_games(np.zeros(2, dtype=np.int64))
    assert decision.game_score.tolist() == [OVER_AT] * 2
    assert (decision.terminated.tolist(), decision.truncated.tolist()) == ([True] * 2, [False] * 2)


def test_a_reward_in_an_array_is_refused(make: MakeGame) -> None:
    env = make("odd/RewardInArray-v0", num_envs=1)
    env.reset_games(EVERYWHERE[:1])
    with pytest.raises(RunFailedError):
        env.step_games(np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("Floats", r"returns float64 \[4, 4\], but its observation space declares uint8 \[4, 4\]"),
        ("TooSmall", r"returns uint8 \[4, 1\], but"),
        ("Nothing", "returns object"),
        ("InitFails", "cannot be created .*no\ndisplay"),
    ],
)
def test_an_environment_that_contradicts_itself_is_named(make: MakeGame, mistake: str, error: str) -> None:
    with pytest.raises(SettingError, match=f"data.game: odd/{mistake}-v0 {error}"):
        make(f"odd/{mistake}-v0").reset_games(EVERYWHERE)


@pytest.mark.parametrize("where", ["Reset", "Step"])
def test_an_environment_that_cannot_play_ends_before_training_starts(where: str) -> None:
    with pytest.raises(RunFailedError, match=f"data.game: an environment of odd/{where}Fails-v0 .* failed: ValueError"):
        RolloutDataModule(f"odd/{where}Fails-v0", frames=AS_IT_IS)


def test_only_gymnasiums_own_car_racing_is_made_discrete(make: MakeGame) -> None:
    assert make("odd/CarRacing-v0").num_actions == 3


def test_wrappers_are_not_for_atari(make: MakeGame) -> None:
    with pytest.raises(SettingError, match=r"data\.wrappers: Atari"):
        make("Pong", FrameSettings(), wrappers=["odd_games.TwiceAsBright"])


def test_a_module_that_registers_the_game_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_games.py").write_text(
        "import gymnasium\nfrom odd_games import Counter\ngymnasium.register('Users-v0', Counter)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert is_gymnasium_id("users_games:Users-v0")
    assert canonical_game("users_games:Users-v0") == "users_games:Users-v0"
    with pytest.raises(SettingError, match="importing 'users_games' registers no environment 'Other-v0'"):
        canonical_game("users_games:Other-v0")
    (tmp_path / "broken_games.py").write_text("raise RuntimeError('no display')\n")
    for module in ("no_such_module", "broken_games", ".users_games"):
        with pytest.raises(SettingError, match=rf"'{module}' of .* cannot be imported"):
            canonical_game(f"{module}:Users-v0")
    del sys.modules["users_games"], gymnasium.registry["Users-v0"]


def test_an_atari_game_may_name_its_module() -> None:
    assert canonical_game("ale_py:ALE/Pong-v5") == "pong"
    assert not is_gymnasium_id("ale_py:ALE/Pong-v5")


def test_a_game_of_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(SettingError, match="Gymnasium has no environment 'Nothing/Game-v0'"):
        canonical_game("Nothing/Game-v0")


@pytest.mark.parametrize("decisions_per_seed", [0, 12, 1000])
def test_games_that_end_in_the_replayed_part_are_restored(make: MakeGame, decisions_per_seed: int) -> None:
    """Environments are seeded at different steps: what one of them replays runs over the ends of the others' games."""

    def go_on(env: GameEnv, steps: int, seed: int) -> list[np.ndarray]:
        actions = np.random.default_rng(seed).integers(0, 3, (steps, 3))
        seen = []
        for action in actions:
            decision = env.step_games(action)
            seen += [decision.pixels, decision.reward, decision.done, decision.game_score]
            if decision.done.any():
                env.reset_games(decision.done)
        return seen

    env, other = (make("odd/NoisyWalk-v0", num_envs=3, seed=seed) for seed in (0, 1))
    env.decisions_per_seed = other.decisions_per_seed = decisions_per_seed
    env.reset_games(np.ones(3, dtype=bool))
    go_on(env, 57, seed=1)
    file = io.BytesIO()
    torch.save(env.game_state(), file)
    file.seek(0)
    expected = go_on(env, 100, seed=2)
    other.restore_games(torch.load(file, weights_only=True))
    for found, truth in zip(go_on(other, 100, seed=2), expected, strict=True):
        assert np.array_equal(found, truth)


# --- environments of others -----------------------------------------------------------------------------------------


def test_colors_and_the_native_size_of_atari() -> None:
    gray = make_env("Breakout", 2, FrameSettings(size=None, stack=2), 0, num_threads=1, noop_max=1)
    color = make_env("Breakout", 2, FrameSettings(size=None, stack=2, gray=False), 0, num_threads=1, noop_max=1)
    assert (gray.frame_shape, color.frame_shape) == ((2, 210, 160), (6, 210, 160))
    actions = np.random.default_rng(0).integers(0, 4, (30, 2))
    seeds = np.array([1, 2])
    gray.reset_games(EVERYWHERE, seeds), color.reset_games(EVERYWHERE, seeds)
    for action in actions:
        shades, colors = gray.step_games(action).pixels, color.step_games(action).pixels
    luminance = colors.reshape(2, 2, 3, 210, 160).transpose(0, 1, 3, 4, 2) @ np.array([0.299, 0.587, 0.114])
    # ale-py's palette of grays rounds by itself
    assert np.abs(luminance - shades).mean() < 2
    assert len(np.unique(colors[0, :3].reshape(3, -1), axis=1).T) > 4
    gray.close()
    color.close()


MINATAR_CHANNELS = {"Asterix": 4, "Breakout": 4, "Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}


@pytest.mark.parametrize("game", MINATAR_CHANNELS)
def test_minatar_is_observed_as_it_is_and_restored(make: MakeGame, game: str) -> None:
    pytest.importorskip("minatar", reason="GPL, an extra that is not installed by default")
    name = f"MinAtar/{game}-v1"
    wrappers = ["a2d_lightning.rollouts.minatar.ResetStickyAction"]
    env = make(name, num_envs=4, wrappers=wrappers)
    assert env.frame_shape == (MINATAR_CHANNELS[game], 10, 10)
    vector: Any = env.vector
    pixels = env.reset_games(np.ones(4, dtype=bool))
    actions = np.random.default_rng(0).integers(0, env.num_actions, (300, 4))
    for action in actions[:200]:
        state = [inner.unwrapped.game.state() for inner in vector.envs]
        assert np.array_equal(pixels, 255 * np.stack(state).transpose(0, 3, 1, 2).astype(np.uint8))
        decision = env.step_games(action)
        pixels = env.reset_games(decision.done) if decision.done.any() else decision.pixels
    saved = env.game_state()
    other = make(name, num_envs=4, seed=5, wrappers=wrappers)
    other.reset_games(np.ones(4, dtype=bool))
    other.step_games(actions[0])  # an action that a sticky one would repeat
    other.restore_games(saved)
    for action in actions[200:]:
        decision, again = env.step_games(action), other.step_games(action)
        assert np.array_equal(decision.pixels, again.pixels)
        assert np.array_equal(decision.game_score, again.game_score)
        if decision.done.any():
            env.reset_games(decision.done), other.reset_games(decision.done)


def test_minigrid_has_its_image_in_a_dict(make: MakeGame) -> None:
    pytest.importorskip("minigrid", reason="an extra that is not installed by default")
    env = make("minigrid:MiniGrid-Empty-5x5-v0")
    assert env.frame_shape == (3, 7, 7)
    assert env.num_actions == 7
    env.reset_games(EVERYWHERE)
    for _ in range(120):  # its own limit is 100
        decision = env.step_games(np.array([0, 0]))
        if decision.done.any():
            break
    assert decision.truncated.all()


def test_car_racing_in_color(make: MakeGame) -> None:
    env = make("CarRacing-v3", FrameSettings(size=48, stack=2, skip=4, gray=False))
    assert env.frame_shape == (6, 48, 48)
    env.reset_games(EVERYWHERE)
    pixels = env.step_games(np.array([3, 3])).pixels
    # grass is greener than red
    assert pixels[:, 4].mean() > pixels[:, 3].mean() + 20
