"""Alpha's signal-to-noise ratio against weighted means and variances by numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from a2d_lightning.nas.gradient_noise import DECAY, GradientNoise

CELLS, OPERATORS = 3, 9


def gradients(count: int, seed: int = 0, mean: float = 0.3) -> torch.Tensor:
    """Float ``[count, cells, operators]``; the cells have means 0, ``mean`` and 2 ``mean``."""
    noise = torch.randn(count, CELLS, OPERATORS, generator=torch.Generator().manual_seed(seed))
    return noise + mean * torch.arange(CELLS)[:, None]


def observed(sequence: torch.Tensor) -> GradientNoise:
    noise = GradientNoise(CELLS, OPERATORS)
    for gradient in sequence:
        noise.observe(gradient)
    return noise


def snr_by_numpy(sequence: torch.Tensor) -> np.ndarray:
    g = sequence.double().numpy()
    weights = 0.99 ** np.arange(len(g))[::-1]
    mean = np.average(g, axis=0, weights=weights)
    variance = np.average((g - mean) ** 2, axis=0, weights=weights)
    return np.sqrt((mean**2).sum(1)) / np.sqrt(variance.sum(1))


@pytest.mark.parametrize("count", [2, 3, 50, 1000])
def test_the_ratio_is_the_weighted_means_norm_over_the_weighted_deviation(count: int) -> None:
    sequence = gradients(count)
    np.testing.assert_allclose(observed(sequence).snr().numpy(), snr_by_numpy(sequence), rtol=1e-4)


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    sequence = gradients(300, mean=300.0)
    np.testing.assert_allclose(observed(sequence).snr().numpy(), snr_by_numpy(sequence), rtol=1e-3)


def test_pure_noise_has_the_ratio_that_the_documentation_states() -> None:
    # the mean over 20 sequences of 3 cells of 9 operators is within a few percent
    ratios = [observed(gradients(600, seed, mean=0.0)).snr().mean().item() for seed in range(20)]
    assert np.mean(ratios) == pytest.approx(((1 - DECAY) / (1 + DECAY)) ** 0.5, rel=0.1)


def test_without_two_different_gradients_the_ratio_is_zero() -> None:
    assert observed(gradients(0)).snr().tolist() == [0.0] * CELLS
    assert observed(gradients(1)).snr().tolist() == [0.0] * CELLS
    assert observed(torch.ones(5, CELLS, OPERATORS)).snr().tolist() == [0.0] * CELLS


def test_metrics_are_named_by_cell() -> None:
    noise = observed(gradients(10))
    metrics = {name: float(value) for name, value in noise.metrics().items()}
    assert metrics == {f"search/alpha_snr_cell0{i}": ratio for i, ratio in enumerate(noise.snr().tolist())}


def test_a_loaded_state_goes_on_to_the_last_bit() -> None:
    sequence = gradients(20)
    first, resumed = observed(sequence[:12]), GradientNoise(CELLS, OPERATORS)
    resumed.load_state_dict(first.state_dict())
    for gradient in sequence[12:]:
        resumed.observe(gradient)
    whole: dict[str, Any] = observed(sequence).state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole[name]), name
    assert torch.equal(resumed.snr(), observed(sequence).snr())


def test_a_checkpoint_without_a_state_starts_a_new_average() -> None:
    # as a part of a module that has other weights, which the checkpoint holds
    noise = GradientNoise(CELLS, OPERATORS)
    module = nn.ModuleDict({"noise": noise, "weights": nn.Linear(1, 1)})
    module.load_state_dict({name: x for name, x in module.state_dict().items() if name.startswith("weights")})
    assert noise.snr().tolist() == [0.0] * CELLS
