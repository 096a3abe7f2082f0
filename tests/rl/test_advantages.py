"""Eq. 4, GAE and n-step returns: by hand, and against recursions written out here."""

import pytest
import torch
from torch import Tensor

from a2d_lightning.rl.advantages import GAE, NStep, TDError
from a2d_lightning.runtime.errors import SettingError

GAMMA = 0.875
"""Exact in float32, as is every lambda below: TorchRL multiplies by them in float32 even where values are float64."""


def random_rollout(seed: int = 0, num_envs: int = 4, length: int = 9) -> dict[str, Tensor]:
    """A rollout with games that end, by a terminal state or cut off, inside it and at its last step."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_envs, length)
    value, next_value, reward = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, *shape, generator=generator) < 0.2
    terminated[0, -1], truncated[1, -1] = True, True
    done = terminated | truncated
    assert (done & ~terminated)[:, :-1].any()
    assert terminated[:, :-1].any()
    # within a game V(s_t+1) is the next step's V(s_t); where one ended, next_value is of a state that was not acted on
    next_value[:, :-1] = torch.where(done[:, :-1], next_value[:, :-1], value[:, 1:])
    return {"value": value, "next_value": next_value, "reward": reward, "done": done, "terminated": terminated}


def gae_by_recursion(gamma: float, lmbda: float, rollout: dict[str, Tensor]) -> Tensor:
    """A_t = delta_t + gamma lambda (not done) A_t+1, with delta_t = r_t + gamma (not terminated) V(s_t+1) - V(s_t)."""
    rows = {name: x.tolist() for name, x in rollout.items()}
    advantage = torch.zeros_like(rollout["value"])
    num_envs, length = advantage.shape
    for env in range(num_envs):
        after = 0.0
        for t in reversed(range(length)):
            bootstrap = 0.0 if rows["terminated"][env][t] else rows["next_value"][env][t]
            delta = rows["reward"][env][t] + gamma * bootstrap - rows["value"][env][t]
            after = delta + (0.0 if rows["done"][env][t] else gamma * lmbda * after)
            advantage[env, t] = after
    return advantage


def n_step_by_sum(gamma: float, rollout: dict[str, Tensor]) -> Tensor:
    """The return itself: discounted rewards up to the game's or the rollout's end, bootstrapped unless terminal."""
    target = torch.zeros_like(rollout["value"])
    num_envs, length = target.shape
    for env in range(num_envs):
        for start in range(length):
            discount, total = 1.0, 0.0
            for t in range(start, length):
                total += discount * rollout["reward"][env, t].item()
                discount *= gamma
                if rollout["done"][env, t] or t == length - 1:
                    total += 0.0 if rollout["terminated"][env, t] else discount * rollout["next_value"][env, t].item()
                    break
            target[env, start] = total
    return target


def test_td_error_by_hand_bootstraps_past_truncated_but_not_past_terminal_steps() -> None:
    # gamma = 1/2
    #   t=0            delta =  1 + 2/2  - 1 =  1, target 2
    #   t=1 terminated delta =  0        - 2 = -2, target 0
    #   t=2 truncated  delta = -1 + 10/2 - 3 =  1, target 4
    advantage, target = TDError()(
        gamma=0.5,
        value=torch.tensor([[1.0, 2.0, 3.0]]),
        next_value=torch.tensor([[2.0, 3.0, 10.0]]),
        reward=torch.tensor([[1.0, 0.0, -1.0]]),
        done=torch.tensor([[False, True, True]]),
        terminated=torch.tensor([[False, True, False]]),
    )
    assert advantage.tolist() == [[1.0, -2.0, 1.0]]
    assert target.tolist() == [[2.0, 0.0, 4.0]]


def test_n_step_by_hand_cuts_the_trace_where_a_game_ends() -> None:
    # gamma = 1/2, from the end
    #   t=3            r=8, bootstrap 4: return 8 + 4/2 = 10, V=5: advantage 5
    #   t=2 truncated  r=4, bootstrap 2: return 4 + 2/2 =  5, V=0: advantage 5 (t=3 is another game)
    #   t=1            r=2:              return 2 + 5/2 = 4.5, V=1: advantage 3.5
    #   t=0 terminated r=1:              return 1, V=3: advantage -2
    advantage, target = NStep()(
        gamma=0.5,
        value=torch.tensor([[3.0, 1.0, 0.0, 5.0]]),
        next_value=torch.tensor([[9.0, 0.0, 2.0, 4.0]]),
        reward=torch.tensor([[1.0, 2.0, 4.0, 8.0]]),
        done=torch.tensor([[True, False, True, False]]),
        terminated=torch.tensor([[True, False, False, False]]),
    )
    assert target.tolist() == [[1.0, 4.5, 5.0, 10.0]]
    assert advantage.tolist() == [[-2.0, 3.5, 5.0, 5.0]]


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 0.9375, 1.0])
def test_gae_is_the_recursion(lmbda: float) -> None:
    rollout = random_rollout()
    advantage, target = GAE(lmbda)(GAMMA, **rollout)
    expected = gae_by_recursion(GAMMA, lmbda, rollout)
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(target, expected + rollout["value"])


def test_gae_of_zero_is_the_td_error() -> None:
    rollout = random_rollout(1)
    for ours, theirs in zip(GAE(0.0)(GAMMA, **rollout), TDError()(GAMMA, **rollout), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_n_step_is_the_sum_of_discounted_rewards() -> None:
    rollout = random_rollout(2)
    advantage, target = NStep()(GAMMA, **rollout)
    expected = n_step_by_sum(GAMMA, rollout)
    torch.testing.assert_close(target, expected)
    torch.testing.assert_close(advantage, expected - rollout["value"])


@pytest.mark.parametrize("estimator", [TDError(), NStep(), GAE()])
def test_neither_advantage_nor_target_is_differentiable(estimator: TDError | GAE) -> None:
    rollout = random_rollout(3)
    rollout["value"].requires_grad_()
    rollout["next_value"].requires_grad_()
    advantage, target = estimator(GAMMA, **rollout)
    assert advantage.shape == target.shape == rollout["reward"].shape
    assert not advantage.requires_grad
    assert not target.requires_grad


@pytest.mark.parametrize("lmbda", [1.2, -0.1, float("nan")])
def test_a_lambda_outside_its_range_is_refused(lmbda: float) -> None:
    with pytest.raises(SettingError, match=rf"advantage\.lmbda: {lmbda}"):
        GAE(lmbda)
