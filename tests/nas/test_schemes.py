"""The search schemes: whose gradient comes from which rollout, under which draw; and second-order DARTS."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from small_supernets import make_supernet
from tensordict import TensorDict
from torch import Tensor, nn

from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.nas.sampling import Sampling, TopK
from a2d_lightning.nas.schemes import (
    AgentUnderDraw,
    BiLevel,
    DrawnRollout,
    Metrics,
    OneLevel,
    OneLevelPerFrame,
    SearchScheme,
    UnrolledBiLevel,
)
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Draw, MixedCell, Supernet

FRAME = (2, 9, 9)
ALPHA = "backbone.alpha_logits"
ALPHA_RATE, THETA_RATE = 0.5, 0.1


def smooth_agent(sampling: Sampling | None = None) -> ActorCritic:
    """An agent in float64 whose activations can be differentiated as often as one likes."""
    agent = ActorCritic(make_supernet(Plan((1, 1), (3, 4)), frame=FRAME, sampling=sampling), FRAME, 3)
    for parent in list(agent.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus())
    return agent.double().train()


def supernet_of(agent: ActorCritic) -> Supernet:
    assert isinstance(agent.backbone, Supernet)
    return agent.backbone


def toy_loss(agent: nn.Module, rollout: TensorDict) -> Tensor:
    """Of both heads, and of another scale than its gradient's."""
    logits, value = agent(rollout["pixels"])
    return ((logits - rollout["logits"]) ** 2).mean() + ((value - rollout["value"]) ** 2).mean()


class ToySearch:
    """A search whose loss is :func:`toy_loss`, each half of a rollout a minibatch.

    Its steps are plain SGD; it keeps each one's kind, its loss, and the loss's gradients on all parameters by name.
    """

    def __init__(self, agent: ActorCritic) -> None:
        self.agent = agent
        self.gumbel_generator = torch.Generator().manual_seed(3)
        self.stepped: list[tuple[str, Tensor, dict[str, Tensor]]] = []

    @property
    def supernet(self) -> Supernet:
        return supernet_of(self.agent)

    def weights(self) -> list[nn.Parameter]:
        return [p for p in self.agent.parameters() if p is not self.supernet.alpha_logits]

    def losses(self, rollout: TensorDict, student: nn.Module) -> Iterator[tuple[Tensor, Metrics]]:
        for part in rollout.split(4):
            total = toy_loss(student, part)
            yield total, {"loss": total.detach()}

    def step_weights(self, total: Tensor) -> Metrics:
        return self.step("weights", total)

    def step_alpha(self, total: Tensor) -> Metrics:
        return self.step("alpha", total)

    def step_both(self, total: Tensor) -> Metrics:
        return self.step("both", total)

    def step(self, kind: str, total: Tensor) -> Metrics:
        found = gradients(total, self.agent)
        self.stepped.append((kind, total.detach(), found))
        descend(self.agent, kind, found)
        return {f"stepped_{kind}": 1.0}


def gradients(total: Tensor, agent: nn.Module) -> dict[str, Tensor]:
    """By name; zeros where a parameter had no part."""
    named = {name: p for name, p in agent.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


@torch.no_grad()
def descend(agent: nn.Module, kind: str, found: dict[str, Tensor], theta_rate: float = THETA_RATE) -> None:
    for name, parameter in agent.named_parameters():
        is_alpha = name == ALPHA
        if name in found and kind in ("both", "alpha" if is_alpha else "weights"):
            parameter.sub_((ALPHA_RATE if is_alpha else theta_rate) * found[name])


def make_draw(seed: int, tau: float) -> Draw:
    """Independent of alpha, so that nothing but the draw itself can give its ranking away."""
    generator = torch.Generator().manual_seed(seed)
    ranking = torch.stack([torch.randperm(9, generator=generator) for _ in range(2)])
    gumbel = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    return Draw(gumbel, torch.tensor(tau, dtype=torch.float64), ranking)


def make_rollout(seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"pixels": (8, *FRAME), "logits": (8, 3), "value": (8,)}
    content = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return TensorDict({**content, "pixels": 255 * content["pixels"]}, [8])


FIRST = DrawnRollout(make_rollout(1), make_draw(11, 0.7))
SECOND = DrawnRollout(make_rollout(2), make_draw(22, 2.0))


def loss_by_hand(agent: ActorCritic, drawn: DrawnRollout, minibatch: int) -> Tensor:
    """With the draw written into the agent's supernet."""
    for name in ("gumbel", "tau", "ranking"):
        agent.backbone.get_buffer(name).copy_(getattr(drawn.draw, name))
    return toy_loss(agent, drawn.rollout[4 * minibatch : 4 * minibatch + 4])


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=partial("{}: {}".format, name), **tolerance)


# --- whose gradient comes from which rollout --------------------------------------------------------------------------


SCHEMES = [
    (OneLevel(), [SECOND]),
    (OneLevelPerFrame(), [SECOND]),
    (BiLevel(), [FIRST, SECOND]),
    (UnrolledBiLevel(0.05), [FIRST, SECOND]),
]


@pytest.mark.parametrize(
    ("scheme", "rollouts"), SCHEMES, ids=lambda s: None if isinstance(s, list) else type(s).__name__
)
def test_a_scheme_says_how_many_rollouts_it_takes_and_leaves_the_current_draw_and_the_agents_parameters(
    scheme: SearchScheme, rollouts: list[DrawnRollout]
) -> None:
    assert scheme.rollouts_per_update == len(rollouts)
    search = ToySearch(smooth_agent())
    before, parameters = search.supernet.current_draw(), [id(p) for p in search.agent.parameters()]
    scheme.learn(search, rollouts)
    for name in ("gumbel", "tau", "ranking"):
        assert torch.equal(search.supernet.get_buffer(name), getattr(before, name)), name
    assert [id(p) for p in search.agent.parameters()] == parameters


def test_one_level_steps_both_from_one_and_the_same_rollout() -> None:
    search = ToySearch(smooth_agent(TopK(2)))
    agent = copy.deepcopy(search.agent)
    metrics = OneLevel().learn(search, [SECOND])
    assert [kind for kind, *_ in search.stepped] == ["both", "both"]
    for minibatch, (_, _, found) in enumerate(search.stepped):
        total = loss_by_hand(agent, SECOND, minibatch)
        expected = gradients(total, agent)
        assert_same(found, expected)
        descend(agent, "both", expected)
    torch.testing.assert_close(metrics, {"loss": total.detach(), "stepped_both": 1.0})


def mixed_by_hand(agent: ActorCritic, pixels: Tensor, gumbel: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 10 with y of its own for each frame: gumbel is ``[B, cells, operators]``."""
    supernet = supernet_of(agent)
    y = ((supernet.alpha_logits.log_softmax(-1) + gumbel) / tau).softmax(-1)
    x, cell = pixels / 255, 0
    for layer in supernet.body:
        if isinstance(layer, MixedCell):
            outputs = torch.stack([operator(x) for operator in layer.operators], dim=1)  # [B, operators, c, h, w]
            x = torch.einsum("bo,bochw->bchw", y[:, cell], outputs)
            cell += 1
        else:
            x = layer(x)
    return agent.actor(x), agent.critic(x).squeeze(-1)


@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (0, 2), (1, 2)])
def test_per_frame_one_level_learns_under_a_draw_for_each_frame_of_all_ranks(
    monkeypatch: pytest.MonkeyPatch, rank: int, processes: int
) -> None:
    monkeypatch.setattr("a2d_lightning.nas.schemes.rank_of_processes", lambda: (rank, processes))
    search = ToySearch(smooth_agent())
    agent = copy.deepcopy(search.agent)
    OneLevelPerFrame().learn(search, [SECOND])
    assert [kind for kind, *_ in search.stepped] == ["both", "both"]
    generator = torch.Generator().manual_seed(3)
    for (_, _, found), part in zip(search.stepped, SECOND.rollout.split(4), strict=True):
        uniform = torch.rand(processes * 4, 2, 9, generator=generator, dtype=torch.float64)[4 * rank : 4 * rank + 4]
        gumbel = -(-uniform.log()).log()
        logits, value = mixed_by_hand(agent, part["pixels"], gumbel, SECOND.draw.tau)
        loss = ((logits - part["logits"]) ** 2).mean() + ((value - part["value"]) ** 2).mean()
        expected = gradients(loss, agent)
        assert_same(found, expected)
        descend(agent, "both", expected)


def test_per_frame_one_level_is_asked_as_it_acted() -> None:
    """PPO's advantages and ratios are of the policy that acted, which had one draw."""
    search = ToySearch(smooth_agent())
    with torch.no_grad():
        asked = OneLevelPerFrame.student(search, SECOND.draw)(SECOND.rollout["pixels"])
        acted = AgentUnderDraw(search, SECOND.draw)(SECOND.rollout["pixels"])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(asked, acted, strict=True))
    assert torch.equal(search.gumbel_generator.get_state(), torch.Generator().manual_seed(3).get_state())


@pytest.mark.parametrize("sampling", [None, TopK(2)], ids=["SoftSum", "TopK"])
def test_bi_level_steps_alpha_first_on_the_second_rollout_then_theta_on_the_first(sampling: Sampling | None) -> None:
    search = ToySearch(smooth_agent(sampling))
    agent = copy.deepcopy(search.agent)
    metrics = BiLevel().learn(search, [FIRST, SECOND])
    assert [kind for kind, *_ in search.stepped] == ["alpha", "alpha", "weights", "weights"]
    last = {}
    for step, (kind, _, found) in enumerate(search.stepped):
        # theta's is taken at the alpha that alpha's steps have left
        last[kind] = loss_by_hand(agent, SECOND if kind == "alpha" else FIRST, step % 2)
        expected = gradients(last[kind], agent)
        assert_same(found, expected)
        descend(agent, kind, expected)
    loss, alpha_loss = last["weights"].detach(), last["alpha"].detach()
    expected_metrics = {"alpha_loss": alpha_loss, "stepped_alpha": 1.0, "loss": loss, "stepped_weights": 1.0}
    torch.testing.assert_close(metrics, expected_metrics)


# --- second order -----------------------------------------------------------------------------------------------------

XI = 0.05


def unrolled_loss(agent: ActorCritic, alpha: Tensor, xi: float, minibatch: int) -> tuple[ActorCritic, Tensor]:
    """L_second(theta - xi grad_theta L_first(theta, alpha), alpha), the step really taken, by a copy of the agent."""
    stepped = copy.deepcopy(agent)
    supernet_of(stepped).alpha_logits.data.copy_(alpha)
    of_first = gradients(loss_by_hand(stepped, FIRST, minibatch), stepped)
    descend(stepped, "weights", of_first, xi)
    return stepped, loss_by_hand(stepped, SECOND, minibatch)


def by_differences(agent: ActorCritic, xi: float, minibatch: int) -> Tensor:
    """Of :func:`unrolled_loss` in alpha."""
    alpha, eps = supernet_of(agent).alpha_logits.detach().clone(), 1e-5
    slopes = []
    for step in eps * torch.eye(alpha.numel(), dtype=torch.float64).view(-1, *alpha.shape):
        above, below = (unrolled_loss(agent, alpha + sign * step, xi, minibatch)[1].item() for sign in (1, -1))
        slopes.append((above - below) / (2 * eps))
    return torch.tensor(slopes, dtype=torch.float64).view(alpha.shape)


class StillSearch(ToySearch):
    """Moves nothing."""

    def step(self, kind: str, total: Tensor) -> Metrics:
        self.stepped.append((kind, total.detach(), gradients(total, self.agent)))
        return {}


def alpha_steps(scheme: BiLevel, agent: ActorCritic) -> list[tuple[Tensor, dict[str, Tensor]]]:
    search = StillSearch(agent)
    scheme.learn(search, [FIRST, SECOND])
    return [(total, found) for kind, total, found in search.stepped if kind == "alpha"]


@pytest.mark.parametrize("critic_learns", [True, False])
def test_unrolled_alpha_descends_the_loss_after_the_virtual_step(critic_learns: bool) -> None:
    # central differences in float64: truncation eps^2 = 1e-10, rounding 1e-16 / eps = 1e-11, of a smooth loss
    agent = smooth_agent()
    agent.critic.requires_grad_(critic_learns)  # where a mode does not train it
    second_order, first_order = (alpha_steps(scheme, agent) for scheme in (UnrolledBiLevel(XI), BiLevel()))
    assert len(second_order) == 2
    for minibatch, (total, found) in enumerate(second_order):
        expected = by_differences(agent, XI, minibatch)
        torch.testing.assert_close(found[ALPHA], expected, rtol=1e-5, atol=1e-8)
        stepped, after = unrolled_loss(agent, supernet_of(agent).alpha_logits, XI, minibatch)
        torch.testing.assert_close(total, after.detach())
        # it is neither first order's, nor what is left if the virtual step is not differentiated
        for other in (first_order[minibatch][1], gradients(after, stepped)):
            assert (other[ALPHA] - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("sampling", [None, TopK(2)], ids=["SoftSum", "TopK"])
def test_a_virtual_step_of_no_length_is_first_order(sampling: Sampling | None) -> None:
    agent = smooth_agent(sampling)
    steps = [alpha_steps(scheme, agent) for scheme in (UnrolledBiLevel(1e-12), BiLevel())]
    for (unrolled, found), (first_order, expected) in zip(*steps, strict=True):
        torch.testing.assert_close(unrolled, first_order, rtol=1e-9, atol=0)
        assert_same(found, expected, rtol=1e-8, atol=1e-10)


def test_the_virtual_step_samples_the_first_rollouts_path_and_its_loss_the_seconds() -> None:
    agent = smooth_agent(TopK(2))
    for minibatch, (total, _) in enumerate(alpha_steps(UnrolledBiLevel(XI), agent)):
        expected = unrolled_loss(agent, supernet_of(agent).alpha_logits, XI, minibatch)[1].detach()
        torch.testing.assert_close(total, expected)
        assert abs(expected - loss_by_hand(agent, SECOND, minibatch).detach()) > 0.01 * expected


def test_unrolled_theta_steps_are_bi_levels() -> None:
    agents = [smooth_agent() for _ in range(2)]
    for agent, scheme in zip(agents, (UnrolledBiLevel(XI), BiLevel()), strict=True):
        search = StillSearch(agent)
        scheme.learn(search, [FIRST, SECOND])
        assert [kind for kind, *_ in search.stepped] == ["alpha", "alpha", "weights", "weights"]
        of_weights = [found for kind, _, found in search.stepped if kind == "weights"]
        for minibatch, found in enumerate(of_weights):
            assert_same(found, gradients(loss_by_hand(agent, FIRST, minibatch), agent))


def test_virtual_weights_leave_no_trace_in_running_statistics() -> None:
    """Each of the two minibatches: a forward on theta's rollout for the virtual step, and one for the real."""
    agent = smooth_agent()
    stem: Any = supernet_of(agent).body[1]
    began = int(stem.num_batches_tracked)
    UnrolledBiLevel(XI).learn(StillSearch(agent), [FIRST, SECOND])
    with_virtual, mean = int(stem.num_batches_tracked) - began, stem.running_mean.clone()
    assert with_virtual == 2 * 2
    # the statistics are those of theta's rollout alone, whatever alpha's shows
    again = smooth_agent()
    dark = DrawnRollout(SECOND.rollout.clone().apply(lambda x: x * 0), SECOND.draw)
    UnrolledBiLevel(XI).learn(StillSearch(again), [FIRST, dark])
    stem = supernet_of(again).body[1]
    assert torch.equal(stem.running_mean, mean)
