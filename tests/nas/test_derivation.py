"""Derivation against brute force over every network of small search spaces."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from small_supernets import FRAME, PLAN, macs_of, make_supernet

from a2d_lightning.nas.derivation import Argmax, MaxAlphaUnderMacs, best_under_cost, pareto_front
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.errors import SettingError

Network = tuple[int, float, tuple[int, ...]]
"""(cost, sum of log alpha, operators)."""


def problem(seed: int, ties: bool, cells: int = 4, operators: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """log alpha and cost ``[cells, operators]``: operators that cost more are preferred, on average.

    Sums are exact, and often equal with ``ties``.
    """
    generator = np.random.default_rng(seed)
    highest = 6 if ties else 10**6
    cost, noise = generator.integers(0, highest, (2, cells, operators))
    return (cost + noise - 2.0 * highest) / 2**8, cost


def every_network(log_alpha: np.ndarray, cost: np.ndarray) -> list[Network]:
    cells, operators = cost.shape
    return [
        (
            sum(int(cost[cell, o]) for cell, o in enumerate(chosen)),
            sum(float(log_alpha[cell, o]) for cell, o in enumerate(chosen)),
            chosen,
        )
        for chosen in product(range(operators), repeat=cells)
    ]


def best_by_hand(networks: list[Network], budget: int) -> tuple[int, float]:
    """(cost, sum) of the network with the highest sum within ``budget``, the cheapest of those."""
    return min(((c, v) for c, v, _ in networks if c <= budget), key=lambda network: (-network[1], network[0]))


def costs_of(operators: np.ndarray, log_alpha: np.ndarray, cost: np.ndarray) -> tuple[int, float]:
    """(cost, sum) of a choice."""
    assert operators.shape == (len(cost),)
    chosen = list(enumerate(operators.tolist()))
    return sum(int(cost[c, o]) for c, o in chosen), sum(float(log_alpha[c, o]) for c, o in chosen)


# --- the solver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_network_within_a_budget_is_that_of_brute_force(seed: int, ties: bool) -> None:
    log_alpha, cost = problem(seed, ties)
    networks = every_network(log_alpha, cost)
    costs = sorted({c for c, _, _ in networks})
    # each budget that some networks meet exactly, and one less
    some = costs if ties else costs[:: len(costs) // 40]
    budgets = [b for exact in (*some, costs[-1]) for b in (exact - 1, exact) if b >= costs[0]]
    for budget in (*budgets, costs[-1] + 1):
        chosen = best_under_cost(log_alpha, cost, budget)
        assert costs_of(chosen, log_alpha, cost) == best_by_hand(networks, budget)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_every_network_that_no_other_beats(seed: int, ties: bool) -> None:
    log_alpha, cost = problem(seed, ties)
    networks = every_network(log_alpha, cost)
    by_hand = []
    highest = -math.inf
    for c, v, _ in sorted(networks, key=lambda network: (network[0], -network[1])):
        if v > highest:
            by_hand.append((c, v))
            highest = v
    front = pareto_front(log_alpha, cost)
    assert list(zip(front.cost.tolist(), front.log_alpha.tolist(), strict=True)) == by_hand
    assert [costs_of(operators, log_alpha, cost) for operators in front.operators] == by_hand
    assert len(by_hand) >= 5


def test_the_front_rises_in_both_columns() -> None:
    log_alpha, cost = problem(seed=0, ties=True, cells=14, operators=9)
    front = pareto_front(log_alpha, cost)
    assert (np.diff(front.cost) > 0).all()
    assert (np.diff(front.log_alpha) > 0).all()
    assert front.cost[0] == cost.min(1).sum()
    assert front.log_alpha[-1] == log_alpha.max(1).sum()


def test_a_front_within_a_budget_is_the_start_of_the_whole_front() -> None:
    log_alpha, cost = problem(seed=1, ties=True, cells=6)
    whole = pareto_front(log_alpha, cost)
    for budget in range(whole.cost[0] - 1, whole.cost[-1] + 2):
        part = pareto_front(log_alpha, cost, budget)
        points = int((whole.cost <= budget).sum())
        assert part.operators.tolist() == whole.operators[:points].tolist()
        assert part.cost.tolist() == whole.cost[:points].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_loose_budget_gives_the_argmax(seed: int) -> None:
    log_alpha, cost = problem(seed, ties=False, cells=14, operators=9)
    chosen = best_under_cost(log_alpha, cost, int(cost.max(1).sum()))
    assert chosen.tolist() == log_alpha.argmax(1).tolist()


def test_where_alpha_prefers_nothing_the_cheapest_network_is_chosen() -> None:
    _, cost = problem(seed=0, ties=False)
    assert best_under_cost(np.full(cost.shape, -1.5), cost, 10**9).tolist() == cost.argmin(1).tolist()


def test_operators_of_probability_zero_are_chosen_only_where_nothing_else_fits() -> None:
    log_alpha, cost = np.array([[0.0, -np.inf]] * 2), np.array([[5, 1]] * 2)
    assert best_under_cost(log_alpha, cost, 10).tolist() == [0, 0]
    assert best_under_cost(log_alpha, cost, 2).tolist() == [1, 1]


def test_a_budget_below_every_network_is_an_error() -> None:
    log_alpha, cost = problem(seed=0, ties=False)
    cheapest = int(cost.min(1).sum())
    assert costs_of(best_under_cost(log_alpha, cost, cheapest), log_alpha, cost)[0] == cheapest
    with pytest.raises(ValueError, match=f"{cheapest:,}.*{cheapest - 1:,}"):
        best_under_cost(log_alpha, cost, cheapest - 1)


# --- rules for the supernet -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_supernet_derives_the_most_probable_network_within_its_macs(seed: int) -> None:
    plan = Plan((1, 1), (4, 6))
    supernet = make_supernet(plan, seed)
    log_alpha = supernet.log_alpha().tolist()
    networks = [
        (macs_of(names, plan), sum(log_alpha[c][tuple(OPERATORS).index(name)] for c, name in enumerate(names)), names)
        for names in product(tuple(OPERATORS), repeat=2)
    ]
    macs = sorted(m for m, _, _ in networks)
    for target in (macs[0], macs[20] - 1, macs[20], macs[40] + 0.5, macs[-1]):
        supernet.derivation = MaxAlphaUnderMacs(target)
        _, total, names = max((n for n in networks if n[0] <= target), key=lambda network: network[1])
        architecture = supernet.derive()
        assert architecture.operators == names, total
        assert architecture.macs == supernet.derived_macs() == macs_of(names, plan) <= target


def test_argmax_is_the_default_and_ignores_the_cost() -> None:
    supernet = make_supernet()
    assert isinstance(supernet.derivation, Argmax)
    expected = [tuple(OPERATORS)[row.index(max(row))] for row in supernet.alpha_logits.tolist()]
    assert list(supernet.derive().operators) == expected
    assert supernet.derived_macs() == supernet.argmax_macs() == macs_of(expected)


def test_a_limit_that_no_network_meets_names_the_setting_and_the_cheapest_network() -> None:
    supernet = make_supernet()
    cheapest = min(macs_of([name] * len(PLAN.cells())) for name in tuple(OPERATORS))  # all skip
    supernet.derivation = MaxAlphaUnderMacs(cheapest)
    assert supernet.derive().macs == cheapest
    supernet.derivation = MaxAlphaUnderMacs(cheapest - 1)
    with pytest.raises(SettingError, match=rf"model\.derivation\.target_macs: {cheapest - 1:,} .*\({cheapest:,}\)"):
        supernet.derive()


def test_a_rule_sees_alpha_as_it_is_now() -> None:
    supernet = make_supernet(frame=FRAME)
    supernet.derivation = MaxAlphaUnderMacs(supernet.macs_range()[1])
    with torch.no_grad():
        supernet.alpha_logits.zero_()[:, tuple(OPERATORS).index("ir_k5_e3")] = 1.0
    assert set(supernet.derive().operators) == {"ir_k5_e3"}
