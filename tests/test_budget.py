"""The MACs budget: what is far from it, how much that weighs, and that alpha is led into it."""

import math
from collections.abc import Callable

import pytest
import torch
from small_supernets import macs_of, make_supernet
from torch import Tensor

from a2d_lightning.budget import MacsBudget, check_budget
from a2d_lightning.costs import cost_of
from a2d_lightning.errors import SettingError
from a2d_lightning.search_space import OPERATORS, Plan
from a2d_lightning.supernet import OPERATOR_NAMES, Supernet

THREE = Plan((2, 1), (4, 6))


# --- what is far from the budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.7, 1.0, 1.3])
def test_distances_are_those_of_networks_that_are_really_derived(part: float) -> None:
    # the aim is 97.5 % of the budget, and 2 % around it are near enough
    supernet = make_supernet(THREE)
    target = part * supernet.argmax_macs() / 0.975
    distances = MacsBudget(target).distances(supernet)
    chosen = supernet.alpha_logits.argmax(-1).tolist()
    near = 0
    for cell in range(3):
        for i in range(9):
            changed = [OPERATOR_NAMES[i if c == cell else o] for c, o in enumerate(chosen)]
            by_hand = max(0.0, abs(macs_of(changed, THREE) / target - 0.975) - 0.02)
            near += by_hand == 0.0
            assert distances[cell, i].item() == pytest.approx(by_hand, abs=1e-6)  # float32
    assert near < 27
    assert (near >= 3) == (part == 1.0)  # the derived network itself, once a cell


def test_distances_have_no_gradient_and_know_no_draw() -> None:
    supernet = make_supernet(THREE).train()
    budget = MacsBudget(float(supernet.argmax_macs()))
    before = budget.distances(supernet)
    assert not before.requires_grad
    supernet.draw(torch.Generator().manual_seed(99))
    assert torch.equal(budget.distances(supernet), before)


def test_a_budget_below_the_cheapest_network_or_above_the_dearest_is_refused() -> None:
    cheapest = macs_of(["skip"] * 3, THREE)
    # a cell's operators cost the same whatever the other cells are
    swapped = [[macs_of([n if c == cell else "skip" for c in range(3)], THREE) for n in OPERATORS] for cell in range(3)]
    dearest = cheapest + sum(max(row) - cheapest for row in swapped)
    limits = make_supernet(THREE).macs_range()
    assert limits == (cheapest, dearest)
    for met in (cheapest, (cheapest + dearest) / 2, dearest):
        check_budget(met, *limits)
    with pytest.raises(SettingError, match=rf"target_macs: {cheapest - 1:,} is less than .*{cheapest:,}.*smaller plan"):
        check_budget(cheapest - 1, *limits)
    with pytest.raises(SettingError, match=rf"is more than .*{dearest:,}.*larger plan"):
        check_budget(1.04 * dearest, *limits)


# --- how much it weighs -----------------------------------------------------------------------------------------------


def test_lambda_is_the_pressure_times_the_mean_ratio_of_the_gradients() -> None:
    # |(3, 4)| = 5, then |(6, 8)| = 10: the mean starts at 5 and moves a hundredth of the way, to 5.05
    budget = MacsBudget(1e6)
    budget.pressure = 0.4
    cost = torch.tensor([[0.0, 2.0]])
    assert budget.lambda_cost(torch.tensor([[3.0, 4.0]]), cost).item() == pytest.approx(0.4 * 5 / 2)
    assert budget.lambda_cost(torch.tensor([[6.0, 8.0]]), cost).item() == pytest.approx(0.4 * 5.05 / 2)
    assert budget.lambda_cost(torch.tensor([[6.0, 8.0]]), 4 * cost).item() == pytest.approx(0.4 * 5.0995 / 8)


def test_lambda_is_finite_where_nothing_costs() -> None:
    budget = MacsBudget(1e6)
    nothing = torch.zeros(2, 9)
    assert torch.isfinite(budget.lambda_cost(torch.ones(2, 9), nothing))
    assert (budget.lambda_cost(torch.ones(2, 9), nothing) * nothing == 0).all()


MET, TOO_LARGE, TOO_SMALL = 975_000, 1_100_000, 900_000


def half_way(pressure: float = 0.1) -> MacsBudget:
    """A budget of 1e6 at half of a run, where the pressure may reach 30 / 2^4 = 1.875."""
    budget = MacsBudget(1e6)
    budget.progress, budget.pressure = 0.5, pressure
    return budget


@pytest.mark.parametrize("macs", [TOO_LARGE, TOO_SMALL])
def test_the_pressure_rises_while_the_budget_is_not_met(macs: int) -> None:
    # e^80 in a whole run
    budget = half_way()
    budget.observe(macs, 0.51)
    assert budget.pressure == pytest.approx(0.1 * math.exp(0.8), rel=1e-9)
    budget.observe(macs, 0.52)
    assert budget.pressure == pytest.approx(0.1 * math.exp(1.6), rel=1e-9)


def test_the_pressure_falls_slowly_while_the_budget_is_met() -> None:
    # e^-3 in a whole run
    budget = half_way()
    budget.observe(MET, 0.6)
    assert budget.pressure == pytest.approx(0.1 * math.exp(-0.3), rel=1e-9)


@pytest.mark.parametrize(
    ("macs", "met"),
    [(949_000, False), (956_000, True), (975_000, True), (994_000, True), (1_000_001, False)],
)
def test_a_budget_is_met_from_95_to_100_percent_without_the_edges(macs: int, met: bool) -> None:
    budget = half_way()
    budget.observe(macs, 0.51)
    assert (budget.pressure < 0.1) == met


@pytest.mark.parametrize(("progress", "ceiling"), [(0.6, 30 * 0.6**4), (0.8, 30 * 0.8**4), (1.0, 30.0)])
def test_the_pressures_ceiling_rises_over_the_run(progress: float, ceiling: float) -> None:
    budget = half_way()
    budget.observe(TOO_LARGE, progress)
    assert budget.pressure == pytest.approx(ceiling)
    budget.observe(MET, progress + 0.1)
    assert budget.pressure == pytest.approx(ceiling * math.exp(-0.3))  # the bound is left at once


@pytest.mark.parametrize("macs", [TOO_LARGE, MET])
def test_a_run_whose_steps_grew_keeps_its_pressure(macs: int) -> None:
    # resumed with more steps to go it stands at 0.4 of them, where the ceiling is 30 * 0.4^4 = 0.77
    budget = half_way()
    budget.observe(macs, 0.4)
    assert budget.pressure == 0.1


def test_the_pressure_is_never_less_than_its_floor() -> None:
    budget = MacsBudget(1e6)
    budget.observe(TOO_LARGE, 0.1)  # 30 / 10^4 would be 0.003
    assert budget.pressure == 0.02
    budget.observe(MET, 0.9)
    assert budget.pressure == 0.02


@pytest.mark.parametrize(("macs", "end"), [(TOO_LARGE, 0.53), (MET, 0.9)])
def test_the_pressure_does_not_depend_on_how_a_run_is_cut_into_updates(macs: int, end: float) -> None:
    pressures = []
    for updates in (10, 1000):
        budget = half_way()
        for k in range(1, updates + 1):
            budget.observe(macs, 0.5 + (end - 0.5) * k / updates)
        pressures.append(budget.pressure)
    assert 0.02 < pressures[0] < 1.875
    assert abs(pressures[0] - 0.1) > 0.05
    assert pressures[0] == pytest.approx(pressures[1], rel=1e-9)


def test_a_budget_goes_on_as_its_saved_state_says() -> None:
    reward, cost = torch.ones(3, 9), torch.full((3, 9), 0.5)
    old = half_way()
    old.lambda_cost(7 * reward, cost)
    old.observe(TOO_LARGE, 0.52)
    new = MacsBudget(1e6)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.lambda_cost(reward, cost), old.lambda_cost(reward, cost))
    assert not torch.equal(MacsBudget(1e6).lambda_cost(reward, cost), old.lambda_cost(reward, cost))
    for budget in (old, new):
        budget.observe(TOO_LARGE, 0.53)
    assert new.pressure == old.pressure != MacsBudget(1e6).pressure


# --- a search without a network ---------------------------------------------------------------------------------------

UPDATES = 1500
PLAN_OF_TOY = Plan((2, 2, 2), (8, 16, 32))


def searched(towards: float, price: Callable[[Supernet, Tensor, float], Tensor]) -> Supernet:
    """A supernet after Adam has followed a reward that prefers operators by their MACs, and noise.

    Args:
        towards: 1 prefers dear operators, -1 cheap ones.
        price: of the supernet, the reward's gradient on alpha and the progress: what to add to that gradient.
    """
    generator = torch.Generator().manual_seed(0)
    supernet = Supernet(PLAN_OF_TOY, (4, 42, 42))
    alpha, macs = supernet.alpha_logits, supernet.macs_table
    preference = towards * 0.05 * macs / macs.max() + 0.005 * torch.randn(macs.shape, generator=generator)
    optimizer = torch.optim.Adam([alpha], lr=1e-2)
    for update in range(UPDATES):
        (reward,) = torch.autograd.grad(-(alpha.softmax(-1) * preference).sum(), alpha)
        reward = reward + 0.005 * torch.randn(macs.shape, generator=generator)
        alpha.grad = reward + price(supernet, reward, update / UPDATES)
        optimizer.step()
    return supernet


def by_budget(budget: MacsBudget) -> Callable[[Supernet, Tensor, float], Tensor]:
    """As the search module uses it."""

    def price(supernet: Supernet, reward: Tensor, progress: float) -> Tensor:
        cost = cost_of(supernet, "expected", budget.distances(supernet))
        (of_cost,) = torch.autograd.grad(cost, supernet.alpha_logits)
        added = budget.lambda_cost(reward, of_cost) * of_cost
        budget.observe(supernet.argmax_macs(), progress)
        return added

    return price


@pytest.fixture(scope="module", params=[1.0, -1.0], ids=["from above", "from below"])
def preferred(request: pytest.FixtureRequest) -> tuple[float, int]:
    """A direction, and the MACs of what is derived where nothing costs."""
    free = searched(request.param, lambda supernet, reward, progress: torch.zeros_like(reward))
    return request.param, free.argmax_macs()


@pytest.mark.parametrize("target", [0.8e6, 2e6])
def test_the_derived_network_ends_within_its_budget_from_above_and_from_below(
    preferred: tuple[float, int], target: float
) -> None:
    towards, unbudgeted = preferred
    assert not 0.95 * target <= unbudgeted <= target
    assert (unbudgeted > target) == (towards > 0)
    macs = searched(towards, by_budget(MacsBudget(target))).argmax_macs()
    assert 0.95 * target <= macs <= target
