"""An update that finds acting's activations kept is the update that computes them again."""

import copy
import functools
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_game import CATCH, SIZE, register

from a2d_lightning.algorithms import A2C, PPO, joint_forward, recalled_forward
from a2d_lightning.collection import LocalCollection
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.errors import NonFiniteError
from a2d_lightning.finite import keep_rollout
from a2d_lightning.games import FrameSettings
from a2d_lightning.modules import SearchModule, TeacherModule
from a2d_lightning.networks import ActorCritic, four_conv, initialize, resnet, vanilla
from a2d_lightning.normalization import (
    Normalization,
    PerStepBatchNorm2d,
    frozen_batch_norm_statistics,
    with_normalization,
)
from a2d_lightning.recall import Activations, can_be_recalled, recalled
from a2d_lightning.search_space import Architecture, Plan

register()
FRAME = (4, 36, 36)
ENVS, STEPS, ACTIONS = 4, 3, 5
PLAN = Plan((1, 1, 1), (8, 16, 32))
BACKBONES = {
    "vanilla": lambda: vanilla(FRAME),
    "four_conv": lambda: four_conv(FRAME),
    "resnet": lambda: resnet(FRAME, 1, (8, 16, 32)),
    # a 5x5 depthwise operator, whose convolution is our own function
    "derived": lambda: Architecture(("conv_k3", "ir_k5_e3", "skip"), PLAN, FRAME, 0, 0).build(FRAME),
}
KINDS: tuple[Normalization, ...] = ("running", "per_step", "group", "none")
CASES: list[tuple[str, Normalization]] = [
    ("vanilla", "batch"),
    ("four_conv", "batch"),
    *((network, kind) for network in ("resnet", "derived") for kind in KINDS),
]


def make_agent(network: str, kind: Normalization, dtype: torch.dtype = torch.float32) -> ActorCritic:
    torch.manual_seed(0)
    agent = initialize(with_normalization(ActorCritic(BACKBONES[network](), FRAME, ACTIONS), kind))
    with torch.no_grad():
        agent.actor.weight.mul_(100)  # logits of some size
    return agent.to(dtype).train()


def acted_rollout(agent: ActorCritic) -> tuple[TensorDict, Tensor]:
    """A rollout as a collector keeps it, and the logits ``[n, T, A]`` that acted. Its frames are bright at random, so
    that no two are normalized alike; games 0 and 2 are truncated inside, game 1 ends."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(256, (STEPS + 1, ENVS, *FRAME), generator=generator)
    frames = (frames * torch.rand(STEPS + 1, ENVS, 1, 1, 1, generator=generator)).to(torch.uint8)
    kept = Activations(agent, STEPS)
    logits = []
    with torch.no_grad(), frozen_batch_norm_statistics(agent), kept.recording():
        for step in range(STEPS):
            logits.append(agent(frames[step])[0])
    done, terminated = (torch.zeros(ENVS, STEPS, dtype=torch.bool) for _ in range(2))
    done[0, 0] = done[2, 1] = done[3, 2] = True
    done[1, 1] = terminated[1, 1] = True
    by_game = frames.transpose(0, 1)
    after = {"pixels": by_game[:, 1:].clone(), "done": done, "terminated": terminated}
    after["pixels"][0, 0] //= 2  # a truncated game's true last frame is not the one that is acted on next
    found = {"pixels": by_game[:, :-1], "next": after, "activations": kept.rollout()}
    return TensorDict(found, [ENVS, STEPS]), torch.stack(logits, 1)


def answers(forward: Any, agent: ActorCritic, rollout: TensorDict) -> list[Tensor]:
    """Logits, values, values that follow, and the gradient of a loss of the first two."""
    agent.zero_grad()
    logits, value, next_value = forward(agent, rollout)
    without_meaning = rollout["next", "terminated"]
    if any(isinstance(layer, PerStepBatchNorm2d) for layer in agent.modules()):
        # true last frames have no time step and are normalized by running statistics, which have moved otherwise
        without_meaning = without_meaning | truncated_inside(rollout)
    next_value = next_value.detach().masked_fill(without_meaning, 0)
    (logits.log_softmax(-1)[..., 0].mean() + (value - next_value).square().mean()).backward()
    gradients = [weight.grad for weight in agent.parameters() if weight.grad is not None]
    assert len(gradients) == len(list(agent.parameters()))
    return [logits.detach(), value.detach(), next_value, *gradients]


def truncated_inside(rollout: TensorDict) -> Tensor:
    inside = rollout["next", "done"] & ~rollout["next", "terminated"]
    inside[:, -1] = False
    assert inside.nonzero().tolist() == [[0, 0], [2, 1]]
    return inside


@pytest.mark.parametrize(("network", "kind"), CASES)
def test_values_and_gradients_are_those_of_the_joint_forward(network: str, kind: Normalization) -> None:
    agent = make_agent(network, kind, torch.float64)
    rollout, _ = acted_rollout(agent)
    expected = answers(joint_forward, copy.deepcopy(agent), rollout)
    found = answers(recalled_forward, agent, rollout)
    assert len(found) == len(expected)
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).abs().max() <= 1e-10 * plain.abs().max()


@pytest.mark.parametrize(("network", "kind"), CASES)
def test_true_last_frames_of_truncated_games_are_valued(network: str, kind: Normalization) -> None:
    agent = make_agent(network, kind, torch.float64)
    rollout, _ = acted_rollout(agent)
    inside = truncated_inside(rollout)
    _, _, next_value = recalled_forward(agent, rollout)
    with torch.no_grad():
        _, alone = agent.eval()(rollout["next", "pixels"][inside])
    assert alone.unique().numel() == 2
    assert torch.allclose(next_value[inside], alone, rtol=1e-10)


@pytest.mark.parametrize(("network", "kind"), CASES)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_the_updated_logits_are_the_ones_that_acted_to_the_last_bit(
    network: str, kind: Normalization, autocast: torch.dtype | None
) -> None:
    agent = make_agent(network, kind)
    agent.autocast_dtype = autocast
    rollout, acted = acted_rollout(agent)
    logits, *_ = recalled_forward(agent, rollout)
    assert logits.flatten(0, 1).std(0).max() > 0.001
    assert torch.equal(logits, acted)


@pytest.mark.parametrize("network", ["vanilla", "four_conv"])
def test_gradients_in_bfloat16_are_those_of_float32_but_for_rounding(network: str) -> None:
    agent = make_agent(network, "batch")
    exact = answers(joint_forward, agent, acted_rollout(agent)[0])
    agent.autocast_dtype = torch.bfloat16
    found = answers(recalled_forward, agent, acted_rollout(agent)[0])
    for ours, wanted in zip(found[3:], exact[3:], strict=True):
        assert ours.dtype == torch.float32
        assert torch.cosine_similarity(ours.flatten(), wanted.flatten(), dim=0) > 0.99


class Computed(TorchDispatchMode):
    """Counts the frames that convolutions and dense layers compute."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            self.frames[len(out)] += 1
        return out


def test_only_what_nobody_acted_on_is_computed() -> None:
    agent = make_agent("vanilla", "batch")
    rollout, _ = acted_rollout(agent)
    rollout["action"] = rollout["log_prob"] = torch.zeros(ENVS, STEPS)
    with Computed() as computed:
        list(A2C().minibatches(agent, rollout, lambda value, next_value: (next_value - value, next_value)))
    # three convolutions, a dense layer and two heads; four last frames, two of games truncated inside
    assert computed.frames == {ENVS + 2: 6}


def test_another_networks_forward_is_refused() -> None:
    rollout, _ = acted_rollout(make_agent("vanilla", "batch"))
    with pytest.raises(RuntimeError):
        recalled_forward(make_agent("four_conv", "batch"), rollout)
    rollout, _ = acted_rollout(make_agent("four_conv", "batch"))
    with pytest.raises(RuntimeError), recalled(rollout["activations"]):
        nn.functional.linear(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(3))


def test_running_statistics_are_taken_of_what_was_acted_on() -> None:
    agent = make_agent("resnet", "running", torch.float64)
    rollout, _ = acted_rollout(agent)
    layers = [layer for layer in agent.modules() if hasattr(layer, "seen")]
    recalled_forward(agent, rollout)
    ours = [torch.stack(layer.seen) for layer in layers]
    for layer in layers:
        layer.seen = []
    agent(rollout["pixels"].transpose(0, 1).flatten(0, 1))
    for layer, found in zip(layers, ours, strict=True):
        assert found.shape[0] == 1
        assert torch.allclose(found, torch.stack(layer.seen), rtol=1e-10)


def test_a_rollout_that_led_to_nan_is_kept_without_them(tmp_path: Path) -> None:
    rollout, _ = acted_rollout(make_agent("vanilla", "batch"))
    keep_rollout(rollout, NonFiniteError("nan"), tmp_path / "rollout.pt")
    assert set(torch.load(tmp_path / "rollout.pt")["rollout"]) == {"pixels", "next"}
    assert "activations" in rollout


def test_what_depends_on_the_batch_is_not_recalled() -> None:
    assert can_be_recalled(make_agent("vanilla", "batch"))
    assert can_be_recalled(make_agent("resnet", "group"))
    assert not can_be_recalled(make_agent("resnet", "batch"))
    assert not can_be_recalled(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    compiled = make_agent("vanilla", "batch")
    compiled.compile(backend="eager")
    assert not can_be_recalled(compiled)


# --- whole runs -------------------------------------------------------------------------------------------------------


class Remembering(L.Callback):
    """The actions of each rollout, and whether it came with activations."""

    def __init__(self) -> None:
        self.actions: list[Tensor] = []
        self.recalled: set[bool] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, rollout: TensorDict, batch_idx: int) -> None:
        self.actions.append(rollout["action"].clone())
        self.recalled.add("activations" in rollout)


def fit(module: Any, collection: LocalCollection | None = None, **settings: Any) -> tuple[Any, Remembering]:
    """Eight rollouts of Catch."""
    L.seed_everything(0, verbose=False)
    frames = FrameSettings(size=SIZE, stack=1, skip=1)
    data = RolloutDataModule(
        CATCH, num_envs=8, total_env_steps=8 * 40, env_steps_per_epoch=4 * 40, frames=frames, collection=collection
    )
    of_data = {name: getattr(data, name) for name in ("game", "frame_shape", "num_actions", "total_env_steps")}
    # a high rate leaves uniform play in so few updates
    fast = functools.partial(torch.optim.RMSprop, lr=3e-3, alpha=0.99, eps=1e-5)
    model, seen = module(optimizer=fast, **of_data, **settings), Remembering()
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(accelerator="cpu", devices=1, max_epochs=2, limit_val_batches=0, callbacks=[seen], **quiet).fit(
            model, datamodule=data
        )
    return model, seen


def test_a_run_learns_what_it_learns_without() -> None:
    ours, with_it = fit(TeacherModule, network="four_conv")
    plain, without = fit(TeacherModule, LocalCollection(keep_activations=False), network="four_conv")
    assert (with_it.recalled, without.recalled) == ({True}, {False})
    assert len(with_it.actions) == 8
    for one, other in zip(with_it.actions, without.actions, strict=True):
        assert torch.equal(one, other)
    start, _ = fit(TeacherModule, network="four_conv", gradient_clip_norm=1e-12)
    for name, weight in plain.agent.state_dict().items():
        moved = (weight - start.agent.state_dict()[name]).abs().max()
        assert moved > 1e-3
        assert (ours.agent.state_dict()[name] - weight).abs().max() < 1e-3 * moved


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (TeacherModule, {"network": "four_conv", "algorithm": PPO(epochs=1, num_minibatches=2)}),
        (TeacherModule, {"network": "resnet14"}),
        (SearchModule, {"plan": PLAN, "normalization": "group"}),
    ],
    ids=["PPO", "batch norm", "search"],
)
def test_nothing_is_kept_where_it_would_be_of_no_use(module: Any, settings: dict[str, Any]) -> None:
    assert fit(module, **settings)[1].recalled == {False}


@pytest.mark.parametrize("kind", ["running", "per_step", "group", "none"])
def test_normalization_by_frame_or_time_step_is_recalled(kind: Normalization) -> None:
    assert fit(TeacherModule, network="resnet14", normalization=kind, algorithm=A2C())[1].recalled == {True}
