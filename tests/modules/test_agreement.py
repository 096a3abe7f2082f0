"""The policy that acts on a rollout is the one that is updated on it, and what is evaluated plays alone as it did."""

import copy
import functools
import math
import warnings
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Categorical
from toy_game import CATCH, SIZE, register

from a2d_lightning.data import RolloutDataModule
from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.networks import ActorCritic, initialize, resnet
from a2d_lightning.models.normalization import (
    Normalization,
    frozen_batch_norm_statistics,
    update_running_stats,
    with_normalization,
)
from a2d_lightning.modules import TeacherModule
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.sampling import HardStraightThrough, Sampling, SinglePath, SoftSum, TopK
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import MixedCell, Supernet
from a2d_lightning.rl.algorithms import A2C, PPO, Minibatch
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.rollouts.policy import SamplingPolicy
from a2d_lightning.runtime.errors import SettingError

pytestmark = pytest.mark.thorough

register()
FRAME: FrameShape = (4, 21, 21)
PLAN = Plan((1, 1, 1), (8, 16, 32))
ENVS, STEPS, ACTIONS = 8, 5, 6
EXACT: list[Normalization] = ["running", "per_step", "group", "none"]
SAMPLINGS: dict[str, Sampling] = {
    "SoftSum": SoftSum(),
    "SinglePath": SinglePath(),
    "TopK": TopK(2),
    "HardStraightThrough": HardStraightThrough(),
}
LIMIT = 1e-5
"""Of the KL of a policy from itself; rounding leaves some 1e-14."""


def random_pixels(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 ``[*shape, 4, 21, 21]`` of 3x3 random blocks, and which of six levels of brightness they have."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(6, shape, generator=generator)
    blocks = torch.randint(64, (*shape, FRAME[0], 3, 3), generator=generator) + 38 * level[..., None, None, None]
    return blocks.to(torch.uint8).repeat_interleave(7, -1).repeat_interleave(7, -2), level


def backbone_of(network: str) -> nn.Module:
    if network == "resnet":
        return resnet(FRAME, 1, (8, 16, 32))
    if network == "derived":
        return Architecture(("conv_k3", "ir_k3_e3", "skip"), PLAN, FRAME, 0, 0).build(FRAME)
    supernet = Supernet(PLAN, FRAME, SAMPLINGS[network])
    supernet.draw(torch.Generator().manual_seed(0))
    return supernet


@functools.cache
def fit_once(network: str, kind: Normalization) -> ActorCritic:
    torch.manual_seed(0)
    agent = initialize(with_normalization(ActorCritic(backbone_of(network), FRAME, ACTIONS), kind)).train()
    pixels, action = random_pixels(32, seed=1)
    optimizer = torch.optim.Adam([p for name, p in agent.named_parameters() if "alpha" not in name], lr=5e-3)
    for _ in range(40):
        logits, value = agent(pixels)
        loss = F.cross_entropy(logits, action) + 0.1 * (value - action).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_running_stats(agent, lambda x: x)
    return agent


def trained(network: str, kind: Normalization) -> ActorCritic:
    """An agent that was taught to answer the brightness of frames, so that its policy is far from uniform."""
    return copy.deepcopy(fit_once(network, kind))


def acted_rollout(agent: ActorCritic) -> TensorDict:
    """What the collector would return: each time step by one forward of its frames."""
    frames, _ = random_pixels(ENVS, STEPS + 1, seed=2)
    policy = SamplingPolicy(agent.train(), 0, torch.device("cpu"))
    with torch.no_grad(), frozen_batch_norm_statistics(agent):
        logits = torch.stack([policy.logits(frames[:, t]) for t in range(STEPS)], 1)  # [n, T, actions]
    done, terminated = (torch.zeros(ENVS, STEPS, dtype=torch.bool) for _ in range(2))
    done[0, 1] = done[3, 2] = True  # truncated inside: their last frames join the update
    done[1, 2] = terminated[1, 2] = True
    action = (logits + policy.noise(*logits.shape)).argmax(-1)
    log_prob = Categorical(logits=logits).log_prob(action)
    after = {"pixels": frames[:, 1:], "done": done, "terminated": terminated}
    return TensorDict({"pixels": frames[:, :-1], "action": action, "log_prob": log_prob, "next": after}, [ENVS, STEPS])


def some_estimate(value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
    return (next_value - value).detach(), next_value.detach()


def log_ratio(batch: Minibatch) -> Tensor:
    """log pi_updated(a) - log pi_acted(a)."""
    return Categorical(logits=batch.logits.detach().double()).log_prob(batch.action) - batch.log_prob_acted.double()


def kl(batch: Minibatch) -> float:
    """Schulman's k3, in double precision."""
    return (log_ratio(batch).exp() - 1 - log_ratio(batch)).mean().item()


def entropy(batch: Minibatch) -> float:
    return Categorical(logits=batch.logits).entropy().mean().item()


def updates(agent: ActorCritic, rollout: TensorDict) -> list[Minibatch]:
    """What A2C and PPO update on, weights held still."""
    return [
        *A2C().minibatches(agent, rollout, some_estimate),
        *PPO(epochs=2, num_minibatches=2).minibatches(agent, rollout, some_estimate),
    ]


# --- one policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("network", ["resnet", "derived"])
def test_an_agent_is_updated_as_it_acted(network: str, kind: Normalization) -> None:
    agent = trained(network, kind)
    whole, *parts = updates(agent, acted_rollout(agent))
    assert entropy(whole) < 0.75 * math.log(ACTIONS)
    assert len(parts) == 4
    for batch in (whole, *parts):
        assert 0 <= kl(batch) < LIMIT
        assert log_ratio(batch).exp().sub(1).abs().max() < 1e-4


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_supernet_is_updated_as_it_acted(sampling: str, kind: Normalization) -> None:
    agent = trained(sampling, kind)
    whole, *parts = updates(agent, acted_rollout(agent))
    assert entropy(whole) < 0.75 * math.log(ACTIONS)
    for batch in (whole, *parts):
        assert 0 <= kl(batch) < LIMIT
        assert log_ratio(batch).exp().sub(1).abs().max() < 1e-4


@pytest.mark.parametrize("network", ["resnet", "derived", "SinglePath", "SoftSum"])
def test_conventional_batch_norm_updates_another_policy_than_the_one_that_acted(network: str) -> None:
    # so that the tests above measure something: 0.1 to 5 nats
    agent = trained(network, "batch")
    assert all(kl(batch) > 1000 * LIMIT for batch in updates(agent, acted_rollout(agent)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_alpha_that_moves_between_minibatches_leaves_the_rollouts_path_alone(sampling: str) -> None:
    agent = trained(sampling, "running")
    supernet = agent.backbone
    assert isinstance(supernet, Supernet)
    rollout, path = acted_rollout(agent), supernet.ranking.clone()
    computed: set[tuple[int, int]] = set()
    for cell, mixed in enumerate(layer for layer in supernet.body if isinstance(layer, MixedCell)):
        for i, operator in enumerate(mixed.operators):
            operator.register_forward_hook(lambda *_, found=(cell, i): computed.add(found))

    ratios = []
    for batch in PPO(epochs=1, num_minibatches=3).minibatches(agent, rollout, some_estimate):
        ratios.append(log_ratio(batch).exp())
        with torch.no_grad():
            supernet.alpha_logits.scatter_(1, path[:, :2], -100.0)
        now = (supernet.alpha_logits + supernet.gumbel).argmax(-1)
        assert (now != path[:, 0]).all()
        computed.clear()
    assert torch.equal(supernet.ranking, path)
    assert ratios[0].sub(1).abs().max() < 1e-4
    # the soft sum's weights do move: its ratio is PPO's to clip
    moved = torch.cat(ratios[1:]).sub(1).abs().max()
    assert moved > 0.01 if sampling == "SoftSum" else moved < 1e-4

    agent(random_pixels(2, seed=3)[0])
    count = {"SinglePath": 1, "TopK": 2}.get(sampling, 9)
    assert computed == {(cell, i) for cell, ranked in enumerate(path.tolist()) for i in ranked[:count]}
    supernet.draw(torch.Generator().manual_seed(0))  # the next rollout goes by the new alpha
    assert (supernet.ranking[:, 0] != path[:, 0]).all()


class Watched(TeacherModule):
    """Keeps what it logs of its first minibatches, and when its running statistics moved."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.logged: list[dict[str, float]] = []
        self.moved: set[str] = set()
        self.last = self.statistics()
        with torch.no_grad():
            self.agent.actor.weight.mul_(100)  # the first policy is no longer uniform

    def statistics(self) -> Tensor:
        """A copy."""
        return torch.cat(
            [torch.zeros(1), *(x.flatten() for name, x in self.agent.named_buffers() if "running" in name)]
        )

    def note(self, when: str) -> None:
        if not torch.equal(self.last, now := self.statistics()):
            self.moved.add(when)
        self.last = now

    def training_step(self, rollout: TensorDict, batch_idx: int) -> None:
        self.note("acting")
        if any(getattr(layer, "seen", []) for layer in self.agent.modules()):
            self.moved.add("acting")
        super().training_step(rollout, batch_idx)
        self.note("between rollouts")

    def learn(self, rollout: TensorDict) -> dict[str, Any]:
        metrics = super().learn(rollout)
        self.note("updates")
        self.logged.append({name: float(x) for name, x in metrics.items() if name.startswith("policy/")})
        return metrics


def fit_catch(**settings: Any) -> Watched:
    """Twelve rollouts of a ResNet that plays Catch."""
    L.seed_everything(0, verbose=False)
    frames = FrameSettings(size=SIZE, stack=1, skip=1)
    data = RolloutDataModule(CATCH, num_envs=8, total_env_steps=12 * 40, env_steps_per_epoch=6 * 40, frames=frames)
    of_data = {name: getattr(data, name) for name in ("game", "frame_shape", "num_actions", "total_env_steps")}
    # a high rate leaves uniform play, where all forwards would agree, in so few updates
    fast = functools.partial(torch.optim.RMSprop, lr=1e-2, alpha=0.99, eps=1e-5)
    module = Watched(network="resnet14", optimizer=fast, **of_data, **settings)
    quiet: dict[str, Any] = {
        name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(accelerator="cpu", devices=1, max_epochs=2, limit_val_batches=0, **quiet).fit(module, datamodule=data)
    return module


@pytest.mark.parametrize("algorithm", [A2C(), PPO(epochs=2, num_minibatches=2)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("kind", ["batch", *EXACT])
def test_a_run_logs_that_the_updated_policy_is_the_one_that_acted(kind: Normalization, algorithm: Any) -> None:
    module = fit_catch(normalization=kind, algorithm=algorithm)
    assert len(module.logged) == 12
    assert min(row["policy/entropy"] for row in module.logged) < 0.9 * math.log(3)
    found = [row["policy/kl_acted_updated"] for row in module.logged]
    assert max(found) > 100 * LIMIT if kind == "batch" else max(found) < LIMIT
    # never while acting; statistics that act stay while PPO goes on with the rollout, too
    moves = {"batch": {"updates"}, "per_step": {"updates"}, "running": {"between rollouts"}}
    assert module.moved == moves.get(kind, set())


# --- PPO's parts ------------------------------------------------------------------------------------------------------


def test_ppo_keeps_the_frames_of_a_time_step_together_where_they_are_normalized_together() -> None:
    torch.manual_seed(0)
    agent = trained("derived", "per_step")
    rollout = acted_rollout(agent)
    parts = [b.rows for b in PPO(epochs=2, num_minibatches=2).minibatches(agent, rollout, some_estimate)]
    assert [len(rows) for rows in parts] == [3 * ENVS, 2 * ENVS] * 2
    orders = []
    for rows in parts:
        by_step = rows.view(-1, ENVS)
        # row i of the flat rollout is environment i // T at time step i % T
        assert torch.equal(by_step // STEPS, torch.arange(ENVS).expand_as(by_step))
        assert (by_step % STEPS == by_step[:, :1] % STEPS).all()
        orders.append((by_step[:, 0] % STEPS).tolist())
    assert sorted(orders[0] + orders[1]) == sorted(orders[2] + orders[3]) == list(range(STEPS))
    assert orders[0] + orders[1] != orders[2] + orders[3]


def test_ppo_refuses_more_parts_than_a_rollout_has_steps_to_keep_together() -> None:
    per_step, running = trained("derived", "per_step"), trained("derived", "running")
    algorithm = PPO(epochs=1, num_minibatches=STEPS + 1)
    algorithm.check(running, ENVS, STEPS)
    assert len(list(algorithm.minibatches(running, acted_rollout(running), some_estimate))) == STEPS + 1
    algorithm.check(per_step, ENVS, STEPS + 1)
    refusal = r"algorithm\.num_minibatches: 6 minibatches cannot be made of 5 steps; .*data\.rollout_length"
    with pytest.raises(SettingError, match=refusal):
        algorithm.check(per_step, ENVS, STEPS)
    with pytest.raises(SettingError, match=refusal):
        next(algorithm.minibatches(per_step, acted_rollout(per_step), some_estimate))


def test_a_run_that_would_be_refused_plays_no_game(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []
    monkeypatch.setattr(Watched, "training_step", lambda *_: played.append("rollout"))
    with pytest.raises(SettingError, match="num_minibatches"):
        fit_catch(normalization="per_step", algorithm=PPO(epochs=1, num_minibatches=6))
    assert not played


# --- evaluation -------------------------------------------------------------------------------------------------------


def answers(agent: ActorCritic, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of frames in one batch, and of each alone."""
    with torch.no_grad():
        return agent(pixels)[0], torch.cat([agent(frame[None])[0] for frame in pixels])


@pytest.mark.parametrize("kind", ["batch", *EXACT])
@pytest.mark.parametrize("network", ["derived", "SinglePath"])
def test_an_agent_plays_alone_as_it_was_evaluated_in_a_batch(network: str, kind: Normalization) -> None:
    together, alone = answers(trained(network, kind).eval(), random_pixels(6, seed=4)[0])
    assert together.std(0).max() > 0.1
    assert (together - alone).abs().max() < 1e-5 * together.abs().max()


@pytest.mark.parametrize("kind", ["batch", "per_step"])
def test_playing_by_the_batchs_statistics_would_not_do_so(kind: Normalization) -> None:
    together, alone = answers(trained("derived", kind).train(), random_pixels(6, seed=4)[0])
    assert (together - alone).abs().max() > 0.1
