"""The search on the supernet: one draw a rollout, checkpoints."""

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from toy_game import train

from a2d_lightning.callbacks import FLOPsLogging, TemperatureAnnealing
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.runtime.errors import SettingError

TINY = Plan((1, 1, 1), (4, 4, 4))


def make_search(plan: Plan = TINY, frame: tuple[int, int, int] = (2, 21, 21), **settings: Any) -> SearchModule:
    torch.manual_seed(0)
    common = {"game": "Toy", "frame_shape": frame, "num_actions": 3, "total_env_steps": 1000}
    return SearchModule(plan, **{**common, **settings})


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
    trainer = train(
        module,
        data,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=2,
        callbacks=[TemperatureAnnealing(num_decays=3 * ROLLOUTS), FLOPsLogging()],
    )
    path = folder / "search.ckpt"
    trainer.save_checkpoint(path)
    return Search(module, trainer, path, folder)


def test_one_draw_and_one_temperature_serve_acting_and_updating_on_a_rollout(search: Search) -> None:
    for rollout in range(ROLLOUTS):
        acting = [f for f in search.module.forwards if f.rollout == rollout and not f.learning]
        learning = [f for f in search.module.forwards if f.rollout == rollout and f.learning]
        assert (len(acting), len(learning)) == (LENGTH, 1)
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
    norms: list[Any] = [m for m in search.module.modules() if isinstance(m, nn.BatchNorm2d)]
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
    settings: dict[str, Any] = {"game": old.game, "frame_shape": old.frame_shape, "num_actions": old.num_actions}
    new = make_search(seed=99, **settings)
    assert not torch.equal(new.supernet.gumbel, old.supernet.gumbel)
    new.on_load_checkpoint(checkpoint)
    new.load_state_dict(checkpoint["state_dict"])
    assert new.env_steps == ROLLOUTS * ENVS * LENGTH
    assert new.supernet.tau.item() == pytest.approx(5 * 0.98 ** (3 * ROLLOUTS))
    assert torch.equal(new.supernet.alpha_logits, old.supernet.alpha_logits)
    for buffer in ("gumbel", "ranking"):
        assert torch.equal(new.supernet.get_buffer(buffer), old.supernet.get_buffer(buffer)), buffer
    upcoming = torch.Generator()
    upcoming.set_state(old.gumbel_generator.get_state())
    expected = Supernet(TINY, old.frame_shape)
    expected.load_state_dict(old.supernet.state_dict())
    expected.draw(upcoming)
    new.on_train_batch_end(None, None, 0)
    for buffer in ("gumbel", "ranking"):
        assert torch.equal(new.supernet.get_buffer(buffer), expected.get_buffer(buffer)), buffer


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


def test_a_checkpoint_loads_whichever_module_registers_the_game(search: Search) -> None:
    checkpoint = torch.load(search.checkpoint, weights_only=True)
    game = f"users:{search.module.game}"
    module = make_search(frame=search.module.frame_shape, num_actions=search.module.num_actions, game=game)
    module.on_load_checkpoint(checkpoint)
    assert module.env_steps == search.module.env_steps
