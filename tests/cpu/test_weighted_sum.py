"""The sum of weighted operators in one pass is the sum term by term: values and gradients."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from a2d_lightning.cpu.kernels import kernels
from a2d_lightning.cpu.weighted_sum import weighted_sum


def tensors(count: int, shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    terms = [
        torch.randn(shape, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
        for _ in range(count)
    ]
    return torch.rand(count, generator=generator).requires_grad_(), terms


def gradients(weights: Tensor, terms: list[Tensor], out: Tensor, second: bool = False) -> list[Tensor]:
    total = out.pow(3).sum()
    found = torch.autograd.grad(total, (weights, *terms), create_graph=second)
    if second:
        norm = torch.stack([each.square().sum() for each in found]).sum()
        return list(torch.autograd.grad(norm, (weights, *terms)))
    return [out.detach(), *found]


@pytest.mark.parametrize("second", [False, True])
# 1,024 elements are a block, 16 blocks a share: fewer, more, and neither a multiple
@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1, 1, 1)), (9, (2, 3, 5, 7)), (9, (16, 16, 21, 21))])
def test_values_and_gradients_are_those_of_double_precision(count: int, shape: tuple[int, ...], second: bool) -> None:
    weights, terms = tensors(count, shape)
    run = kernels()
    assert run is not None
    with patch.object(run, "weighted_sum", wraps=run.weighted_sum) as called:
        found = gradients(weights, terms, weighted_sum(weights, terms), second)
    assert called.call_count == 1
    exact = weights.detach().double().requires_grad_(), [t.detach().double().requires_grad_() for t in terms]
    by_hand = sum(weight * term for weight, term in zip(*exact, strict=True))
    for mine, theirs in zip(found, gradients(*exact, by_hand, second), strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_each_frame_has_weights_of_its_own() -> None:
    _, terms = tensors(9, (4, 8, 6, 6))
    weights = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = gradients(weights, terms, weighted_sum(weights, terms))
    exact = weights.detach().double().requires_grad_(), [t.detach().double().requires_grad_() for t in terms]
    by_hand = torch.einsum("bo,obchw->bchw", exact[0], torch.stack(exact[1]))
    for mine, theirs in zip(found, gradients(*exact, by_hand), strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_acting_gives_what_learning_gives() -> None:
    weights, terms = tensors(9, (4, 8, 6, 6))
    with torch.no_grad():
        acted = weighted_sum(weights, terms)
    assert torch.equal(acted, weighted_sum(weights, terms))


@pytest.mark.parametrize("other", ["layout of one", "dtype", "kernels"])
def test_what_does_not_fit_is_summed_term_by_term(other: str) -> None:
    weights, terms = tensors(3, (4, 8, 6, 6))
    if other == "layout of one":
        terms[1] = terms[1].detach().contiguous().requires_grad_()
    if other == "dtype":
        terms = [term.detach().double().requires_grad_() for term in terms]
    run = kernels()
    assert run is not None
    with (
        patch.object(run, "weighted_sum") as called,
        patch("a2d_lightning.cpu.weighted_sum.kernels", lambda: None if other == "kernels" else run),
    ):
        out = weighted_sum(weights, terms)
    assert not called.called
    expected = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    torch.testing.assert_close(out, expected)


def test_a_gradient_of_another_layout_is_the_same_gradient() -> None:
    weights, terms = tensors(2, (4, 8, 6, 6))
    gradient = torch.randn(4, 8, 6, 6)
    found = [
        torch.autograd.grad(weighted_sum(weights, terms), (weights, *terms), each)
        for each in (gradient, gradient.to(memory_format=torch.channels_last))
    ]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
