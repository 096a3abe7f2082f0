"""Statistics against values by hand, the library, exhaustive enumeration and known distributions."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional import kendall_rank_corrcoef

from a2d_lightning.studies import statistics
from a2d_lightning.studies.statistics import (
    best_of_k,
    bootstrap_interval,
    improvement_samples,
    kendall_tau,
    percentile,
    perfect_tau,
    resampled,
    split_half_tau,
    tau_samples,
)


def test_tau_of_known_permutations() -> None:
    x = np.arange(4.0)
    # 6 pairs; swapping the last two makes 1 of them discordant
    assert kendall_tau(x, np.array([[0, 1, 3, 2], [3, 2, 1, 0], [0, 1, 2, 3.0]])).tolist() == [4 / 6, -1, 1]
    # ties of one side: pairs (0, 1) tied in y; 5 concordant of sqrt(6 x 5)
    assert kendall_tau(x, np.array([0, 0, 1, 2.0])) == pytest.approx(5 / 30**0.5)
    assert np.isnan(kendall_tau(x, np.ones(4)))


def test_tau_is_the_librarys_with_ties_and_without() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(6, size=(2, 250, 15)).astype(float)  # more than a chunk
    library: Any = kendall_rank_corrcoef
    expected = [float(library(torch.tensor(a), torch.tensor(b), variant="b")) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(kendall_tau(x, y), expected, atol=1e-6)


def test_samples_draw_networks_and_only_seeds_that_they_have() -> None:
    scores = np.array([[1.0, np.nan, 2.0], [10, 20, 30]])
    drawn = resampled(scores, np.random.default_rng(0), 4_000)
    assert drawn.shape == (4_000, 2, 3)
    first = np.isnan(drawn[..., 2])
    assert first.mean() == pytest.approx(0.5, abs=0.03)
    assert not np.isnan(drawn[..., :2]).any()
    assert set(np.unique(drawn[first][:, :2])) == {1.0, 2.0}
    assert set(np.unique(drawn[~first])) == {10.0, 20.0, 30.0}
    assert np.mean(drawn[~first] == 20) == pytest.approx(1 / 3, abs=0.03)


def networks(
    rng: np.random.Generator, n: int, seeds: int, noise: float, rho: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions and scores whose true scores correlate by rho with the predictions."""
    predictions = rng.normal(size=n)
    true = rho * predictions + np.sqrt(1 - rho**2) * rng.normal(size=n)
    return predictions, true, true[:, None] + noise * rng.normal(size=(n, seeds))


@pytest.mark.parametrize(("n", "noise", "rho"), [(30, 0.7, 0.3), (40, 0.7, 0.95), (30, 0.0, 0.5)])
def test_intervals_of_tau_cover_the_truth(n: int, noise: float, rho: float) -> None:
    # of joint normals tau is 2 / pi asin(correlation); the mean of 3 seeds has correlation rho / sqrt(1 + noise^2 / 3)
    truth = 2 / np.pi * np.arcsin(rho / np.sqrt(1 + noise**2 / 3))
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        predictions, _, scores = networks(rng, n, 3, noise, rho)
        (value,), (samples,) = tau_samples(predictions[None], scores, samples=300)
        found = bootstrap_interval(float(value), samples)
        covered += found.low <= truth <= found.high
    # 285 are expected, with a standard deviation of 4
    assert 268 <= covered <= 298


def test_predictors_share_their_samples() -> None:
    predictions, _, scores = networks(np.random.default_rng(0), 20, 3, 0.5, 0.5)
    values, samples = tau_samples(np.stack([predictions, predictions, -predictions]), scores, samples=200)
    assert values[0] == values[1] == -values[2]
    np.testing.assert_array_equal(samples[0], samples[1])
    np.testing.assert_allclose(samples[0], -samples[2])
    again = tau_samples(predictions[None], scores, samples=200)[1][0]
    np.testing.assert_array_equal(samples[0], again)


@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_the_ceilings_of_normal_scores(noise: float) -> None:
    _, true, scores = networks(np.random.default_rng(5), 3_000, 2, noise, 0.5)
    measured = kendall_tau(true[:1500], scores[:1500].mean(1))
    assert perfect_tau(scores) == pytest.approx(2 / np.pi * np.arcsin(1 / np.sqrt(1 + noise**2 / 2)), abs=0.02)
    assert perfect_tau(scores) == pytest.approx(float(measured), abs=0.03)
    # two seeds alone correlate by 1 / (1 + noise^2)
    expected = 2 / np.pi * np.arcsin(1 / (1 + noise**2))
    assert split_half_tau(scores[:1500]) == pytest.approx(expected, abs=0.03)


def test_ceilings_by_hand_and_without_seeds() -> None:
    scores = np.array([[0, 1], [1, 2], [2, 0.0]])
    # seeds rank (0, 1) alike and the other two pairs in opposite ways
    assert split_half_tau(scores) == pytest.approx(-1 / 3)
    # within a network the variance is 0.5, 0.5 and 2: of a mean of two 0.5; means 0.5, 1.5 and 1 have 0.25
    assert perfect_tau(scores) == 0
    # within 2, of a mean 1; means 0, 2 and 4 have 4: rho^2 = 3 / 4
    apart = np.array([[1, -1], [3, 1], [5, 3.0]])
    assert perfect_tau(apart) == pytest.approx(2 / np.pi * np.arcsin(0.75**0.5))
    assert np.isnan(split_half_tau(scores[:, :1]))
    assert np.isnan(perfect_tau(scores[:, :1]))
    steady = np.repeat(np.arange(5.0)[:, None], 3, axis=1)
    assert split_half_tau(steady) == 1
    assert perfect_tau(steady) == pytest.approx(1)


def test_percentile_counts_ties_half() -> None:
    assert percentile(2.0, np.array([1, 2, 3, 4.0])) == 100 * 1.5 / 4


def test_improvement_by_hand_and_its_interval() -> None:
    better, worse = np.array([[3.0, 1.0]]), np.array([[1.0, 2.0], [0.0, np.nan]])
    # 3 beats all three; 1 equals 1, loses to 2, beats 0
    value, samples = improvement_samples(better, worse)
    assert value == pytest.approx((3 + 0.5 + 0 + 1) / 6)
    found = bootstrap_interval(value, samples)
    assert 0 <= found.low < value < found.high <= 1
    same = np.zeros((3, 3))
    value, samples = improvement_samples(same, same)
    assert (value, set(samples)) == (0.5, {0.5})


def test_best_of_k_is_the_enumeration_of_all_choices() -> None:
    scores = np.random.default_rng(2).normal(size=(6, 3))
    curve = best_of_k(scores)
    for k in range(1, 7):
        found = []
        for chosen in combinations(range(6), k):
            for seed in range(3):
                best = max(chosen, key=lambda i: scores[i, seed])
                found.append(np.delete(scores[best], seed).mean())
        assert curve[k - 1] == pytest.approx(np.mean(found))
    assert len(best_of_k(scores[:, :1])) == 0


def test_probabilities_stay_exact_for_many_networks() -> None:
    table = statistics.best_probabilities(180)
    np.testing.assert_allclose(table.sum(1), 1)
    assert table[-1, -1] == pytest.approx(1)
    assert table[1, 0] == 0


def test_nothing_to_resample_has_no_interval() -> None:
    found = bootstrap_interval(0.5, np.array([np.nan]))
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert np.isnan(statistics.averaged([(np.nan, np.zeros(3))]).value)


def test_means_over_games() -> None:
    found = statistics.averaged([(0.2, np.full(10, 0.2)), (0.6, np.full(10, 0.8)), (np.nan, np.zeros(10))])
    assert (found.value, found.low) == (pytest.approx(0.4), pytest.approx(0.5))
