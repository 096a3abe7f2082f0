"""Eq. 3, 5 to 8 and PPO: numbers by hand, analytic gradients, torch.distributions and TorchRL as oracles."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss

from a2d_lightning.rl import losses

LN2 = math.log(2)


def logits_of(*rows: list[float]) -> Tensor:
    """Logits of these probabilities, float64; each row shifted by another constant, which must not matter."""
    log_pi = torch.tensor(rows, dtype=torch.float64).log()
    return log_pi + torch.arange(1.0, len(rows) + 1, dtype=torch.float64)[:, None]


def random_logits(seed: int, requires_grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(7, 5, generator=generator, dtype=torch.float64)).requires_grad_(requires_grad)


def test_log_prob_is_that_of_the_taken_action() -> None:
    logits = logits_of([0.5, 0.25, 0.25], [0.5, 0.25, 0.25])
    got = losses.log_prob(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(got, torch.tensor([-LN2, -2 * LN2], dtype=torch.float64))


def test_log_prob_agrees_with_torch_distributions() -> None:
    logits, action = random_logits(0), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    torch.testing.assert_close(losses.log_prob(logits, action), Categorical(logits=logits).log_prob(action))


def test_policy_loss_by_hand() -> None:
    # -(2 ln(1/2) + (-4) ln(1/4)) / 2 = -(-2 + 8) ln 2 / 2 = -3 ln 2
    logits = logits_of([0.5, 0.25, 0.25], [0.5, 0.25, 0.25])
    loss = losses.policy_loss(logits, torch.tensor([0, 2]), torch.tensor([2.0, -4.0], dtype=torch.float64))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-3 * LN2, rel=1e-12)


def test_policy_gradient_is_the_softmax_gradient() -> None:
    # d(-delta log pi(a)) / d logits = -delta (onehot(a) - pi), and the mean over N rows divides by N
    logits = random_logits(1, requires_grad=True)
    action = torch.tensor([4, 3, 2, 1, 0, 4, 3])
    delta = torch.linspace(-2, 3, 7, dtype=torch.float64)
    losses.policy_loss(logits, action, delta).backward()
    onehot = torch.eye(5, dtype=torch.float64)[action]
    analytic = -delta[:, None] * (onehot - logits.detach().softmax(-1)) / 7
    torch.testing.assert_close(logits.grad, analytic)


def test_policy_loss_does_not_differentiate_the_advantage() -> None:
    logits = random_logits(2, requires_grad=True)
    delta = torch.ones(7, dtype=torch.float64, requires_grad=True)
    losses.policy_loss(logits, torch.zeros(7, dtype=torch.int64), delta).backward()
    assert delta.grad is None


def test_value_loss_by_hand() -> None:
    # 1/2 ((2-1)^2 + (0-3)^2) / 2 = 2.5; gradient (V - target) / N = (1-2)/2, (3-0)/2
    value = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = losses.value_loss(value, torch.tensor([2.0, 0.0]))
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == 2.5
    assert value.grad is not None
    assert value.grad.tolist() == [-0.5, 1.5]


def test_value_loss_does_not_differentiate_its_target() -> None:
    value = torch.tensor([1.0, 3.0], requires_grad=True)
    target = torch.tensor([2.0, 0.0], requires_grad=True)
    losses.value_loss(value, target).backward()
    assert target.grad is None


def test_entropy_loss_by_hand() -> None:
    # (1/2)(-1) + (1/4)(-2) + 2 (1/8)(-3) = -1.75 bits and, uniform over 4, -2 bits; their mean is -1.875 ln 2 nats
    loss = losses.entropy_loss(logits_of([0.5, 0.25, 0.125, 0.125], [0.25] * 4))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-1.875 * LN2, rel=1e-12)


def test_entropy_loss_is_the_negative_entropy_of_torch_distributions() -> None:
    logits, oracle_logits = random_logits(3, requires_grad=True), random_logits(3, requires_grad=True)
    loss, oracle = losses.entropy_loss(logits), -Categorical(logits=oracle_logits).entropy().mean()
    loss.backward()
    oracle.backward()
    torch.testing.assert_close(loss, oracle)
    torch.testing.assert_close(logits.grad, oracle_logits.grad)


def test_descent_on_the_entropy_loss_flattens_the_policy() -> None:
    logits = logits_of([0.9, 0.1]).requires_grad_()
    losses.entropy_loss(logits).backward()
    assert logits.grad is not None
    flatter = (logits - logits.grad).softmax(-1)
    assert 0.5 < flatter[0, 0].item() < 0.9


def test_actor_distillation_by_hand_is_kl_from_teacher_to_student() -> None:
    # KL(1/2, 1/2 || 1/4, 3/4) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3) = 0.1438; the other way round it is 0.1308.
    # A second row that agrees has KL 0: the mean halves it.
    student, teacher = logits_of([0.25, 0.75], [0.5, 0.5]), logits_of([0.5, 0.5], [0.5, 0.5])
    loss = losses.actor_distillation_loss(student, teacher)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.25 * math.log(4 / 3), rel=1e-12)


def test_actor_distillation_agrees_with_torch_distributions() -> None:
    student, teacher = random_logits(4), random_logits(5)
    oracle = kl_divergence(Categorical(logits=teacher), Categorical(logits=student)).mean()
    torch.testing.assert_close(losses.actor_distillation_loss(student, teacher), oracle)


def test_actor_distillation_pulls_the_student_and_never_the_teacher() -> None:
    # d KL(teacher || student) / d student logits = (pi_student - pi_teacher) / N
    student, teacher = random_logits(4, requires_grad=True), random_logits(5, requires_grad=True)
    losses.actor_distillation_loss(student, teacher).backward()
    torch.testing.assert_close(student.grad, (student.softmax(-1) - teacher.softmax(-1)).detach() / 7)
    assert teacher.grad is None


def test_critic_distillation_by_hand_pulls_the_student_and_never_the_teacher() -> None:
    # 1/2 ((1-3)^2 + (2-(-2))^2) / 2 = 5; gradient (V_student - V_teacher) / N = -1, 2
    student = torch.tensor([1.0, 2.0], requires_grad=True)
    teacher = torch.tensor([3.0, -2.0], requires_grad=True)
    loss = losses.critic_distillation_loss(student, teacher)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == 5.0
    assert student.grad is not None
    assert student.grad.tolist() == [-1.0, 2.0]
    assert teacher.grad is None


# Eq. 8 with the paper's weights: 1, 1, alpha_1, alpha_2, alpha_3
EQUATION_8 = {"policy": 1.0, "value": 1.0, "entropy": 1e-2, "actor_distillation": 1e-1, "critic_distillation": 1e-3}


def test_total_loss_by_hand() -> None:
    # 2 + 3 + 0.01 (-5) + 0.1 (7) + 0.001 (11) = 5.661
    numbers = {"policy": 2.0, "value": 3.0, "entropy": -5.0, "actor_distillation": 7.0, "critic_distillation": 11.0}
    terms = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in numbers.items()}
    total = losses.total_loss(terms, EQUATION_8)
    total.backward()
    assert total.shape == ()
    assert total.item() == pytest.approx(5.661, rel=1e-12)
    for name, term in terms.items():
        assert term.grad is not None
        assert term.grad.item() == EQUATION_8[name], name


def test_total_loss_ignores_weights_of_absent_terms_but_not_terms_without_weight() -> None:
    # no teacher: 2 + 0.01 (-5) = 1.95
    terms = {"policy": torch.tensor(2.0), "entropy": torch.tensor(-5.0)}
    assert losses.total_loss(terms, EQUATION_8).item() == pytest.approx(1.95)
    with pytest.raises(KeyError, match="surprise"):
        losses.total_loss({**terms, "surprise": torch.tensor(1.0)}, EQUATION_8)


def test_ppo_clips_by_hand() -> None:
    # eps = 0.2. The objective min(r A, clip(r) A) of each row, and whether it still moves the policy:
    #   r = 0.6/0.4 = 1.5, A = +1: min( 1.5,  1.2) =  1.2  clipped, no gradient
    #   r = 1.5,           A = -1: min(-1.5, -1.2) = -1.5  gradient
    #   r = 0.3/0.6 = 0.5, A = +1: min( 0.5,  0.8) =  0.5  gradient
    #   r = 0.5,           A = -1: min(-0.5, -0.8) = -0.8  clipped, no gradient
    #   r = 0.55/0.5 = 1.1, A = 2: in range            2.2  gradient
    # loss -(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5 = -0.32; gradient on logits -A r (onehot - pi) / 5 or none
    now = torch.tensor([0.6, 0.6, 0.3, 0.3, 0.55], dtype=torch.float64)
    acted = torch.tensor([0.4, 0.4, 0.6, 0.6, 0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    logits = torch.stack([now, 1 - now], -1).log().requires_grad_()
    loss = losses.ppo_policy_loss(logits, torch.zeros(5, dtype=torch.int64), acted.log(), advantage, 0.2)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-0.32, rel=1e-12)
    moves = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    of_taken = -moves * advantage * (now / acted) * (1 - now) / 5
    torch.testing.assert_close(logits.grad, torch.stack([of_taken, -of_taken], -1))


def test_ppo_does_not_differentiate_advantage_or_acting_policy() -> None:
    logits = random_logits(6, requires_grad=True)
    acted = torch.full((7,), -1.0, dtype=torch.float64, requires_grad=True)
    advantage = torch.ones(7, dtype=torch.float64, requires_grad=True)
    losses.ppo_policy_loss(logits, torch.zeros(7, dtype=torch.int64), acted, advantage, 0.2).backward()
    assert acted.grad is None
    assert advantage.grad is None


def test_ppo_and_its_gradient_agree_with_torchrl() -> None:
    generator = torch.Generator().manual_seed(7)
    rows, inputs, actions, epsilon = 64, 6, 4, 0.1
    observation = torch.randn(rows, inputs, generator=generator)
    policy = nn.Linear(inputs, actions)
    with torch.no_grad():
        policy.weight.copy_(torch.randn(policy.weight.shape, generator=generator))
        drifted = policy(observation) + 0.2 * torch.randn(rows, actions, generator=generator)
    action = torch.randint(actions, (rows,), generator=generator)
    acted = losses.log_prob(drifted, action)
    advantage = torch.randn(rows, generator=generator)
    ratio = (losses.log_prob(policy(observation), action) - acted).exp()
    assert 0.1 < ((ratio - 1).abs() > epsilon).float().mean() < 0.9  # some rows are out of range, some are not

    actor = ProbabilisticActor(
        TensorDictModule(policy, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(nn.Linear(inputs, 1), in_keys=["observation"])
    oracle = ClipPPOLoss(actor, critic, clip_epsilon=epsilon, entropy_bonus=False, critic_coeff=None, functional=False)
    batch = TensorDict(
        {
            "observation": observation,
            "action": action,
            oracle.tensor_keys.sample_log_prob: acted,
            "advantage": advantage[:, None],
            "value_target": torch.zeros(rows, 1),  # demanded, but only of use to the critic's loss
        },
        [rows],
    )
    theirs = oracle(batch)["loss_objective"]
    (their_gradient,) = torch.autograd.grad(theirs, policy.weight)
    ours = losses.ppo_policy_loss(policy(observation), action, acted, advantage, epsilon)
    (our_gradient,) = torch.autograd.grad(ours, policy.weight)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_gradient, their_gradient)
