"""L_cost: three estimators, their values and gradients."""

import pytest
import torch
from small_supernets import PLAN, decide, eq11, macs_of, make_supernet
from torch import Tensor

from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.costs import CostEstimator, cost_of, expected_macs
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.sampling import HardStraightThrough, Sampling, SinglePath, TopK
from a2d_lightning.nas.supernet import Supernet

HARD = [SinglePath(), TopK(2), TopK(5), HardStraightThrough()]


def name_of(sampling: Sampling) -> str:
    return f"{type(sampling).__name__}{sampling.computed.forward}"


def gradient_of(cost: Tensor, supernet: Supernet) -> Tensor:
    (gradient,) = torch.autograd.grad(cost, supernet.alpha_logits)
    return gradient


def random_table(supernet: Supernet) -> Tensor:
    """Costs that are no MACs, float64, negative ones too."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(supernet.macs_table.shape, generator=generator, dtype=torch.float64)


# --- expected ---------------------------------------------------------------------------------------------------------


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
    assert expected_macs(supernet).item() == pytest.approx(by_hand, rel=1e-6)  # float32


@pytest.mark.parametrize("estimator", ["expected", "argmax"])
def test_what_alpha_costs_knows_neither_noise_nor_temperature(estimator: CostEstimator) -> None:
    supernet = make_supernet().train()
    before = cost_of(supernet, estimator, supernet.macs_table)
    gradient = gradient_of(before, supernet)
    supernet.tau.fill_(0.1)
    supernet.draw(torch.Generator().manual_seed(99))
    after = cost_of(supernet, estimator, supernet.macs_table)
    assert torch.equal(after, before)
    assert torch.equal(gradient_of(after, supernet), gradient)


def test_at_one_hot_alpha_expected_macs_are_those_of_the_derived_network() -> None:
    supernet = make_supernet()
    decide(supernet, seed=3)
    # all below 2^24, so exact in float32
    assert expected_macs(supernet).item() == supernet.argmax_macs() == supernet.derive().macs


def test_the_gradient_of_expected_macs_agrees_with_finite_differences() -> None:
    # in float64 with eps = 1e-6: truncation about eps^2 and rounding about 1e-16 / eps, relative to the cost
    supernet = make_supernet().double()
    gradient = gradient_of(expected_macs(supernet), supernet)
    eps, numeric = 1e-6, torch.zeros_like(gradient)
    with torch.no_grad():
        for position in range(gradient.numel()):
            alpha = supernet.alpha_logits.view(-1)
            alpha[position] += eps
            above = expected_macs(supernet).item()
            alpha[position] -= 2 * eps
            below = expected_macs(supernet).item()
            alpha[position] += eps
            numeric.view(-1)[position] = (above - below) / (2 * eps)
    tolerance = 10 * 2.2e-16 * expected_macs(supernet).item() / eps
    assert gradient.abs().min() > 100 * tolerance
    torch.testing.assert_close(gradient, numeric, rtol=0, atol=tolerance)


def test_expected_macs_pull_at_each_logit_by_its_share_of_what_it_costs_more_than_the_mean() -> None:
    # E = sum_j p_j C_j and d p_j / d logit_i = p_j (1[i = j] - p_i), so d E / d logit_i = p_i (C_i - E) in each cell
    supernet = make_supernet().double()
    table = random_table(supernet)
    value = cost_of(supernet, "expected", table)
    p = supernet.alpha_logits.detach().softmax(-1)
    mean = (p * table).sum(-1, keepdim=True)  # [cells, 1]
    torch.testing.assert_close(value, mean.sum())
    torch.testing.assert_close(gradient_of(value, supernet), p * (table - mean))


def test_cost_pushes_alpha_towards_skip() -> None:
    # at uniform alpha the gradient is (MACs - mean MACs) / 9, lowest at the cheapest operator
    supernet = make_supernet()
    with torch.no_grad():
        supernet.alpha_logits.zero_()
    gradient = gradient_of(expected_macs(supernet), supernet)
    macs = supernet.macs_table
    # float32 sums of numbers up to the largest MACs
    tolerance = 1e-6 * macs.max().item()
    torch.testing.assert_close(gradient, (macs - macs.mean(-1, keepdim=True)) / 9, rtol=0, atol=tolerance)
    assert (gradient.argmin(-1) == tuple(OPERATORS).index("skip")).all()


# --- argmax -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_argmax_cost_is_exactly_what_the_derived_network_costs(seed: int) -> None:
    supernet = make_supernet(seed=seed)
    chosen = [tuple(OPERATORS)[i] for i in supernet.alpha_logits.argmax(-1)]
    # sums below 2^24, so exact in float32
    value = cost_of(supernet, "argmax", supernet.macs_table) + supernet.fixed_macs
    assert value.item() == macs_of(chosen)
    assert abs(value.item() - expected_macs(supernet).item()) > 1000


def test_the_argmax_cost_has_the_gradient_of_the_expected_one() -> None:
    supernet = make_supernet().double()
    table = random_table(supernet)
    p = supernet.alpha_logits.detach().softmax(-1)
    by_hand = p * (table - (p * table).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient_of(cost_of(supernet, "argmax", table), supernet), by_hand)


# --- drawn ------------------------------------------------------------------------------------------------------------


def drawn_at(supernet: Supernet, alpha: Tensor, table: Tensor) -> Tensor:
    """sum y C of the draw in force, were alpha's logits ``alpha``."""
    return (eq11(alpha, supernet.gumbel, 0.7) * table).sum()


def drawn_gradient(supernet: Supernet, table: Tensor) -> Tensor:
    """Of :func:`drawn_at` by central differences in float64."""
    alpha, eps = supernet.alpha_logits.detach(), 1e-6
    steps = eps * torch.eye(alpha.numel(), dtype=torch.float64).view(-1, *alpha.shape)
    slopes = [(drawn_at(supernet, alpha + s, table) - drawn_at(supernet, alpha - s, table)) / (2 * eps) for s in steps]
    return torch.stack(slopes).view(alpha.shape)


def drawn_supernet(sampling: Sampling | None = None) -> Supernet:
    supernet = make_supernet(sampling=sampling).double().train()
    supernet.tau.fill_(0.7)
    return supernet


def test_the_drawn_cost_weighs_by_the_mixture_of_the_draw() -> None:
    supernet = drawn_supernet()
    table = random_table(supernet)
    value = cost_of(supernet, "drawn", table)
    torch.testing.assert_close(value, drawn_at(supernet, supernet.alpha_logits, table))
    supernet.draw(torch.Generator().manual_seed(99))
    # another draw, another network
    assert abs(cost_of(supernet, "drawn", table).item() - value.item()) > 0.1


@pytest.mark.parametrize("sampling", [None, *HARD], ids=lambda s: name_of(s) if s else "SoftSum")
def test_the_drawn_cost_pulls_at_alpha_through_the_mixture(sampling: Sampling | None) -> None:
    # rounding 1e-16 / eps = 1e-10, truncation eps^2 / tau^3
    supernet = drawn_supernet(sampling)
    table = random_table(supernet)
    gradient = gradient_of(cost_of(supernet, "drawn", table), supernet)
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(gradient, drawn_gradient(supernet, table), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sampling", HARD, ids=name_of)
def test_the_drawn_cost_of_a_sampled_network_is_exactly_its_own(sampling: Sampling) -> None:
    supernet = make_supernet(sampling=sampling).train()
    for seed in range(3):
        supernet.draw(torch.Generator().manual_seed(seed))
        sampled = [tuple(OPERATORS)[i] for i in (supernet.alpha_logits + supernet.gumbel).argmax(-1)]
        value = cost_of(supernet, "drawn", supernet.macs_table) + supernet.fixed_macs
        assert value.item() == macs_of(sampled)
        assert value.item() != supernet.argmax_macs()
