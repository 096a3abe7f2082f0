"""The search on the supernet: theta and alpha, one draw a rollout, checkpoints."""

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
from a2d_lightning.modules import SearchModule
from a2d_lightning.search_space import Plan
from a2d_lightning.supernet import Supernet
from callbacks import FLOPsLogging, TemperatureAnnealing

TINY = Plan((1, 1, 1), (4, 4, 4))


def random_pixels(batch: int, frame: tuple[int, int, int]) -> Tensor:
    return torch.randint(256, (batch, *frame), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def make_search(plan: Plan = TINY, frame: tuple[int, int, int] = (2, 21, 21), **settings: Any) -> SearchModule:
    torch.manual_seed(0)
    common = {"game": "Toy", "frame_shape": frame, "num_actions": 3, "total_env_steps": 1000}
    return SearchModule(plan, **{**common, **settings})


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
    other = Supernet(TINY, (4, 42, 42))
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
    expected = Supernet(TINY, old.frame_shape)
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
