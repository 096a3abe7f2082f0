"""The search module under each scheme: which rollouts it keeps, what moves when, and which settings it refuses."""

from typing import Any

import lightning as L
import pytest
import torch
from tensordict import TensorDict
from toy_game import CATCH, SIZE, register, train

from a2d_lightning.callbacks import TemperatureAnnealing
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.sampling import TopK
from a2d_lightning.nas.schemes import (
    BiLevel,
    DrawnRollout,
    Metrics,
    OneLevel,
    OneLevelPerFrame,
    SearchScheme,
    UnrolledBiLevel,
)
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.runtime.errors import SettingError

register()
TINY = Plan((1, 1), (4, 4))
FRAME = (1, SIZE, SIZE)
ENVS, LENGTH = 2, 5
STEPS = ENVS * LENGTH


def make_search(**settings: Any) -> SearchModule:
    torch.manual_seed(0)
    common = {"game": "Toy", "frame_shape": FRAME, "num_actions": 3, "total_env_steps": 10 * STEPS}
    return SearchModule(TINY, **{**common, **settings})


def make_rollout(seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    shape = (ENVS, LENGTH)

    def pixels() -> torch.Tensor:
        return torch.randint(256, (*shape, *FRAME), dtype=torch.uint8, generator=generator)

    never = torch.zeros(shape, dtype=torch.bool)
    after = {
        "pixels": pixels(),
        "reward": torch.randn(shape, generator=generator),
        **dict.fromkeys(("terminated", "done", "game_over"), never),
        "game_score": torch.zeros(shape),
    }
    action = torch.randint(3, shape, generator=generator)
    acted = torch.full(shape, -1.1)
    return TensorDict({"pixels": pixels(), "action": action, "log_prob": acted, "next": after}, shape)


class Driven:
    """A search module that is handed rollouts as the trainer would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.module = make_search(**settings).train()
        optimizers = self.module.configure_optimizers()
        monkeypatch.setattr(self.module, "optimizers", lambda: optimizers)
        monkeypatch.setattr(self.module, "manual_backward", lambda loss: loss.backward())
        self.moved: list[tuple[bool, bool]] = []
        """Of each rollout, whether theta and alpha have moved."""

    def give(self, rollout: TensorDict) -> Metrics:
        module = self.module
        theta, alpha = ([p.detach().clone() for p in group] for group in self.groups())
        metrics = module.learn(rollout)
        now = self.groups()
        moved = [any((p != q).any() for p, q in zip(*pair, strict=True)) for pair in ((theta, now[0]), (alpha, now[1]))]
        self.moved.append((moved[0], moved[1]))
        module.env_steps += rollout.numel()
        module.on_train_batch_end(None, rollout, 0)
        return metrics

    def groups(self) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
        return self.module.weights(), [self.module.supernet.alpha_logits]


# --- the rollouts -----------------------------------------------------------------------------------------------------


class Kept(BiLevel):
    """Keeps what it is to learn from, and learns nothing."""

    def __init__(self) -> None:
        self.got: list[DrawnRollout] = []

    def learn(self, search: Any, rollouts: Any) -> Metrics:
        self.got = list(rollouts)
        return {"learned": 1.0}


def test_the_first_rollout_is_kept_as_it_was_with_its_draw_although_the_collector_overwrites_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheme = Kept()
    driven = Driven(monkeypatch, scheme=scheme)
    supernet = driven.module.supernet
    memory, first, second = make_rollout(1), make_rollout(1), make_rollout(2)
    draws = [supernet.current_draw()]
    assert driven.give(memory) == {}
    supernet.tau.fill_(1.5)  # annealed in place
    draws.append(supernet.current_draw())
    memory.update_(second)
    assert driven.give(memory) == {"learned": 1.0}
    for drawn, rollout, draw in zip(scheme.got, (first, second), draws, strict=True):
        assert (drawn.rollout == rollout).all()
        for name in ("gumbel", "tau", "ranking"):
            assert torch.equal(getattr(drawn.draw, name), getattr(draw, name)), name
    assert not torch.equal(draws[0].gumbel, draws[1].gumbel)
    assert draws[0].tau != draws[1].tau
    # and each pair anew
    third = make_rollout(3)
    driven.give(third)
    driven.give(make_rollout(4))
    assert (scheme.got[0].rollout == third).all()


SCHEMES = [OneLevel(), BiLevel(), UnrolledBiLevel()]


def name_of(value: Any) -> str | None:
    return type(value).__name__ if isinstance(value, SearchScheme) else None


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
def test_two_level_theta_gets_half_of_the_updates(monkeypatch: pytest.MonkeyPatch, scheme: SearchScheme) -> None:
    driven = Driven(monkeypatch, scheme=scheme)
    metrics = [driven.give(make_rollout(seed)) for seed in range(6)]
    both = isinstance(scheme, OneLevel)
    assert driven.moved == ([(True, True)] * 6 if both else [(False, False), (True, True)] * 3)
    optimizers: Any = driven.module.optimizers()
    weights, alpha = optimizers
    assert driven.module.weight_updates == (6 if both else 3)
    assert {float(state["step"]) for o in (weights, alpha) for state in o.state.values()} == {6.0 if both else 3.0}
    assert [bool(found) for found in metrics] == [moved for _, moved in driven.moved]


# --- the warm-up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "afterwards"),
    [
        (OneLevel(), [(True, True)] * 3),
        (BiLevel(), [(False, False), (True, True), (False, False)]),
        (UnrolledBiLevel(), [(False, False), (True, True), (False, False)]),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("warmup", [2 * STEPS + 1, 3 * STEPS])
def test_in_the_warm_up_every_rollout_trains_the_weights_and_none_alpha(
    monkeypatch: pytest.MonkeyPatch, scheme: SearchScheme, afterwards: list[tuple[bool, bool]], warmup: int
) -> None:
    # alpha moves with the first rollout that is begun after the warm-up
    driven = Driven(monkeypatch, scheme=scheme, alpha_warmup_env_steps=warmup)
    for seed in range(6):
        assert driven.module.alpha_is_trained == (seed >= 3)
        driven.give(make_rollout(seed))
    assert driven.moved == [(True, False)] * 3 + afterwards


def test_a_frozen_alpha_stays_and_the_weights_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(monkeypatch, alpha_learning_rate=0.0)
    driven.give(make_rollout(0))
    assert driven.moved == [(True, False)]


# --- a real search ----------------------------------------------------------------------------------------------------


class RecordedSearch(SearchModule):
    """Keeps the draw of each forward, by the rollout that it acts on, or in whose update it is."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.acting: list[list[tuple[Any, ...]]] = [[]]
        self.learning: list[list[tuple[Any, ...]]] = []
        self.updating = False
        self.supernet.register_forward_pre_hook(self.record)

    def record(self, supernet: Any, args: Any) -> None:
        draw = (supernet.gumbel.tolist(), supernet.ranking.tolist(), supernet.tau.item())
        (self.learning if self.updating else self.acting)[-1].append(draw)

    def learn(self, rollout: TensorDict) -> Metrics:
        self.learning.append([])
        self.updating = True
        metrics = super().learn(rollout)
        self.updating = False
        self.acting.append([])
        return metrics


def fitted(scheme: SearchScheme, rollouts: int, warmup: int) -> RecordedSearch:
    L.seed_everything(0, verbose=False)
    data = RolloutDataModule(
        CATCH,
        num_envs=ENVS,
        rollout_length=LENGTH,
        total_env_steps=rollouts * STEPS,
        env_steps_per_epoch=rollouts * STEPS,
        frames=FrameSettings(size=SIZE, stack=1, skip=1),
    )
    module = RecordedSearch(
        plan=TINY,
        scheme=scheme,
        sampling=TopK(2),
        game=data.game,
        frame_shape=data.frame_shape,
        num_actions=data.num_actions,
        total_env_steps=data.total_env_steps,
        alpha_warmup_env_steps=warmup * STEPS,
    )
    train(module, data, logger=False, callbacks=[TemperatureAnnealing(num_decays=3 * rollouts)])
    return module


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
def test_in_a_real_search_each_rollout_is_updated_on_under_the_draw_that_acted_on_it(scheme: SearchScheme) -> None:
    module = fitted(scheme, rollouts=7, warmup=1)
    acted = [draws[-1] for draws in module.acting[:7]]
    assert all(draw == acted[i] for i in range(7) for draw in module.acting[i][-LENGTH:])
    assert len({str(draw) for draw in acted}) == 7
    if isinstance(scheme, OneLevel):
        expected = [[i] for i in range(7)]
    else:
        # of each pair: (the first's, for the virtual step,) the second's for alpha, the first's for theta
        pair = [0, 1, 0] if isinstance(scheme, UnrolledBiLevel) else [1, 0]
        expected = [[0], *([first + i for i in pair] if i else [] for first in (1, 3, 5) for i in (0, 1))]
    assert module.learning == [[acted[i] for i in update] for update in expected]


# --- settings that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"distillation": "actor"}, r"model\.teacher: distillation 'actor' needs a teacher"),
        ({"distillation": "actor+critic"}, r"model\.teacher: distillation 'actor\+critic' needs a teacher"),
        ({"scheme": OneLevelPerFrame(), "sampling": TopK(2)}, r"model\.sampling: TopK computes .* choose SoftSum"),
        ({"alpha_warmup_env_steps": 10 * STEPS}, r"model\.alpha_warmup_env_steps: 100 leaves no steps"),
        ({"alpha_warmup_env_steps": 10**6}, r"model\.alpha_warmup_env_steps: 1,000,000 leaves no steps"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_searched_with_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make_search(**settings)


def test_settings_next_to_the_refused_ones_are_taken() -> None:
    make_search(alpha_warmup_env_steps=10 * STEPS - 1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
def test_an_epoch_that_is_shorter_than_an_update_is_refused_before_training(scheme: SearchScheme) -> None:
    if isinstance(scheme, OneLevel):
        assert fitted(scheme, rollouts=1, warmup=0).weight_updates == 1
        return
    with pytest.raises(SettingError, match=r"model\.scheme: \w*BiLevel takes 2 rollouts.*env_steps_per_epoch to 20"):
        fitted(scheme, rollouts=1, warmup=0)
