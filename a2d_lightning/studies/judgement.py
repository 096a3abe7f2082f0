"""What a bank says about the searches of one game."""

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
"""Range of a random network's MACs, as parts of the target's, within which it costs as much."""

WIDENED_BY = 0.05
"""Of the target's MACs, at each end, until the window holds enough networks."""

FEWEST_IN_WINDOW = 8

Sampled = tuple[float, Array]
"""An estimate and its bootstrap samples ``[samples]``."""


@dataclass(frozen=True)
class Window:
    """Random networks that cost as much as a searched one."""

    low: float
    """MACs."""
    high: float
    networks: Networks
    widened: bool


@dataclass(frozen=True)
class Agreement:
    """Agreement of alpha between searches of different seeds, means over pairs of searches."""

    pearson: float
    """Mean over cells of the correlation of log alpha."""
    spearman: float
    same_operator: float
    """Number of cells for which both derive the same operator."""
    cells: int
    pairs: int


@dataclass
class Judgement:
    """Results of one game. Estimates that need data which was not given are absent."""

    game: str
    networks: Networks
    split_half: float
    perfect: float
    macs_tau: Sampled
    taus: dict[str, Sampled] = field(default_factory=dict)
    """Of each search: tau between its sum of log alpha and the trained scores."""
    inherited_taus: dict[str, Sampled] = field(default_factory=dict)
    """Of each search: tau between scores with its supernet's weights and the trained scores."""
    equal_cost_taus: dict[str, Sampled] = field(default_factory=dict)
    """Of each search: tau of alpha among the networks of equal cost, where MACs tell nothing."""
    agreement: Agreement | None = None
    searched: Networks | None = None
    window: Window | None = None
    percentiles: dict[str, float] = field(default_factory=dict)
    """Of each searched network's score among random ones of equal cost."""
    improvement: Sampled | None = None
    best_of_k: list[float] = field(default_factory=list)
    """Expected scores of random search among the networks of equal cost, after 1, 2, ... trainings."""
    search_trainings: float | None = None
    """Wall time of a search, in trainings of a network."""

    def random_search(self) -> tuple[int, float] | None:
        """Return the trainings that random search affords in the time of a search and of its network's training, and
        the expected score; at most as many as there are networks."""
        if self.search_trainings is None or not self.best_of_k:
            return None
        trainings = min(1 + int(self.search_trainings), len(self.best_of_k))
        return trainings, self.best_of_k[trainings - 1]


def mean_over_searches(taus: dict[str, Sampled]) -> Sampled | None:
    """Return the mean over searches, with samples; the searches share each sample of networks."""
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
        game: its name.
        bank: networks drawn at random, trained.
        searches: checkpoints.
        inherited: by the search's name, scores ``[networks]`` of the bank's networks with its supernet's weights.
        searched: networks that searches derived, trained like the bank's.
        target_macs: cost at which searched and random networks are compared; the dearest searched network's if absent.
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
    """Return tau-b with the trained scores, and its samples, of each named prediction ``[networks]``."""
    if not predictions:
        return {}
    values, samples = tau_samples(np.stack(list(predictions.values())), bank.scores)
    return {name: (float(values[i]), samples[i]) for i, name in enumerate(predictions)}


def equal_cost(bank: Networks, target_macs: float) -> Window:
    """Select the networks with 90 % to 100 % of the target's MACs; widen the window until it has enough.

    Args:
        bank: all networks.
        target_macs: of the searched network.
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
        log_alphas: ``[cells, operators]`` of each search. Cells in which one search prefers nothing have no correlation
            and are left out of its means.
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
    """Return the value with its interval."""
    return None if sampled is None else bootstrap_interval(*sampled)
