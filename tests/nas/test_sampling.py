"""Which operators a draw computes, what comes out and what learns: against a sum that computes every operator."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from small_supernets import FRAME, PLAN, decide, eq11, make_supernet, mixed_by_hand
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.sampling import HardStraightThrough, Sampling, SinglePath, SoftSum, TopK
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet, inherit_weights
from a2d_lightning.runtime.errors import SettingError

SMALL = Plan((1, 1, 1), (4, 5, 6))
# each with the number of operators that give alpha its gradient
PATHS: list[tuple[Sampling, int]] = [
    (SinglePath(), 1),
    (TopK(1), 1),
    (TopK(), 2),
    (TopK(4), 4),
    (TopK(9), 9),
    (HardStraightThrough(), 9),
]
EVERY = [SoftSum(), SinglePath(), TopK(2), TopK(4), HardStraightThrough()]


def name_of(value: Any) -> str | None:
    return f"{type(value).__name__}{value.computed.forward}" if isinstance(value, Sampling) else None


def ranking_of(supernet: Supernet) -> Tensor:
    """Operators by falling log alpha + g, sorted in Python."""
    noisy = (supernet.log_alpha() + supernet.gumbel).tolist()
    return torch.tensor([sorted(range(9), key=row.__getitem__, reverse=True) for row in noisy])


def one_hot(chosen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter(1, chosen[:, None], 1.0)


def gradients(features: Tensor, supernet: Supernet, x: Tensor) -> dict[str, Tensor]:
    """Of a scalar that no two features enter alike, on alpha, theta and the frames; zeros where nothing learns."""
    named = {"frames": x, **dict(supernet.named_parameters())}
    total = (features * torch.linspace(-1, 2, features.numel(), dtype=features.dtype).view_as(features)).sum()
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def outputs_and_gradients_agree(supernet: Supernet, by_hand_weights: Tensor, learning: Tensor) -> dict[str, Tensor]:
    x = torch.rand(2, *FRAME, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    by_hand = mixed_by_hand(supernet, x, by_hand_weights, learning)
    features = supernet(x)
    assert by_hand.std() > 0
    torch.testing.assert_close(features, by_hand)
    found, expected = gradients(features, supernet, x), gradients(by_hand, supernet, x)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=partial("{}: {}".format, name))
    return found


# --- what comes out and what learns -----------------------------------------------------------------------------------


def test_a_soft_sum_is_the_sum_of_products_and_every_operator_learns() -> None:
    supernet = make_supernet(sampling=SoftSum()).double().train()
    supernet.tau.fill_(0.7)
    y = eq11(supernet.alpha_logits, supernet.gumbel, 0.7)
    found = outputs_and_gradients_agree(supernet, y, torch.ones_like(y, dtype=torch.bool))
    for name, gradient in found.items():
        assert gradient.any(), name


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("sampling", "k"), PATHS, ids=name_of)
def test_a_sampled_path_has_the_gradients_of_the_dense_sum_with_all_but_the_k_highest_left_out(
    sampling: Sampling, k: int, seed: int
) -> None:
    # sum_i w_i O_i with w = one_hot(sampled) + mask_k (y - y.detach()): in value O_sampled alone; its own weights learn
    # as if it were the only operator, and alpha as in the soft sum of the k highest
    supernet = make_supernet(seed=seed, sampling=sampling).double().train()
    supernet.tau.fill_(0.7)
    ranking = ranking_of(supernet)
    y = eq11(supernet.alpha_logits, supernet.gumbel, 0.7)
    mask = torch.zeros_like(y).scatter(1, ranking[:, :k], 1.0)
    sampled = one_hot(ranking[:, 0], y)
    found = outputs_and_gradients_agree(supernet, sampled + mask * (y - y.detach()), sampled.bool())
    assert (found["alpha_logits"].norm(dim=-1) > 0).all()
    names = {id(p): name for name, p in supernet.named_parameters()}
    for mixed, first in zip(supernet.cells, ranking[:, 0].tolist(), strict=True):
        for i, operator in enumerate(mixed.operators):
            # all that the sampled operator has learns (a skip that changes no shape has nothing), and no other does
            assert all(found[names[id(p)]].any() == (i == first) for p in operator.parameters())


@pytest.mark.parametrize(("sampling", "k"), PATHS, ids=name_of)
@pytest.mark.parametrize("tau", [0.05, 1.0, 5.0])
def test_the_weights_of_a_path_are_exactly_one_hot(sampling: Sampling, k: int, tau: float) -> None:
    supernet = make_supernet(sampling=sampling).train()
    supernet.tau.fill_(tau)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        supernet.draw(generator)
        weights = supernet.weights()
        assert weights.requires_grad
        assert torch.equal(weights, one_hot(ranking_of(supernet)[:, 0], weights))


@pytest.mark.parametrize("k", [-1, 0, 10])
def test_paths_that_are_no_number_of_operators_are_refused(k: int) -> None:
    with pytest.raises(SettingError, match=rf"sampling\.k: {k} paths of 9 operators; choose 1 to 9"):
        make_supernet(sampling=TopK(k))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sampling", EVERY, ids=name_of)
def test_at_one_hot_alpha_every_way_to_sample_is_the_derived_network(sampling: Sampling, training: bool) -> None:
    supernet = make_supernet(sampling=sampling)
    operators = decide(supernet, seed=2)
    supernet.draw(torch.Generator().manual_seed(0))
    backbone = supernet.derive().build(FRAME)
    inherit_weights(backbone, supernet, operators)
    supernet.train(training)
    backbone.train(training)
    x = torch.rand(3, *FRAME)
    with torch.no_grad():
        assert torch.equal(supernet(x), backbone(x))


@pytest.mark.parametrize("sampling", EVERY[1:], ids=name_of)
def test_in_evaluation_the_path_is_alphas_whatever_was_drawn(sampling: Sampling) -> None:
    supernet = make_supernet(sampling=sampling)
    best = [tuple(OPERATORS)[i] for i in supernet.alpha_logits.argmax(-1)]
    assert (supernet.ranking[:, 0] != supernet.alpha_logits.argmax(-1)).any()
    backbone = supernet.derive().build(FRAME)
    inherit_weights(backbone, supernet, best)
    x = torch.rand(2, *FRAME)
    with torch.no_grad():
        expected = backbone.eval()(x)
        assert not torch.allclose(supernet.train()(x), expected)
        inherit_weights(backbone, supernet, best)  # train mode has moved its statistics
        assert torch.equal(supernet.eval()(x), backbone.eval()(x))
    assert torch.equal(supernet.weights(), one_hot(supernet.alpha_logits.argmax(-1), supernet.alpha_logits))


# --- what is computed -------------------------------------------------------------------------------------------------


def calls(supernet: Supernet, learning: bool) -> list[list[int]]:
    """How often each operator of each cell is called in one forward."""
    called: Counter[tuple[int, int]] = Counter()
    handles = [
        operator.register_forward_hook(lambda *_, key=(cell, i): called.update([key]))
        for cell, mixed in enumerate(supernet.cells)
        for i, operator in enumerate(mixed.operators)
    ]
    with torch.set_grad_enabled(learning):
        supernet(torch.rand(2, *FRAME))
    for handle in handles:
        handle.remove()
    return [[called[cell, i] for i in range(9)] for cell in range(len(supernet.cells))]


@pytest.mark.parametrize(("sampling", "k"), PATHS, ids=name_of)
def test_acting_calls_the_sampled_operator_alone_and_an_update_the_k_highest(sampling: Sampling, k: int) -> None:
    supernet = make_supernet(sampling=sampling).train()
    ranking = ranking_of(supernet).tolist()
    assert calls(supernet, learning=False) == [[int(i == row[0]) for i in range(9)] for row in ranking]
    assert calls(supernet, learning=True) == [[int(i in row[:k]) for i in range(9)] for row in ranking]
    supernet.eval()
    best = supernet.alpha_logits.argmax(-1).tolist()
    assert calls(supernet, learning=False) == [[int(i == b) for i in range(9)] for b in best]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("learning", [False, True])
def test_a_soft_sum_calls_every_operator(learning: bool, training: bool) -> None:
    supernet = make_supernet(sampling=SoftSum()).train(training)
    assert calls(supernet, learning) == [[1] * 9] * len(PLAN.cells())


@pytest.mark.parametrize("sampling", EVERY, ids=name_of)
def test_a_way_to_sample_knows_whether_it_leaves_operators_without_a_gradient(sampling: Sampling) -> None:
    supernet = make_supernet(sampling=sampling).train()
    supernet(torch.rand(2, *FRAME)).sum().backward()
    without = [name for name, p in supernet.named_parameters() if p.grad is None]
    assert sampling.skips_operators == bool(without)


def corrected_convolution_backward(grad_out: Any, x: Any, weight: Any, *args: Any, **others: Any) -> int:
    """FLOPs of a convolution's backward.

    PyTorch 2.13's own formula counts the gradient of a grouped convolution's weights as if it were dense, a C x C
    matrix of kernels of which C are computed. Each of the two gradients takes every product of the forward once.
    """
    *_, output_mask = args[:8]
    return sum(output_mask[:2]) * conv_flop_count(list(x), list(weight), list(grad_out))


def macs_a_frame(counter: FlopCounterMode, frames: int) -> float:
    """A multiply-accumulate is two FLOPs."""
    return counter.get_total_flops() / 2 / frames


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sampling", EVERY, ids=name_of)
def test_what_a_draw_costs_is_what_torch_counts_while_acting_and_in_an_update(
    sampling: Sampling, seed: int, recompute: bool
) -> None:
    supernet = make_supernet(SMALL, seed=seed, sampling=sampling).train()
    supernet.recompute_activations = recompute
    x = torch.rand(2, *FRAME)
    formulas = {torch.ops.aten.convolution_backward: corrected_convolution_backward}
    acting, forward, backward = (FlopCounterMode(display=False, custom_mapping=formulas) for _ in range(3))
    with torch.no_grad(), acting:
        supernet(x)
    with forward:
        total = supernet(x).sum()
    with backward:
        total.backward()
    macs = supernet.draw_macs()
    counted = [macs_a_frame(counter, len(x)) for counter in (acting, forward, backward)]
    assert [macs.acting, macs.forward, macs.backward] == counted


@pytest.mark.parametrize("sampling", EVERY, ids=name_of)
def test_what_an_evaluation_costs_is_what_torch_counts(sampling: Sampling) -> None:
    supernet = make_supernet(SMALL, sampling=sampling).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        supernet(torch.rand(2, *FRAME))
    assert supernet.evaluation_macs() == macs_a_frame(counter, 2)
    # the draw's path, which evaluations do not take, costs something else where not all operators are computed
    assert (supernet.draw_macs().acting == supernet.evaluation_macs()) == isinstance(sampling, SoftSum)


# --- the draw ---------------------------------------------------------------------------------------------------------


def test_an_operator_is_sampled_as_often_as_alpha_says() -> None:
    # The Gumbel-max trick: P(argmax(log alpha + g) = i) = alpha_i. The count of n draws is binomial: five standard
    # errors of a share are 5 sqrt(p (1 - p) / n), at most 0.04 with n = 4000; the shares spread over 0 to 0.5, and the
    # least of them is still drawn dozens of times
    supernet, generator, n = make_supernet(), torch.Generator().manual_seed(0), 4000
    alpha = supernet.alpha_logits.detach().double().softmax(-1)
    assert alpha.max() > 0.3
    assert n * alpha.min() > 24
    counts = torch.zeros_like(alpha)
    for _ in range(n):
        supernet.draw(generator)
        counts += one_hot(supernet.ranking[:, 0], alpha)
    assert ((counts / n - alpha).abs() <= 5 * (alpha * (1 - alpha) / n).sqrt()).all()


def test_the_second_of_the_ranking_is_sampled_from_what_the_first_leaves() -> None:
    # Gumbel top-k: P(first = i, second = j) = alpha_i alpha_j / (1 - alpha_i). Bounds as above, of the second's share
    supernet, generator, n = make_supernet(SMALL), torch.Generator().manual_seed(1), 4000
    alpha = supernet.alpha_logits.detach().double().softmax(-1)
    pairs = alpha[:, :, None] * alpha[:, None, :] / (1 - alpha[:, :, None])  # [cells, first, second]
    pairs.diagonal(dim1=1, dim2=2).zero_()
    second = pairs.sum(1)
    assert (second - alpha).abs().max() > 0.05
    counts = torch.zeros_like(alpha)
    for _ in range(n):
        supernet.draw(generator)
        counts += one_hot(supernet.ranking[:, 1], alpha)
    assert ((counts / n - second).abs() <= 5 * (second * (1 - second) / n).sqrt()).all()


@pytest.mark.parametrize("sampling", EVERY[1:], ids=name_of)
def test_a_draw_keeps_its_path_while_alpha_moves(sampling: Sampling) -> None:
    supernet = make_supernet(sampling=sampling).train()
    x, drawn = torch.rand(2, *FRAME), ranking_of(supernet)
    with torch.no_grad():
        before = supernet(x)
        supernet.alpha_logits.neg_()
        assert (ranking_of(supernet)[:, 0] != drawn[:, 0]).any()
        assert torch.equal(supernet(x), before)
    assert torch.equal(supernet.weights(), one_hot(drawn[:, 0], supernet.alpha_logits))
    supernet.draw(torch.Generator().manual_seed(0))  # the same noise, at the alpha of now
    assert torch.equal(supernet.ranking, ranking_of(supernet))


class StopHere(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_under_a_draw_the_supernet_is_as_it_was_then_and_afterwards_as_it_is(fails: bool) -> None:
    supernet = make_supernet(sampling=TopK(2)).train()
    x = torch.rand(2, *FRAME)
    supernet.tau.fill_(0.7)
    earlier, then = supernet.current_draw(), supernet(x)
    supernet.draw(torch.Generator().manual_seed(99))
    supernet.tau.fill_(0.2)
    later, now = supernet.current_draw(), supernet(x)
    assert not torch.equal(now, then)
    assert (later.ranking[:, 0] != earlier.ranking[:, 0]).any()
    try:
        with supernet.using_draw(earlier):
            assert torch.equal(supernet(x), then)
            torch.testing.assert_close(supernet.mixture(), eq11(supernet.alpha_logits, earlier.gumbel, 0.7))
            if fails:
                raise StopHere
    except StopHere:
        pass
    for name in ("gumbel", "tau", "ranking"):
        assert torch.equal(supernet.get_buffer(name), getattr(later, name)), name
    assert torch.equal(supernet(x), now)
