"""The collector's own loop gives what TorchRL's loop gives; what a policy samples has the policy's distribution."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.collectors import Collector
from toy_game import CATCH, SIZE, register

from a2d_lightning.rollouts import atari
from a2d_lightning.rollouts.collector import RolloutCollector
from a2d_lightning.rollouts.envs import FrameSettings, make_env
from a2d_lightning.rollouts.policy import SamplingPolicy

register()
NUM_ENVS, STEPS = 3, 7
CPU = torch.device("cpu")
TOY_FRAMES = FrameSettings(size=SIZE, stack=1, skip=1)


class Scrambled(nn.Module):
    """Logits that depend on every pixel, so that a wrong frame becomes another action."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        flat = pixels.flatten(1).double()
        place = torch.arange(flat.shape[1], dtype=torch.float64)
        phase = (flat * (place % 97 + 1)).sum(1, keepdim=True)
        return torch.sin(phase * torch.arange(1.0, self.num_actions + 1)).float(), flat[:, 0]


class Likeliest(SamplingPolicy):
    """Draws nothing: TorchRL's loop asks for its numbers in another order."""

    def noise(self, *shape: int) -> Tensor:
        return torch.zeros(shape)


def rollouts_of(kind: type[Collector], game: str, frames: FrameSettings, count: int) -> list[TensorDict]:
    env = make_env(game, NUM_ENVS, frames, seed=0, num_threads=1, noop_max=30)
    policy = Likeliest(Scrambled(env.num_actions), 0, CPU)
    settings = {"track_traj_ids": False} if kind is Collector else {}
    collector = kind(
        env,
        policy,
        frames_per_batch=NUM_ENVS * STEPS,
        total_frames=-1,
        trust_policy=True,
        auto_register_policy_transforms=False,
        **settings,
    )
    rollouts = iter(collector)
    try:
        return [next(rollouts).clone() for _ in range(count)]
    finally:
        collector.shutdown()


@pytest.mark.parametrize(
    ("game", "num_actions", "frames", "frames_per_game"),
    [
        ("Breakout", 4, FrameSettings(size=42), 108_000),
        ("Pong", 6, FrameSettings(size=42), 164),  # games of 41 steps, cut
        (CATCH, 3, TOY_FRAMES, 108_000),
    ],
)
def test_rollouts_are_those_of_torchrl(
    game: str, num_actions: int, frames: FrameSettings, frames_per_game: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atari, "ATARI_FRAMES_PER_GAME", frames_per_game)
    ours, theirs = (rollouts_of(kind, game, frames, 60) for kind in (RolloutCollector, Collector))
    whole: Any = torch.stack(theirs)
    assert len(whole["action"].unique()) > 1
    done = whole["next", "done"][..., 0]
    assert done[:, :, :-1].any()  # a game that ends inside of a rollout
    assert done[:, :, -1].any() or game == "Breakout"  # where it takes luck
    assert whole["next", "life_lost"].any() == (game == "Breakout")
    assert whole["next", "truncated"].any() == (game == "Pong")
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine["pixels"], its["pixels"])
        assert torch.equal(mine["action"], its["action"])
        for name in ("pixels", "reward", "game_score", "life_lost", "terminated", "truncated", "done"):
            assert torch.equal(mine["next", name], its["next", name]), name
            assert mine["next", name].dtype == its["next", name].dtype
        logits, _ = Scrambled(num_actions)(its["pixels"].flatten(0, 1))
        log_prob = torch.distributions.Categorical(logits=logits).log_prob(its["action"].flatten())
        assert torch.allclose(mine["log_prob"].flatten(), log_prob, atol=1e-6)


def test_actions_have_the_policys_distribution() -> None:
    policy = SamplingPolicy(nn.Identity(), 0, CPU)
    probability = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
    draws = 100_000
    actions = (probability.log().float() + policy.noise(draws, 5)).argmax(-1)
    expected = draws * probability
    chi_square = ((actions.bincount(minlength=5) - expected).square() / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: once in a thousand


def test_a_policy_draws_anew_for_each_step_game_and_rollout() -> None:
    policy = SamplingPolicy(nn.Identity(), 0, CPU)
    drawn = torch.cat([policy.noise(4, 3, 6), policy.noise(4, 3, 6)])
    assert drawn.unique().numel() == drawn.numel()
    assert torch.equal(SamplingPolicy(nn.Identity(), 0, CPU).noise(4, 3, 6), drawn[:4])
    assert not torch.equal(SamplingPolicy(nn.Identity(), 1, CPU).noise(4, 3, 6), drawn[:4])
