"""The supernet: the mixture, the cost, the derived network."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from a2d_lightning.macs import count_macs
from a2d_lightning.networks import ActorCritic, count_parameters, initialize
from a2d_lightning.search_space import OPERATORS, Architecture, Plan
from a2d_lightning.supernet import OPERATOR_NAMES, MixedCell, Supernet, inherit_weights

PLAN = Plan((2, 2, 1), (4, 6, 5))
FRAME = (3, 37, 29)  # odd all the way: 19x15, 10x8, 5x4


def make_supernet(plan: Plan = PLAN, seed: int = 0, frame: tuple[int, int, int] = FRAME) -> Supernet:
    torch.manual_seed(seed)
    supernet = Supernet(plan, frame)
    with torch.no_grad():
        supernet.alpha_logits.normal_()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            # as if it had been trained: no norm is the identity
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    supernet.draw(torch.Generator().manual_seed(seed))
    return supernet


def decide(supernet: Supernet, seed: int) -> tuple[str, ...]:
    """One-hot alpha at random operators: the others' shares underflow to 0."""
    chosen = torch.randint(len(OPERATOR_NAMES), (len(supernet.cells),), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        supernet.alpha_logits.fill_(-1e3)
        supernet.alpha_logits[torch.arange(len(chosen)), chosen] = 1e3
        supernet.tau.fill_(0.05)
    return tuple(OPERATOR_NAMES[i] for i in chosen)


def random_pixels(batch: int, frame: tuple[int, int, int] = FRAME) -> Tensor:
    return torch.randint(256, (batch, *frame), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


# --- the derived network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_at_one_hot_alpha_the_derived_network_with_the_same_weights_is_the_supernet(seed: int, training: bool) -> None:
    supernet = make_supernet(seed=seed)
    operators = decide(supernet, seed)
    architecture = supernet.derive()
    assert architecture.operators == operators
    backbone = architecture.build(FRAME)
    inherit_weights(backbone, supernet, operators)
    supernet.train(training)
    backbone.train(training)
    x = torch.rand(3, *FRAME)
    with torch.no_grad():
        expected = backbone(x)
        assert expected.std() > 0
        # eight operators times 0 and one times 1: exact
        assert torch.equal(supernet(x), expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_of_the_supernet_is_the_derived_networks(name: str) -> None:
    supernet = make_supernet().eval()
    with torch.no_grad():
        supernet.alpha_logits.fill_(-1e3)
        supernet.alpha_logits[:, OPERATOR_NAMES.index(name)] = 1e3
        backbone = supernet.derive().build(FRAME)
        inherit_weights(backbone, supernet, [name] * len(supernet.cells))
        x = torch.rand(2, *FRAME)
        assert torch.equal(supernet(x), backbone.eval()(x))


@pytest.mark.parametrize("training", [False, True])
def test_policy_and_value_of_the_derived_agent_are_the_supernets(training: bool) -> None:
    supernet = make_supernet()
    operators = decide(supernet, seed=5)
    searched = initialize(ActorCritic(supernet, FRAME, 4))
    backbone = supernet.derive().build(FRAME)
    inherit_weights(backbone, supernet, operators)
    derived = ActorCritic(backbone, FRAME, 4)
    derived.actor, derived.critic = searched.actor, searched.critic
    searched.train(training)
    derived.train(training)
    with torch.no_grad():
        for theirs, own in zip(searched(random_pixels(3)), derived(random_pixels(3)), strict=True):
            assert own.any()
            assert torch.equal(theirs, own)


def test_inheriting_copies_weights_and_does_not_share_them() -> None:
    supernet = make_supernet()
    operators = decide(supernet, seed=1)
    backbone = supernet.derive().build(FRAME)
    inherit_weights(backbone, supernet, operators)
    assert not {p.data_ptr() for p in backbone.parameters()} & {p.data_ptr() for p in supernet.parameters()}


@pytest.mark.parametrize("seed", range(4))
def test_the_derived_architecture_says_what_its_network_is(seed: int) -> None:
    supernet = make_supernet(seed=seed)
    architecture = supernet.derive("pong", "a_teacher", 1234)
    backbone = architecture.build(FRAME)
    assert architecture.operators == tuple(OPERATOR_NAMES[i] for i in supernet.alpha_logits.argmax(-1))
    assert architecture.parameters == count_parameters(backbone)
    assert architecture.macs == supernet.argmax_macs() == count_macs(backbone, torch.Size(FRAME))
    assert (architecture.plan, architecture.frame_shape) == (PLAN, FRAME)
    assert (architecture.game, architecture.teacher, architecture.env_steps) == ("pong", "a_teacher", 1234)


def test_macs_are_exact_beyond_the_integers_of_float32() -> None:
    # a 5x5 convolution of 61 channels on 42x42 maps: 4 times an odd number above 2^24, so float32 has to round it
    macs = 25 * 61 * 61 * 42 * 42
    assert macs // 4 % 2 == 1
    assert macs // 4 > 2**24
    supernet = make_supernet(Plan((1,), (61,)), frame=(1, 84, 84))
    with torch.no_grad():
        supernet.alpha_logits[0, OPERATOR_NAMES.index("conv_k5")] = 1e3
    # stem 9 * 61 * 42^2, FC 61 * 256
    assert supernet.argmax_macs() == macs + 9 * 61 * 42 * 42 + 61 * 256


def test_an_architecture_survives_its_file(tmp_path: Path) -> None:
    architecture = make_supernet().derive("pong", "t", 5)
    architecture.save(tmp_path / "a.json")
    assert Architecture.load(tmp_path / "a.json") == architecture


# --- Eq. 10 and 11 ----------------------------------------------------------------------------------------------------


def test_the_mixture_is_equation_11() -> None:
    supernet = make_supernet()
    alpha = torch.rand(supernet.alpha_logits.shape, generator=torch.Generator().manual_seed(1)) + 0.1
    alpha = alpha / alpha.sum(-1, keepdim=True)
    with torch.no_grad():
        supernet.alpha_logits.copy_(alpha.log() + 3.0)  # any constant a cell: alpha is the logits' softmax
        supernet.tau.fill_(0.7)
    mixture = supernet.train().mixture()
    for cell in range(len(alpha)):
        weights = [math.exp((math.log(a) + g) / 0.7) for a, g in zip(alpha[cell], supernet.gumbel[cell], strict=True)]
        by_hand = torch.tensor([w / sum(weights) for w in weights])
        torch.testing.assert_close(mixture[cell], by_hand)


def test_noise_mixes_in_train_mode_only() -> None:
    supernet = make_supernet()
    with torch.no_grad():
        supernet.tau.fill_(2.0)
    quiet = ((supernet.log_alpha()) / 2.0).softmax(-1)
    torch.testing.assert_close(supernet.eval().mixture(), quiet)
    # the draw's noise is of size 1, so the shares differ by far more than rounding
    assert (supernet.train().mixture() - quiet).abs().max() > 0.01
    supernet.gumbel.zero_()
    torch.testing.assert_close(supernet.mixture(), quiet)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0, 100.0])
def test_without_noise_the_largest_share_is_the_largest_alpha_at_any_temperature(tau: float) -> None:
    supernet = make_supernet()
    supernet.tau.fill_(tau)
    supernet.gumbel.zero_()
    assert torch.equal(supernet.mixture().argmax(-1), supernet.alpha_logits.argmax(-1))


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    # n = 1000 * 5 * 9 = 45,000 samples, sigma^2 = pi^2 / 6, kurtosis 3 + 12/5.
    # Five standard errors: of the mean sigma / sqrt n, of the variance sigma^2 sqrt((5.4 - 1) / n).
    supernet, generator = make_supernet(), torch.Generator().manual_seed(0)
    draws = []
    for _ in range(1000):
        supernet.draw(generator)
        draws.append(supernet.gumbel.clone())
    g, variance = torch.stack(draws).double(), math.pi**2 / 6
    n = g.numel()
    assert n == 45_000
    assert g.mean().item() == pytest.approx(0.5772156649, abs=5 * math.sqrt(variance / n))
    assert g.var().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(4.4 / n))
    # P(g <= 0) = exp(-1), which is not the mirrored distribution's 1 - exp(-1)
    p = math.exp(-1)
    assert (g <= 0).double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


def test_equal_generators_give_equal_draws_and_the_next_draw_is_another() -> None:
    one, other = make_supernet(seed=1), make_supernet(seed=2)
    generators = [torch.Generator().manual_seed(11) for _ in range(2)]
    one.draw(generators[0])
    other.draw(generators[1])
    first = one.gumbel.clone()
    assert torch.equal(first, other.gumbel)
    one.draw(generators[0])
    assert not (one.gumbel == first).any()


def test_a_cell_is_equation_10() -> None:
    torch.manual_seed(0)
    for cell in PLAN.cells():
        mixed = MixedCell(cell).eval()
        x, weights = torch.randn(2, cell.in_channels, 9, 7), torch.rand(9)
        with torch.no_grad():
            by_hand = sum(w * operator(x) for w, operator in zip(weights.tolist(), mixed.operators, strict=True))
            torch.testing.assert_close(mixed(x, weights), by_hand)


def test_each_cell_of_the_supernet_gets_its_own_row_of_the_mixture() -> None:
    supernet = make_supernet().train()
    seen: list[Tensor] = []
    for cell in supernet.cells:
        cell.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    supernet(torch.rand(2, *FRAME))
    assert torch.equal(torch.stack(seen), supernet.mixture())


def test_alpha_learns_from_what_the_supernet_says() -> None:
    supernet = make_supernet().train()
    supernet(torch.rand(2, *FRAME)).sum().backward()
    assert supernet.alpha_logits.grad is not None
    assert (supernet.alpha_logits.grad.norm(dim=-1) > 0).all()


# --- the cost ---------------------------------------------------------------------------------------------------------


def test_expected_macs_are_the_sum_of_alpha_times_macs() -> None:
    supernet = make_supernet()
    # 19x15 maps of the stem: 9 * 3 * 4 * 19 * 15, FC 5 * 256
    by_hand = 9.0 * 3 * 4 * 19 * 15 + 5 * 256
    size = [19, 15]
    for cell, logits in zip(PLAN.cells(), supernet.alpha_logits.double(), strict=True):
        for share, build in zip(logits.softmax(-1).tolist(), OPERATORS.values(), strict=True):
            operator = build(cell.in_channels, cell.out_channels, cell.stride)
            by_hand += share * count_macs(operator, torch.Size((cell.in_channels, *size)))
        size = [-(-x // cell.stride) for x in size]
    assert supernet.expected_macs().item() == pytest.approx(by_hand, rel=1e-6)  # float32


def test_expected_macs_know_neither_noise_nor_temperature() -> None:
    supernet = make_supernet().train()
    before = supernet.expected_macs()
    supernet.tau.fill_(0.1)
    supernet.draw(torch.Generator().manual_seed(99))
    assert torch.equal(supernet.expected_macs(), before)


def test_at_one_hot_alpha_expected_macs_are_those_of_the_derived_network() -> None:
    supernet = make_supernet()
    decide(supernet, seed=3)
    # all below 2^24, so exact in float32
    assert supernet.expected_macs().item() == supernet.argmax_macs() == supernet.derive().macs


def test_the_gradient_of_expected_macs_agrees_with_finite_differences() -> None:
    # in float64 with eps = 1e-6: truncation about eps^2 and rounding about 1e-16 / eps, relative to the cost
    supernet = make_supernet().double()
    (gradient,) = torch.autograd.grad(supernet.expected_macs(), supernet.alpha_logits)
    eps, numeric = 1e-6, torch.zeros_like(gradient)
    with torch.no_grad():
        for position in range(gradient.numel()):
            alpha = supernet.alpha_logits.view(-1)
            alpha[position] += eps
            above = supernet.expected_macs().item()
            alpha[position] -= 2 * eps
            below = supernet.expected_macs().item()
            alpha[position] += eps
            numeric.view(-1)[position] = (above - below) / (2 * eps)
    tolerance = 10 * 2.2e-16 * supernet.expected_macs().item() / eps
    assert gradient.abs().min() > 100 * tolerance
    torch.testing.assert_close(gradient, numeric, rtol=0, atol=tolerance)


def test_cost_pushes_alpha_towards_skip() -> None:
    # at uniform alpha the gradient is (MACs - mean MACs) / 9, lowest at the cheapest operator
    supernet = make_supernet()
    with torch.no_grad():
        supernet.alpha_logits.zero_()
    (gradient,) = torch.autograd.grad(supernet.expected_macs(), supernet.alpha_logits)
    macs = supernet.macs_table
    # float32 sums of numbers up to the largest MACs
    tolerance = 1e-6 * macs.max().item()
    torch.testing.assert_close(gradient, (macs - macs.mean(-1, keepdim=True)) / 9, rtol=0, atol=tolerance)
    assert (gradient.argmin(-1) == OPERATOR_NAMES.index("skip")).all()
