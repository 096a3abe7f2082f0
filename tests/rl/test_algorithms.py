"""What reaches the losses from a rollout: the joint forward, A2C's one update, PPO's many."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from a2d_lightning.rl import losses
from a2d_lightning.rl.advantages import TDError
from a2d_lightning.rl.algorithms import A2C, PPO, Minibatch, joint_forward
from a2d_lightning.runtime.errors import SettingError

ACTIONS = 3


class LinearAgent(nn.Module):
    """Logits U x and value w.x of the flat pixels x; remembers the size of every batch it was given."""

    def __init__(self, inputs: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.actor = nn.Parameter(torch.randn(ACTIONS, inputs, generator=generator))
        self.critic = nn.Parameter(torch.randn(inputs, generator=generator))
        self.batches: list[int] = []

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(pixels))
        x = pixels.flatten(1).float()
        return x @ self.actor.T, x @ self.critic


class Echo(nn.Module):
    """Values an observation by the number painted on it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(pixels))
        number = pixels[:, 0, 0, 0]
        return torch.stack([number, -number], -1), number


def numbered_rollout() -> TensorDict:
    """Two games of four steps; observation t of game g is painted 10 g + t, and what follows is t + 1 of the same
    game, but for the ends of games, whose true last observation is painted 90 and on."""
    now = torch.arange(4.0) + torch.tensor([[0.0], [10.0]])
    after = now + 1
    done = torch.zeros(2, 4, dtype=torch.bool)
    terminated = done.clone()
    done[0, 1], after[0, 1] = True, 91.0  # truncated inside
    done[0, 2], after[0, 2] = True, 92.0  # and again
    done[1, 0], after[1, 0] = True, 93.0  # truncated inside
    done[1, 2], terminated[1, 2], after[1, 2] = True, True, 94.0  # terminal: its successor is worth nothing
    done[1, 3], after[1, 3] = True, 95.0  # truncated at the rollout's end
    return TensorDict(
        {
            "pixels": now[..., None, None, None],
            "next": {"pixels": after[..., None, None, None], "done": done, "terminated": terminated},
        },
        [2, 4],
    )


def random_rollout(num_envs: int = 3, length: int = 4, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_envs, length)
    frames = torch.randn(num_envs, length + 1, 1, 2, 2, generator=generator)
    done = torch.zeros(shape, dtype=torch.bool)
    done[0, 1] = True
    return TensorDict(
        {
            "pixels": frames[:, :-1],
            "action": torch.randint(ACTIONS, shape, generator=generator),
            "log_prob": -torch.rand(shape, generator=generator) - 0.5,
            "next": {
                "pixels": frames[:, 1:],
                "reward": torch.randn(shape, generator=generator),
                "done": done,
                "terminated": done.clone(),
            },
        },
        shape,
    )


def td_error(rollout: TensorDict, gamma: float = 0.9) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    after = rollout["next"]
    return lambda value, next_value: TDError()(
        gamma, value, next_value, after["reward"], after["done"], after["terminated"]
    )


def test_joint_forward_gives_logits_and_values_of_every_step() -> None:
    rollout = numbered_rollout()
    logits, value, _ = joint_forward(Echo(), rollout)
    number = rollout["pixels"].flatten(2)[..., 0]
    assert torch.equal(value, number)
    assert torch.equal(logits, torch.stack([number, -number], -1))


def test_joint_forward_shifts_values_by_one_step_and_ends_with_the_last_successor() -> None:
    rollout = numbered_rollout()
    rollout["next", "done"].zero_()
    rollout["next", "terminated"].zero_()
    _, _, next_value = joint_forward(Echo(), rollout)
    assert next_value.tolist() == [[1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 95.0]]


def test_joint_forward_values_a_truncated_game_by_its_true_last_observation() -> None:
    rollout = numbered_rollout()
    _, _, next_value = joint_forward(Echo(), rollout)
    after_terminal = rollout["next", "terminated"]
    assert after_terminal.nonzero().tolist() == [[1, 2]]
    # what follows the terminal step, (1, 2), has no meaning and is blotted out
    assert next_value.masked_fill(after_terminal, 0).tolist() == [[1.0, 91.0, 92.0, 4.0], [93.0, 12.0, 0.0, 95.0]]


def test_joint_forward_is_one_forward_of_no_more_frames_than_needed() -> None:
    # 2 x 4 acted on, 2 last successors, 3 games truncated inside; the terminal step and the one at the end add none
    network = Echo()
    joint_forward(network, numbered_rollout())
    assert network.batches == [8 + 2 + 3]


def test_joint_forward_leaves_the_rollout_alone() -> None:
    rollout = numbered_rollout()
    joint_forward(Echo(), rollout)
    for key, before in numbered_rollout().items(include_nested=True, leaves_only=True):
        assert torch.equal(rollout[key], before), key


def test_a2c_yields_the_whole_rollout_once_in_order() -> None:
    rollout, agent = random_rollout(), LinearAgent()
    (batch,) = A2C().minibatches(agent, rollout, td_error(rollout))
    logits, value = agent(rollout["pixels"].flatten(0, 1))
    _, next_value = agent(rollout["next", "pixels"].flatten(0, 1))
    advantage, target = td_error(rollout)(value.view(3, 4), next_value.view(3, 4))
    assert batch.rows.tolist() == list(range(12))
    assert torch.equal(batch.action, rollout["action"].flatten())
    assert torch.equal(batch.log_prob_acted, rollout["log_prob"].flatten())
    torch.testing.assert_close(batch.logits, logits)
    torch.testing.assert_close(batch.value, value)
    torch.testing.assert_close(batch.advantage, advantage.flatten())
    torch.testing.assert_close(batch.value_target, target.flatten())
    assert agent.batches[0] == 12 + 3


def test_a2c_gradient_on_a_linear_agent_by_hand() -> None:
    # V = w.x and logits = U x. With delta = r + gamma V(x') (1 - terminated) - V(x) held fixed (semi-gradient):
    #   d L_value / dw = -mean(delta x),   d L_policy / dU = -mean(delta (onehot(a) - pi) x^T)
    # and neither loss reaches the other head
    rollout, agent = random_rollout(), LinearAgent()
    algorithm = A2C()
    (batch,) = algorithm.minibatches(agent, rollout, td_error(rollout, gamma=0.9))
    (algorithm.policy_loss(batch) + losses.value_loss(batch.value, batch.value_target)).backward()

    with torch.no_grad():
        x, x_after = rollout["pixels"].reshape(12, 4), rollout["next", "pixels"].reshape(12, 4)
        going_on = 1 - rollout["next", "terminated"].flatten().float()
        delta = rollout["next", "reward"].flatten() + 0.9 * going_on * (x_after @ agent.critic) - x @ agent.critic
        towards = torch.eye(ACTIONS)[rollout["action"].flatten()] - (x @ agent.actor.T).softmax(-1)
        critic_gradient = -(delta[:, None] * x).mean(0)
        actor_gradient = -(delta[:, None, None] * towards[:, :, None] * x[:, None, :]).mean(0)
    torch.testing.assert_close(agent.critic.grad, critic_gradient)
    torch.testing.assert_close(agent.actor.grad, actor_gradient)


def test_ppo_yields_every_row_once_an_epoch_in_a_new_order() -> None:
    torch.manual_seed(0)
    rollout, agent = random_rollout(), LinearAgent()
    rows = [batch.rows for batch in PPO(epochs=3, num_minibatches=4).minibatches(agent, rollout, td_error(rollout))]
    assert [len(part) for part in rows] == [3] * 12
    orders = torch.cat(rows).view(3, 12)
    assert torch.equal(orders.sort(-1).values, torch.arange(12).expand(3, 12))
    assert len({tuple(order) for order in orders.tolist()}) == 3


def test_ppo_yields_as_many_parts_as_asked_where_the_rows_do_not_divide() -> None:
    rollout, agent = random_rollout(num_envs=3, length=3), LinearAgent()
    parts = list(PPO(epochs=1, num_minibatches=4).minibatches(agent, rollout, td_error(rollout)))
    assert sorted(len(batch.rows) for batch in parts) == [2, 2, 2, 3]


def test_ppo_parts_hold_what_belongs_to_their_rows() -> None:
    rollout, agent = random_rollout(), LinearAgent()
    for batch in PPO(epochs=1, num_minibatches=4).minibatches(agent, rollout, td_error(rollout)):
        assert torch.equal(batch.action, rollout["action"].flatten()[batch.rows])
        assert torch.equal(batch.log_prob_acted, rollout["log_prob"].flatten()[batch.rows])
        logits, value = agent(rollout["pixels"].flatten(0, 1)[batch.rows])
        torch.testing.assert_close(batch.logits, logits)
        torch.testing.assert_close(batch.value, value)


def test_ppo_normalizes_the_advantages_of_each_part() -> None:
    rollout, agent = random_rollout(), LinearAgent()
    (whole,) = A2C().minibatches(agent, rollout, td_error(rollout))
    for batch in PPO(epochs=1, num_minibatches=2).minibatches(agent, rollout, td_error(rollout)):
        assert batch.advantage.mean().item() == pytest.approx(0, abs=1e-6)  # float32, six numbers of size 1
        assert batch.advantage.square().mean().item() == pytest.approx(1, rel=1e-6)
        raw = whole.advantage[batch.rows].detach()
        assert torch.equal(raw.argsort(), batch.advantage.argsort())


def test_ppo_targets_stay_while_the_student_moves() -> None:
    rollout, agent = random_rollout(), LinearAgent()
    (before,) = A2C().minibatches(agent, rollout, td_error(rollout))
    for batch in PPO(epochs=2, num_minibatches=2).minibatches(agent, rollout, td_error(rollout)):
        torch.testing.assert_close(batch.value_target, before.value_target[batch.rows])
        torch.testing.assert_close(batch.value, agent(rollout["pixels"].flatten(0, 1)[batch.rows])[1])
        with torch.no_grad():
            agent.critic.add_(1.0)


def test_ppo_loss_clips_at_its_own_epsilon() -> None:
    # r = 0.6/0.4 = 1.5 with A = 1: clipped at 1 + 0.25
    row = torch.zeros(1, dtype=torch.int64)
    batch = Minibatch(
        logits=torch.tensor([[0.6, 0.4]]).log(),
        value=torch.zeros(1),
        action=row,
        log_prob_acted=torch.tensor([0.4]).log(),
        advantage=torch.ones(1),
        value_target=torch.zeros(1),
        rows=row,
    )
    assert PPO(clip_epsilon=0.25).policy_loss(batch).item() == pytest.approx(-1.25)


@pytest.mark.parametrize(
    ("name", "number"), [("epochs", 0), ("num_minibatches", 0), ("num_minibatches", -1), ("clip_epsilon", 0.0)]
)
def test_ppo_refuses_settings_that_are_not_positive(name: str, number: float) -> None:
    settings: dict[str, Any] = {name: number}
    with pytest.raises(SettingError, match=rf"algorithm\.{name}: {number}"):
        PPO(**settings)
