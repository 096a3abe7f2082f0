"""What a training batch holds, how a budget becomes epochs, and which weights collect which rollout."""

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from toy_game import CATCH, SIZE, register

from a2d_lightning.data import EVALUATION_BATCH, RolloutDataModule
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.runtime.errors import SettingError

register()
TOY_FRAMES = FrameSettings(size=SIZE, stack=1, skip=1)


class Uniform(nn.Module):
    """Plays at random."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(pixels), self.num_actions), torch.zeros(len(pixels))


def toy_data(**settings: Any) -> RolloutDataModule:
    return RolloutDataModule(**{"game": CATCH, "num_envs": 2, "frames": TOY_FRAMES, **settings})


def on_rank(data: RolloutDataModule, rank: int = 0, world_size: int = 1, env_steps: int = 0) -> RolloutDataModule:
    """Gives ``data`` what it reads of a trainer."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=world_size,
        num_devices=1,
        local_rank=0,
        callbacks=[],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        lightning_module=SimpleNamespace(agent=Uniform(data.num_actions), env_steps=env_steps),
    )
    return data


@pytest.fixture
def collected() -> Iterator[Any]:
    """Rollouts of one epoch of a data module; its collector is shut down in the end."""
    used = []

    def collect(data: RolloutDataModule) -> list[TensorDict]:
        used.append(data)
        # the collector writes each rollout over the one before
        return [rollout.clone() for rollout in data.train_dataloader()]

    yield collect
    for data in used:
        data.teardown("fit")


def raw_rollout(reward: list[float], done: list[bool], truncated: list[bool], life_lost: list[bool]) -> TensorDict:
    """What the collector yields of one environment: flags and rewards ``[1, T, 1]``."""
    length = len(reward)
    column = lambda values: torch.tensor(values)[None, :, None]  # noqa: E731
    return TensorDict(
        {
            "pixels": torch.zeros(1, length, 1, 2, 2, dtype=torch.uint8),
            "action": torch.zeros(1, length, dtype=torch.int64),
            "log_prob": torch.zeros(1, length),
            "next": {
                "pixels": torch.ones(1, length, 1, 2, 2, dtype=torch.uint8),
                "reward": column(reward),
                "done": column(done),
                "truncated": column(truncated),
                "terminated": column(done) & ~column(truncated),
                "life_lost": column(life_lost),
                "game_score": column(reward).cumsum(1),
            },
        },
        [1, length],
    )


# --- a training batch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", ["SpaceInvaders", CATCH])
def test_a_rollout_has_the_documented_keys_shapes_and_types(collected: Any, game: str) -> None:
    frames = FrameSettings(size=SIZE, stack=2, skip=1)
    data = on_rank(
        RolloutDataModule(game, num_envs=3, rollout_length=4, total_env_steps=1, env_steps_per_epoch=1, frames=frames)
    )
    (rollout,) = collected(data)
    assert rollout.shape == (3, 4)
    picture = (2, SIZE, SIZE)
    expected = {
        "pixels": (picture, torch.uint8),
        "action": ((), torch.int64),
        "log_prob": ((), torch.float32),
        ("next", "pixels"): (picture, torch.uint8),
        ("next", "reward"): ((), torch.float32),
        ("next", "terminated"): ((), torch.bool),
        ("next", "done"): ((), torch.bool),
        ("next", "game_over"): ((), torch.bool),
        ("next", "game_score"): ((), torch.float32),
    }
    assert set(rollout.keys(include_nested=True, leaves_only=True)) == set(expected)
    for key, (shape, dtype) in expected.items():
        assert rollout[key].shape == (3, 4, *shape)
        assert rollout[key].dtype == dtype
    assert torch.allclose(rollout["log_prob"], -torch.tensor(float(data.num_actions)).log())


@pytest.mark.parametrize(("clip_rewards", "learned"), [(True, [-1.0, 0.0, 1.0]), (False, [-5.0, 0.0, 30.0])])
def test_rewards_are_signs_for_learning_only(clip_rewards: bool, learned: list[float]) -> None:
    nothing = [False] * 3
    after = toy_data(clip_rewards=clip_rewards).for_learning(raw_rollout([-5.0, 0.0, 30.0], nothing, nothing, nothing))[
        "next"
    ]
    assert after["reward"][0].tolist() == learned
    assert after["game_score"][0].tolist() == [-5.0, -5.0, 25.0]


@pytest.mark.parametrize("life_loss_terminal", [True, False])
def test_a_lost_life_is_terminal_only_where_asked_and_never_ends_the_game(life_loss_terminal: bool) -> None:
    # nothing; a lost life; a truncated game; a terminated one; a truncated one that loses a life at once
    after = toy_data(life_loss_terminal=life_loss_terminal).for_learning(
        raw_rollout(
            [0.0] * 5,
            done=[False, False, True, True, True],
            truncated=[False, False, True, False, True],
            life_lost=[False, True, False, True, True],
        )
    )["next"]
    lost = life_loss_terminal
    assert after["terminated"][0].tolist() == [False, lost, False, True, lost]
    assert after["done"][0].tolist() == [False, lost, True, True, True]
    assert after["game_over"][0].tolist() == [False, False, True, True, True]


def test_rollouts_follow_each_other_without_a_gap_across_epochs() -> None:
    data = on_rank(toy_data(rollout_length=4, total_env_steps=40, env_steps_per_epoch=40))
    loader = data.train_dataloader()
    rollouts = [rollout.clone() for _ in range(2) for rollout in loader]
    data.teardown("fit")
    assert len(rollouts) == 10
    whole: Any = torch.cat(rollouts, 1)
    goes_on = ~whole["next", "game_over"][:, :-1]
    assert torch.equal(whole["next", "pixels"][:, :-1][goes_on], whole["pixels"][:, 1:][goes_on])
    assert 2 <= (~goes_on).sum() <= 8  # of 40 steps each, games of 11


def test_ranks_and_resumed_runs_play_different_games_and_a_rerun_the_same(collected: Any) -> None:
    def play(rank: int = 0, env_steps: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
        data = toy_data(rollout_length=22, total_env_steps=1, env_steps_per_epoch=1, num_envs=8, seed=seed)
        (rollout,) = collected(on_rank(data, rank, 2, env_steps))
        return rollout["pixels"], rollout["action"]

    pixels, action = play()
    again = play()
    assert torch.equal(pixels, again[0])
    assert torch.equal(action, again[1])
    for other in (play(rank=1), play(env_steps=44), play(seed=1)):
        assert not torch.equal(pixels, other[0])
        assert not torch.equal(action, other[1])


# --- which weights collect ------------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Its action is the number of updates so far (modulo the number of actions)."""

    updates: Tensor

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.updates = nn.Parameter(torch.zeros(()))
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.full((len(pixels),), int(self.updates) % self.num_actions)
        return 1000.0 * nn.functional.one_hot(chosen, self.num_actions), torch.zeros(len(pixels))


class CountingLearner(L.LightningModule):
    """An update adds one to its agent's counter."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.agent = Counter(num_actions)
        self.env_steps = 0
        self.acted: list[Tensor] = []

    def training_step(self, rollout: TensorDict, batch_idx: int) -> None:
        self.acted.append(rollout["action"].clone())
        with torch.no_grad():
            self.agent.updates += 1

    def configure_optimizers(self) -> None:
        return None


def quiet_trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        max_epochs=3,
        num_sanity_val_steps=0,
    )


def test_rollout_k_is_collected_with_the_weights_after_k_updates() -> None:
    # a run of 3 epochs of 4 rollouts: the first of an epoch must be no exception
    data = RolloutDataModule("Pong", num_envs=2, rollout_length=3, total_env_steps=72, env_steps_per_epoch=24)
    learner = CountingLearner(data.num_actions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer().fit(learner, datamodule=data)
    assert len(learner.acted) == 12
    for k, action in enumerate(learner.acted):
        assert action.tolist() == [[k % 6] * 3] * 2
    assert data.collecting is None  # the emulators have ended


# --- the budget -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_epoch", "world_size", "rollouts"),
    [
        (20, 1, 2),  # 2 * 5 steps a rollout
        (20, 2, 1),  # two processes collect twice as much at once
        (21, 1, 3),  # rounded up
        (1, 1, 1),  # the shortest epoch
        (500_000, 1, 50_000),  # the paper's budget
    ],
)
def test_an_epoch_is_whole_rollouts(per_epoch: int, world_size: int, rollouts: int) -> None:
    data = toy_data(rollout_length=5, total_env_steps=7, env_steps_per_epoch=per_epoch)
    on_rank(data, world_size=world_size)
    assert data.rollouts_per_epoch == rollouts


def test_a_process_without_a_game_to_evaluate_is_refused() -> None:
    # it would skip the evaluation, and the others would wait for its scores
    data = toy_data(evaluation_games=2)
    on_rank(data, world_size=3)
    with pytest.raises(SettingError, match="2 games for 3 processes"):
        data.setup("fit")
    on_rank(data, world_size=2)
    data.setup("fit")


# --- seeds of evaluated games ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("games", [1, 30, 70])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_ranks_share_all_games_without_repeats(stage: str, games: int, world_size: int) -> None:
    data = toy_data(evaluation_games=games)

    def batches(rank: int, of: int) -> list[Tensor]:
        on_rank(data, rank, of)
        loader = data.val_dataloader() if stage == "val" else data.test_dataloader()
        assert len(loader) == len(list(loader))
        return list(loader)

    alone = torch.cat(batches(0, 1)).tolist()
    assert len(set(alone)) == games
    shared = []
    for rank in range(world_size):
        mine = batches(rank, world_size)
        # no batch is empty: an environment of no games cannot be made
        assert all(1 <= len(batch) <= EVALUATION_BATCH and batch.dtype == torch.int64 for batch in mine)
        shared.append([seed for batch in mine for seed in batch.tolist()])
    assert max(map(len, shared)) - min(map(len, shared)) <= 1
    assert sorted(seed for part in shared for seed in part) == sorted(alone)


def test_the_final_test_plays_games_that_no_evaluation_played() -> None:
    data = toy_data()
    validation, test = (torch.cat(list(loader)) for loader in (data.val_dataloader(), data.test_dataloader()))
    assert not set(validation.tolist()) & set(test.tolist())
    assert torch.equal(validation, torch.cat(list(data.val_dataloader())))  # the same ones each time
    assert not set(validation.tolist()) & set(torch.cat(list(toy_data(seed=1).val_dataloader())).tolist())


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["size", "stack", "skip"])
@pytest.mark.parametrize("value", [0, -1])
def test_frames_that_are_not_positive_are_refused(name: str, value: int) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(SettingError, match=f"data.frames.{name}: {value} "):
        RolloutDataModule("Pong", frames=FrameSettings(**settings))


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_a_probability_outside_0_to_1_is_refused(probability: float) -> None:
    with pytest.raises(SettingError, match=f"sticky_action_probability: {probability} "):
        RolloutDataModule("Pong", frames=FrameSettings(sticky_action_probability=probability))


def test_the_data_says_what_the_model_needs_to_know() -> None:
    pong = RolloutDataModule("ALE/Pong-v5", frames=FrameSettings(size=42))
    assert (pong.game, pong.num_actions, pong.frame_shape) == ("pong", 6, (4, 42, 42))
    catch = toy_data()
    assert (catch.game, catch.num_actions, catch.frame_shape) == (CATCH, 3, (1, SIZE, SIZE))
