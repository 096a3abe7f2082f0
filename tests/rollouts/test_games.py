import pytest
import torch

from a2d_lightning.rollouts.envs import make_env
from a2d_lightning.rollouts.games import FrameSettings, atari_games, atari_rom, canonical_game
from a2d_lightning.runtime.errors import SettingError

# fmt: off
TABLE_3 = [
    "Breakout", "Alien", "Asterix", "Atlantis", "TimePilot", "SpaceInvaders", "WizardOfWor", "Qbert", "Pong",
    "Tennis", "Amidar", "Asteroids", "Assault", "BankHeist", "BattleZone", "BeamRider", "Bowling", "Boxing",
    "Centipede", "ChopperCommand", "CrazyClimber", "DemonAttack", "Gopher", "Gravitar", "Jamesbond", "Kangaroo",
    "Krull", "KungFuMaster", "MsPacman", "NameThisGame", "PrivateEye", "Riverraid",
]
# fmt: on
"""The 32 games of the paper's Table 3, in its spelling."""


@pytest.mark.parametrize(
    "name",
    [
        "SpaceInvaders",
        "space_invaders",
        "space invaders",
        "ALE/SpaceInvaders-v5",
        "SpaceInvaders-v4",
        "SpaceInvadersNoFrameskip-v4",
        "SpaceInvadersDeterministic-v4",
    ],
)
def test_every_usual_spelling_of_a_game_is_one_rom(name: str) -> None:
    assert atari_rom(name) == "space_invaders"
    assert canonical_game(name) == "space_invaders"


@pytest.mark.thorough
@pytest.mark.parametrize("game", TABLE_3)
def test_each_game_of_the_paper_starts(game: str) -> None:
    env = make_env(game, 1, FrameSettings(), seed=0, num_threads=1, noop_max=1)
    state = env.reset()
    assert state["pixels"].shape == (1, 4, 84, 84)
    for _ in range(30):  # Amidar and Q*bert begin with a black screen
        state["action"] = torch.zeros(1, dtype=torch.int64)
        _, state = env.step_and_maybe_reset(state)
    assert state["pixels"].unique().numel() > 1
    env.close()


def test_the_papers_games_are_32_different_ones() -> None:
    assert len({atari_rom(game) for game in TABLE_3}) == 32


def test_every_game_is_found_by_its_own_name() -> None:
    assert [atari_rom(game) for game in atari_games()] == list(atari_games())


@pytest.mark.parametrize(("typo", "meant"), [("Pongg", "pong"), ("Brekout", "breakout"), ("MsPacmann", "ms_pacman")])
def test_a_mistyped_game_is_answered_with_near_ones(typo: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"data.game.*{typo}.*did you mean.*\\b{meant}\\b"):
        make_env(typo, 1, FrameSettings(), seed=0, num_threads=1, noop_max=1)


def test_a_game_like_no_other_is_refused_in_one_line() -> None:
    with pytest.raises(SettingError, match=r"data\.game.*'zzzzzz'") as caught:
        atari_rom("zzzzzz")
    assert "\n" not in str(caught.value)
    assert "did you mean" not in str(caught.value)
