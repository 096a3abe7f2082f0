"""The supernet and the search on it: the mixture, the cost, the derived network, one draw a rollout, checkpoints."""

import csv
import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from a2d_lightning import losses
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.envs import FrameSettings
from a2d_lightning.errors import SettingError
from a2d_lightning.macs import count_macs
from a2d_lightning.modules import SearchModule
from a2d_lightning.networks import ActorCritic, count_parameters, initialize
from a2d_lightning.search_space import OPERATORS, Architecture, Plan
from a2d_lightning.supernet import OPERATOR_NAMES, MixedCell, Supernet, inherit_weights
from callbacks import FLOPsLogging, TemperatureAnnealing

PLAN = Plan((2, 2, 1), (4, 6, 5))
FRAME = (3, 37, 29)  # odd all the way: 19x15, 10x8, 5x4
TINY = Plan((1, 1, 1), (4, 4, 4))


def make_supernet(plan: Plan = PLAN, seed: int = 0, frame: tuple[int, int, int] = FRAME) -> Supernet:
    torch.manual_seed(seed)
    supernet = Supernet(plan, frame)
    with torch.no_grad():
        supernet.alpha_logits.normal_()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            # as if it had been trained: no norm is the identity
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    supernet.draw(torch.Generator().manual_seed(seed))
    return supernet


def decide(supernet: Supernet, seed: int) -> tuple[str, ...]:
    """One-hot alpha at random operators: the others' shares underflow to 0."""
    chosen = torch.randint(len(OPERATOR_NAMES), (len(supernet.cells),), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        supernet.alpha_logits.fill_(-1e3)
        supernet.alpha_logits[torch.arange(len(chosen)), chosen] = 1e3
        supernet.tau.fill_(0.05)
    return tuple(OPERATOR_NAMES[i] for i in chosen)


def random_pixels(batch: int, frame: tuple[int, int, int] = FRAME) -> Tensor:
    return torch.randint(256, (batch, *frame), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def make_search(plan: Plan = TINY, frame: tuple[int, int, int] = (2, 21, 21), **settings: Any) -> SearchModule:
    torch.manual_seed(0)
    common = {"game": "Toy", "frame_shape": frame, "num_actions": 3, "total_env_steps": 1000}
    return SearchModule(plan, **{**common, **settings})


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
        supernet.alpha_logits[:, OPERATOR_NAMES.index(name)] = 1e3
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
    assert architecture.operators == tuple(OPERATOR_NAMES[i] for i in supernet.alpha_logits.argmax(-1))
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
        supernet.alpha_logits[0, OPERATOR_NAMES.index("conv_k5")] = 1e3
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
            torch.testing.assert_close(mixed(x, weights), by_hand)


def test_each_cell_of_the_supernet_gets_its_own_row_of_the_mixture() -> None:
    supernet = make_supernet().train()
    seen: list[Tensor] = []
    for cell in supernet.cells:
        cell.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    supernet(torch.rand(2, *FRAME))
    assert torch.equal(torch.stack(seen), supernet.mixture())


def test_alpha_learns_from_what_the_supernet_says() -> None:
    supernet = make_supernet().train()
    supernet(torch.rand(2, *FRAME)).sum().backward()
    assert supernet.alpha_logits.grad is not None
    assert (supernet.alpha_logits.grad.norm(dim=-1) > 0).all()


# --- the cost ---------------------------------------------------------------------------------------------------------


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
    assert supernet.expected_macs().item() == pytest.approx(by_hand, rel=1e-6)  # float32


def test_expected_macs_know_neither_noise_nor_temperature() -> None:
    supernet = make_supernet().train()
    before = supernet.expected_macs()
    supernet.tau.fill_(0.1)
    supernet.draw(torch.Generator().manual_seed(99))
    assert torch.equal(supernet.expected_macs(), before)


def test_at_one_hot_alpha_expected_macs_are_those_of_the_derived_network() -> None:
    supernet = make_supernet()
    decide(supernet, seed=3)
    # all below 2^24, so exact in float32
    assert supernet.expected_macs().item() == supernet.argmax_macs() == supernet.derive().macs


def test_the_gradient_of_expected_macs_agrees_with_finite_differences() -> None:
    # in float64 with eps = 1e-6: truncation about eps^2 and rounding about 1e-16 / eps, relative to the cost
    supernet = make_supernet().double()
    (gradient,) = torch.autograd.grad(supernet.expected_macs(), supernet.alpha_logits)
    eps, numeric = 1e-6, torch.zeros_like(gradient)
    with torch.no_grad():
        for position in range(gradient.numel()):
            alpha = supernet.alpha_logits.view(-1)
            alpha[position] += eps
            above = supernet.expected_macs().item()
            alpha[position] -= 2 * eps
            below = supernet.expected_macs().item()
            alpha[position] += eps
            numeric.view(-1)[position] = (above - below) / (2 * eps)
    tolerance = 10 * 2.2e-16 * supernet.expected_macs().item() / eps
    assert gradient.abs().min() > 100 * tolerance
    torch.testing.assert_close(gradient, numeric, rtol=0, atol=tolerance)


def test_cost_pushes_alpha_towards_skip() -> None:
    # at uniform alpha the gradient is (MACs - mean MACs) / 9, lowest at the cheapest operator
    supernet = make_supernet()
    with torch.no_grad():
        supernet.alpha_logits.zero_()
    (gradient,) = torch.autograd.grad(supernet.expected_macs(), supernet.alpha_logits)
    macs = supernet.macs_table
    # float32 sums of numbers up to the largest MACs
    tolerance = 1e-6 * macs.max().item()
    torch.testing.assert_close(gradient, (macs - macs.mean(-1, keepdim=True)) / 9, rtol=0, atol=tolerance)
    assert (gradient.argmin(-1) == OPERATOR_NAMES.index("skip")).all()


# --- theta and alpha --------------------------------------------------------------------------------------------------


def test_theta_and_alpha_are_disjoint_and_together_all_that_trains() -> None:
    module = make_search()
    theta = {id(p) for p in module.weights()}
    alpha = {id(module.supernet.alpha_logits)}
    assert not theta & alpha
    assert theta | alpha == {id(p) for p in module.parameters() if p.requires_grad}
    assert len(theta) == len(module.weights())


def test_each_optimizer_has_its_own_part_and_alphas_is_the_papers_adam() -> None:
    module = make_search(alpha_learning_rate=2e-3)
    weights, alpha = ([p for g in o.param_groups for p in g["params"]] for o in module.configure_optimizers())
    assert [id(p) for p in weights] == [id(p) for p in module.weights()]
    assert [id(p) for p in alpha] == [id(module.supernet.alpha_logits)]
    optimizer = module.configure_optimizers()[1]
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 2e-3
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["weight_decay"] == 0


def test_clipping_neither_sees_nor_touches_alpha() -> None:
    module = make_search(gradient_clip_norm=0.5)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.supernet.alpha_logits.grad = torch.full_like(module.supernet.alpha_logits, 1e6)
    theta = module.weights()
    # ones everywhere: the norm is the root of their number
    assert module.clip_weights_gradient().item() == pytest.approx(math.sqrt(sum(p.numel() for p in theta)), rel=1e-5)
    assert torch.cat([p.grad.flatten() for p in theta]).norm().item() == pytest.approx(0.5, rel=1e-4)
    assert (module.supernet.alpha_logits.grad == 1e6).all()


class StubOptimizer:
    """Keeps the gradients that it is asked to apply."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.applied = parameters, []

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        self.applied = [p.grad.clone() for p in self.parameters]


def test_one_backward_gives_theta_the_gradient_of_the_loss_alone_and_alpha_the_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make_search(lambda_cost=0.3, gradient_clip_norm=1e9).train()
    alpha, theta = module.supernet.alpha_logits, module.weights()
    with torch.no_grad():
        alpha.normal_()
    optimizers = [StubOptimizer(theta), StubOptimizer([alpha])]
    monkeypatch.setattr(module, "optimizers", lambda: optimizers)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())

    logits, value = module.agent(random_pixels(6, (2, 21, 21)))
    action, advantage = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6)
    terms = {
        "policy": losses.policy_loss(logits, action, advantage),
        "entropy": losses.entropy_loss(logits),
        "value": losses.value_loss(value, torch.randn(6)),
    }
    # Eq. 8 with the paper's weights
    total = terms["policy"] + terms["value"] + 0.01 * terms["entropy"]
    *of_theta, of_alpha = torch.autograd.grad(total, [*theta, alpha], retain_graph=True)
    cost = module.supernet.expected_macs() / module.reference_macs
    (of_cost,) = torch.autograd.grad(0.3 * cost, alpha)
    metrics = module.update(terms)

    scale = max(g.abs().max() for g in of_theta).item()
    for applied, expected in zip(optimizers[0].applied, of_theta, strict=True):
        # the same graph, the loss's terms summed in another order: rounding only
        torch.testing.assert_close(applied, expected, rtol=1e-4, atol=1e-6 * scale)
    assert of_cost.norm() > 1e-3 * of_alpha.norm()
    torch.testing.assert_close(optimizers[1].applied[0], of_alpha + of_cost)
    torch.testing.assert_close(metrics["loss/total"], total.detach())
    torch.testing.assert_close(metrics["loss/cost"], cost.detach())
    torch.testing.assert_close(metrics["gradient/alpha_cost_norm"], of_cost.norm())
    # a difference of two nearly equal vectors where the cost's part is the larger one
    noise = 1e-5 * of_cost.norm().item()
    torch.testing.assert_close(metrics["gradient/alpha_reward_norm"], of_alpha.norm(), rtol=1e-4, atol=noise)


def test_theta_gets_the_same_gradient_bit_by_bit_whatever_lambda_is(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []
    for lambda_cost in (0.0, 50.0):
        module = make_search(lambda_cost=lambda_cost).train()
        optimizers = [StubOptimizer(module.weights()), StubOptimizer([module.supernet.alpha_logits])]
        monkeypatch.setattr(module, "optimizers", lambda o=optimizers: o)
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        logits, value = module.agent(random_pixels(6, (2, 21, 21)))
        module.update({"entropy": losses.entropy_loss(logits), "value": losses.value_loss(value, torch.ones(6))})
        applied.append(optimizers)
    (without, alpha), (costly, costly_alpha) = applied
    assert all(torch.equal(a, b) for a, b in zip(without.applied, costly.applied, strict=True))
    assert not torch.equal(alpha.applied[0], costly_alpha.applied[0])


# --- a search ---------------------------------------------------------------------------------------------------------


class Forward(NamedTuple):
    """What the supernet mixed with in one forward of a search."""

    rollout: int
    """Updates that were begun before it."""
    learning: bool
    gumbel: Tensor
    tau: float
    training: bool


class RecordedSearch(SearchModule):
    """Keeps what each forward mixed with."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.forwards: list[Forward] = []
        self.learning = False
        self.updates = 0
        self.kl: list[float] = []
        self.supernet.register_forward_pre_hook(self.record)

    def record(self, supernet: Supernet, args: Any) -> None:
        forward = Forward(self.updates, self.learning, supernet.gumbel.clone(), supernet.tau.item(), supernet.training)
        self.forwards.append(forward)

    def training_step(self, rollout: Any, batch_idx: int) -> None:
        self.learning = True
        super().training_step(rollout, batch_idx)
        self.learning = False
        self.updates += 1
        self.kl.append(float(self.trainer.callback_metrics["policy/kl_acted_updated"]))


class Search(NamedTuple):
    """A short real search and what it left."""

    module: RecordedSearch
    trainer: L.Trainer
    checkpoint: Path
    folder: Path


ROLLOUTS = 6
ENVS, LENGTH = 2, 5


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    folder = tmp_path_factory.mktemp("search")
    L.seed_everything(0, verbose=False)
    data = RolloutDataModule(
        "Pong",
        num_envs=ENVS,
        rollout_length=LENGTH,
        total_env_steps=ROLLOUTS * ENVS * LENGTH,
        env_steps_per_epoch=ROLLOUTS * ENVS * LENGTH // 2,  # two epochs of three rollouts
        frames=FrameSettings(size=42),
        num_env_threads=1,
    )
    module = RecordedSearch(
        plan=TINY,
        game=data.game,
        frame_shape=data.frame_shape,
        num_actions=data.num_actions,
        total_env_steps=data.total_env_steps,
        seed=3,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=2,
        callbacks=[TemperatureAnnealing(num_decays=3 * ROLLOUTS), FLOPsLogging()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
    path = folder / "search.ckpt"
    trainer.save_checkpoint(path)
    return Search(module, trainer, path, folder)


def test_one_draw_and_one_temperature_serve_acting_and_updating_on_a_rollout(search: Search) -> None:
    for rollout in range(ROLLOUTS):
        acting = [f for f in search.module.forwards if f.rollout == rollout and not f.learning]
        learning = [f for f in search.module.forwards if f.rollout == rollout and f.learning]
        # before the first rollout the collector tries its policy once
        assert (len(acting), len(learning)) == (LENGTH + (rollout == 0), 1)
        assert all(f.training for f in acting + learning)
        assert all(torch.equal(f.gumbel, learning[0].gumbel) for f in acting)
        assert all(f.tau == learning[0].tau for f in acting)


def test_every_rollout_has_a_new_draw_and_its_own_temperature(search: Search) -> None:
    learning = [f for f in search.module.forwards if f.learning]
    assert all((a.gumbel != b.gumbel).all() for a, b in pairwise(learning))
    # 3 decays a rollout from 5
    assert [f.tau for f in learning] == pytest.approx([5 * 0.98 ** (3 * k) for k in range(ROLLOUTS)])


def test_the_draws_are_those_of_the_seed(search: Search) -> None:
    other = make_supernet(TINY, frame=(4, 42, 42))
    generator = torch.Generator().manual_seed(3)
    for forward in [f for f in search.module.forwards if f.learning]:
        other.draw(generator)
        assert torch.equal(forward.gumbel, other.gumbel)


def test_the_policy_that_acts_is_the_policy_that_is_updated(search: Search) -> None:
    # not 0: batch norm sees 2 frames when acting and 12 when learning
    assert len(search.module.kl) == ROLLOUTS
    assert all(0 <= kl < 1e-2 for kl in search.module.kl)


def test_running_statistics_are_those_of_the_learners_batches_alone(search: Search) -> None:
    norms = [m for m in search.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert {int(norm.num_batches_tracked) for norm in norms} == {ROLLOUTS}


def test_a_search_moves_weights_and_alpha_and_counts_its_steps(search: Search) -> None:
    assert search.module.env_steps == ROLLOUTS * ENVS * LENGTH
    # Adam's step is about its rate, 1e-3, where the gradient keeps its sign
    assert 0 < search.module.supernet.alpha_logits.abs().max() <= 1.5e-3 * ROLLOUTS


def test_the_search_logs_its_metrics_with_every_row_of_the_log(search: Search) -> None:
    rows = list(csv.DictReader((search.folder / "metrics.csv").open()))
    assert len(rows) == ROLLOUTS // 2
    for row in rows:
        for name in ("search/tau", "search/expected_macs", "search/skips", "loss/cost", "policy/kl_acted_updated"):
            assert row[name], name


def test_a_checkpoint_restores_the_draw_the_temperature_and_the_draws_to_come(search: Search) -> None:
    old = search.module
    checkpoint = torch.load(search.checkpoint, weights_only=True)
    settings = {"game": old.game, "frame_shape": old.frame_shape, "num_actions": old.num_actions}
    new = make_search(seed=99, **settings)
    assert not torch.equal(new.supernet.gumbel, old.supernet.gumbel)
    new.on_load_checkpoint(checkpoint)
    new.load_state_dict(checkpoint["state_dict"])
    assert new.env_steps == ROLLOUTS * ENVS * LENGTH
    assert new.supernet.tau.item() == pytest.approx(5 * 0.98 ** (3 * ROLLOUTS))
    assert torch.equal(new.supernet.alpha_logits, old.supernet.alpha_logits)
    assert torch.equal(new.supernet.gumbel, old.supernet.gumbel)
    upcoming = torch.Generator()
    upcoming.set_state(old.gumbel_generator.get_state())
    expected = make_supernet(TINY, frame=old.frame_shape)
    expected.draw(upcoming)
    new.on_train_batch_end(None, None, 0)
    assert torch.equal(new.supernet.gumbel, expected.gumbel)


def test_a_checkpoint_holds_both_optimizers(search: Search) -> None:
    weights, alpha = torch.load(search.checkpoint, weights_only=True)["optimizer_states"]
    assert len(weights["state"]) == len(search.module.weights())
    assert len(alpha["state"]) == 1
    assert alpha["state"][0]["step"] == ROLLOUTS


def test_a_checkpoint_of_another_game_is_refused(search: Search) -> None:
    checkpoint = torch.load(search.checkpoint, weights_only=True)
    other = make_search(frame=search.module.frame_shape, num_actions=search.module.num_actions, game="breakout")
    with pytest.raises(SettingError, match=r"game is .*breakout"):
        other.on_load_checkpoint(checkpoint)
