"""The supernet: the mixture, its draws, the derived network."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_supernets import FRAME, PLAN, decide, make_supernet, mixed_by_hand, random_pixels
from torch import Tensor, nn

from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import ActorCritic, count_parameters, initialize
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.sampling import SoftSum
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import MixedCell, inherit_weights

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
        supernet.alpha_logits[:, tuple(OPERATORS).index(name)] = 1e3
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
    assert architecture.operators == tuple(tuple(OPERATORS)[i] for i in supernet.alpha_logits.argmax(-1))
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
        supernet.alpha_logits[0, tuple(OPERATORS).index("conv_k5")] = 1e3
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
            torch.testing.assert_close(SoftSum().mix(mixed.operators, x, weights, range(9)), by_hand)


class RecordedSum(SoftSum):
    """Keeps what each cell was mixed from."""

    def __init__(self) -> None:
        self.seen: list[tuple[nn.ModuleList, Tensor, Sequence[int]]] = []

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        self.seen.append((operators, weights, ranking))
        return super().mix(operators, x, weights, ranking)


def test_each_cell_of_the_supernet_gets_its_own_row_of_the_mixture_and_of_the_ranking() -> None:
    supernet = make_supernet(sampling=RecordedSum()).train()
    supernet(torch.rand(2, *FRAME))
    assert isinstance(supernet.sampling, RecordedSum)
    operators, weights, ranking = zip(*supernet.sampling.seen, strict=True)
    assert all(a is cell.operators for a, cell in zip(operators, supernet.cells, strict=True))
    assert torch.equal(torch.stack(weights), supernet.mixture())
    noisy = (supernet.alpha_logits + supernet.gumbel).tolist()
    assert [list(row) for row in ranking] == [sorted(range(9), key=row.__getitem__, reverse=True) for row in noisy]


@pytest.mark.parametrize("training", [False, True])
def test_the_supernet_is_its_stem_then_each_cells_equation_10_then_its_end(training: bool) -> None:
    supernet = make_supernet().double().train(training)
    x = torch.rand(2, *FRAME, dtype=torch.float64)
    with torch.no_grad():
        y = supernet.mixture()
        by_hand = mixed_by_hand(supernet, x, y, torch.ones_like(y, dtype=torch.bool))
        assert by_hand.std() > 0
        torch.testing.assert_close(supernet(x), by_hand)


def test_alpha_learns_from_what_the_supernet_says() -> None:
    supernet = make_supernet().train()
    supernet(torch.rand(2, *FRAME)).sum().backward()
    assert supernet.alpha_logits.grad is not None
    assert (supernet.alpha_logits.grad.norm(dim=-1) > 0).all()
