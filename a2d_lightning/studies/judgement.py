"""Evaluation of the searches of one game against a bank of trained networks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from a2d_lightning.modules.search_result import SearchResult
from a2d_lightning.studies.scores import Networks
from a2d_lightning.studies.statistics import (
    Array,
    Estimate,
    best_of_k,
    bootstrap_interval,
    improvement_samples,
    percentile,
    perfect_tau,
    split_half_tau,
    tau_samples,
)

WINDOW = (0.9, 1.0)
"""Range of equal cost, as fractions of the target's MACs."""

WIDENED_BY = 0.05
"""Fraction of the target's MACs added at each end until the window holds enough networks."""

FEWEST_IN_WINDOW = 8

Sampled = tuple[float, Array]
"""An estimate and its bootstrap samples ``[samples]``."""


@dataclass(frozen=True)
class Window:
    """Random networks with about the same MACs as a searched one."""

    low: float
    """Lowest MACs."""
    high: float
    """Highest MACs."""
    networks: Networks
    widened: bool


@dataclass(frozen=True)
class Agreement:
    """Agreement of alpha between searches, as means over pairs of searches."""

    pearson: float
    """Pearson correlation of log alpha over the operators, mean over cells."""
    spearman: float
    """Spearman correlation of log alpha over the operators, mean over cells."""
    same_operator: float
    """Number of cells in which both searches prefer the same operator."""
    cells: int
    pairs: int


@dataclass
class Judgement:
    """Results of one game. Estimates without the necessary data are empty or None."""

    game: str
    networks: Networks
    split_half: float
    perfect: float
    macs_tau: Sampled
    taus: dict[str, Sampled] = field(default_factory=dict)
    """Tau between the sum of log alpha and trained scores, by search."""
    inherited_taus: dict[str, Sampled] = field(default_factory=dict)
    """Tau between scores with the supernet's weights and trained scores, by search."""
    equal_cost_taus: dict[str, Sampled] = field(default_factory=dict)
    """Tau of alpha among networks of equal cost, where MACs are not informative, by search."""
    agreement: Agreement | None = None
    searched: Networks | None = None
    window: Window | None = None
    percentiles: dict[str, float] = field(default_factory=dict)
    """Percentile of each searched network's score among random networks of equal cost, by network."""
    improvement: Sampled | None = None
    best_of_k: list[float] = field(default_factory=list)
    """Expected score of random search among networks of equal cost after 1, 2, ... trainings."""
    search_trainings: float | None = None
    """Wall time of a search in units of the wall time of one training."""

    def random_search(self) -> tuple[int, float] | None:
        """Return the result of random search in the wall time of a search and the training of its network.

        Returns:
            Number of trainings, at most the number of networks, and expected score; None if unknown.
        """
        if self.search_trainings is None or not self.best_of_k:
            return None
        trainings = min(1 + int(self.search_trainings), len(self.best_of_k))
        return trainings, self.best_of_k[trainings - 1]


def mean_over_searches(taus: dict[str, Sampled]) -> Sampled | None:
    """Return the mean over searches with bootstrap samples; each sample draws the same networks for all searches."""
    if not taus:
        return None
    values, samples = zip(*taus.values(), strict=True)
    return float(np.mean(values)), np.mean(samples, axis=0)


def judge_game(
    game: str,
    bank: Networks,
    searches: Sequence[SearchResult],
    inherited: dict[str, Array],
    searched: Networks | None = None,
    target_macs: float | None = None,
) -> Judgement:
    """Judge the searches of one game.

    Args:
        game: Name of the game.
        bank: Trained random networks.
        searches: Searches of the game.
        inherited: Scores ``[networks]`` of the bank's networks with the supernet's weights, by name of the search.
        searched: Networks derived by searches, trained like the bank.
        target_macs: MACs at which searched and random networks are compared; default: those of the most expensive
            searched network.
    """
    predictors = {search.name: search.rate(bank.operators) for search in searches}
    taus = tau_of({"macs": bank.macs}, bank)
    result = Judgement(game, bank, split_half_tau(bank.scores), perfect_tau(bank.scores), taus["macs"])
    result.taus = tau_of(predictors, bank)
    result.inherited_taus = tau_of(inherited, bank)
    if len(searches) > 1:
        result.agreement = agreement([search.log_alpha for search in searches])
    if searched is not None and len(searched) > 0:
        result.searched = searched
    if result.searched is not None or target_macs is not None:
        target = target_macs or float(searched.macs.max() if searched is not None else 0)
        result.window = equal_cost(bank, target)
        of_equal_cost = {search.name: search.rate(result.window.networks.operators) for search in searches}
        result.equal_cost_taus = tau_of(of_equal_cost, result.window.networks)
        result.best_of_k = [float(x) for x in best_of_k(result.window.networks.scores)]
    if result.searched is not None and result.window is not None:
        random = result.window.networks
        result.percentiles = {
            name: percentile(score, random.means())
            for name, score in zip(result.searched.names, result.searched.means().tolist(), strict=True)
        }
        result.improvement = improvement_samples(result.searched.scores, random.scores)
    return result


def tau_of(predictions: dict[str, Array], bank: Networks) -> dict[str, Sampled]:
    """Compute tau-b between predictions and trained scores.

    Args:
        predictions: Predictions ``[networks]`` by name.
        bank: Trained networks.

    Returns:
        Tau-b and bootstrap samples by name.
    """
    if not predictions:
        return {}
    values, samples = tau_samples(np.stack(list(predictions.values())), bank.scores)
    return {name: (float(values[i]), samples[i]) for i, name in enumerate(predictions)}


def equal_cost(bank: Networks, target_macs: float) -> Window:
    """Select the networks with 90 % to 100 % of the target's MACs.

    The window is widened by 5 % of the target at each end until it holds eight networks, or all if there are fewer.

    Args:
        bank: All networks.
        target_macs: MACs of the searched network.
    """
    low, high = (part * target_macs for part in WINDOW)
    fewest = min(FEWEST_IN_WINDOW, len(bank))
    steps = 0
    while True:
        margin = steps * WIDENED_BY * target_macs
        found = (bank.macs >= low - margin) & (bank.macs <= high + margin)
        if found.sum() >= fewest:
            return Window(low - margin, high + margin, bank.select(found), steps > 0)
        steps += 1


def agreement(log_alphas: Sequence[Array]) -> Agreement:
    """Compare alpha between all pairs of searches.

    Args:
        log_alphas: Log alpha ``[cells, operators]`` of each search. Cells in which a search has no preference have no
            correlation and are excluded from its mean.
    """
    pearsons, spearmans, same = [], [], []
    for first, second in combinations(log_alphas, 2):
        a, b = (torch.from_numpy(np.ascontiguousarray(x.T)) for x in (first, second))  # [operators, cells]
        varied = (a.std(0) > 1e-9) & (b.std(0) > 1e-9)
        if varied.any():
            pearsons.append(float(pearson_corrcoef(a[:, varied], b[:, varied]).mean()))
            spearmans.append(float(spearman_corrcoef(a[:, varied], b[:, varied]).mean()))
        same.append(int((a.argmax(0) == b.argmax(0)).sum()))
    mean = [float(np.mean(x)) if x else float("nan") for x in (pearsons, spearmans)]
    return Agreement(mean[0], mean[1], float(np.mean(same)), len(log_alphas[0]), len(same))


def estimate(sampled: Sampled | None) -> Estimate | None:
    """Return the value with its 95 % bootstrap interval; None without a value."""
    return None if sampled is None else bootstrap_interval(*sampled)
