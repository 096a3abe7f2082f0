"""One step of the search: what moves theta, what moves alpha."""

import math
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import make_backbone
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rl import losses
from a2d_lightning.rl.schedules import CoefficientSchedules, PiecewiseLinear
from a2d_lightning.runtime.errors import NonFiniteError

FRAME = (2, 21, 21)


def random_pixels(batch: int) -> Tensor:
    return torch.randint(256, (batch, *FRAME), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def make_search(**settings: Any) -> SearchModule:
    torch.manual_seed(0)
    common = {"game": "Toy", "frame_shape": FRAME, "num_actions": 3, "total_env_steps": 1000}
    return SearchModule(Plan((1, 1, 1), (4, 4, 4)), **{**common, **settings})


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
    optimizer: Any = StubOptimizer(theta)
    norm: Any = module.apply_weights_gradient(optimizer)["gradient/weights_norm"]
    # ones everywhere: the norm is the root of their number
    assert norm.item() == pytest.approx(math.sqrt(sum(p.numel() for p in theta)), rel=1e-5)
    assert torch.cat([g.flatten() for g in optimizer.applied]).norm().item() == pytest.approx(0.5, rel=1e-4)
    assert (module.supernet.alpha_logits.grad == 1e6).all()


class StubOptimizer:
    """Keeps the gradients that it is asked to apply."""

    def __init__(self, parameters: list[Any]) -> None:
        self.parameters = parameters
        self.applied: list[Tensor] = []
        self.param_groups = [{"params": parameters}]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        self.applied = [p.grad.clone() for p in self.parameters]


def stubbed(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[SearchModule, StubOptimizer, StubOptimizer]:
    """A search, and the optimizers of its weights and of alpha."""
    module = make_search(**{"gradient_clip_norm": 1e9, **settings}).train()
    alpha = module.supernet.alpha_logits
    with torch.no_grad():
        alpha.normal_()
    optimizers = [StubOptimizer(module.weights()), StubOptimizer([alpha])]
    monkeypatch.setattr(module, "optimizers", lambda: optimizers)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    return module, optimizers[0], optimizers[1]


class Total(NamedTuple):
    """Eq. 8 of some frames and its gradients."""

    total: Tensor
    of_theta: list[Tensor]
    of_alpha: Tensor


def some_total(module: SearchModule) -> Total:
    logits, value = module.agent(random_pixels(6))
    generator = torch.Generator().manual_seed(5)
    action, (advantage, target) = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(2, 6, generator=generator)
    # the paper's weights
    total = losses.policy_loss(logits, action, advantage) + losses.value_loss(value, target)
    total = total + 0.01 * losses.entropy_loss(logits)
    parameters = [*module.weights(), module.supernet.alpha_logits]
    *of_theta, of_alpha = torch.autograd.grad(total, parameters, retain_graph=True)
    return Total(total, of_theta, of_alpha)


def cost_by_hand(module: SearchModule) -> tuple[Tensor, Tensor]:
    """sum_l sum_i alpha_i^l MACs_i^l over ResNet-20's MACs, and its gradient p_i (C_i - E)."""
    p = module.supernet.alpha_logits.detach().softmax(-1)
    macs = count_macs(make_backbone("resnet20", module.frame_shape), torch.Size(module.frame_shape))
    table = module.supernet.macs_table / macs
    mean = (p * table).sum(-1, keepdim=True)
    return mean.sum(), p * (table - mean)


def test_one_backward_gives_theta_the_gradient_of_the_loss_alone_and_alpha_the_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, weights, alpha = stubbed(monkeypatch, lambda_cost=0.3)
    total, of_theta, of_alpha = some_total(module)
    cost, of_cost = cost_by_hand(module)
    metrics = module.step_both(total)
    # the same graph, gone through once more
    assert all(torch.equal(applied, expected) for applied, expected in zip(weights.applied, of_theta, strict=True))
    assert (0.3 * of_cost).norm() > 1e-3 * of_alpha.norm()
    torch.testing.assert_close(alpha.applied[0], of_alpha + 0.3 * of_cost)
    torch.testing.assert_close(metrics["loss/cost"], cost)
    torch.testing.assert_close(metrics["gradient/alpha_cost_norm"], (0.3 * of_cost).norm())
    torch.testing.assert_close(metrics["gradient/alpha_reward_norm"], of_alpha.norm())


def test_theta_gets_the_same_gradient_bit_by_bit_whatever_lambda_is(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []
    for lambda_cost in (0.0, 50.0):
        module, weights, alpha = stubbed(monkeypatch, lambda_cost=lambda_cost, gradient_clip_norm=0.5)
        module.step_both(some_total(module).total)
        applied.append((weights.applied, alpha.applied[0]))
    (without, free_alpha), (costly, costly_alpha) = applied
    assert all(torch.equal(a, b) for a, b in zip(without, costly, strict=True))
    assert not torch.equal(free_alpha, costly_alpha)


def test_a_step_of_alpha_alone_is_its_part_of_both_and_so_is_one_of_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, weights, alpha = stubbed(monkeypatch, lambda_cost=0.3)
    total, of_theta, of_alpha = some_total(module)
    module.step_alpha(total)
    assert weights.applied == []
    assert module.weight_updates == 0
    torch.testing.assert_close(alpha.applied[0], of_alpha + 0.3 * cost_by_hand(module)[1])

    module, weights, alpha = stubbed(monkeypatch, lambda_cost=0.3)
    metrics = module.step_weights(some_total(module).total)
    assert alpha.applied == []
    assert module.weight_updates == 1
    assert all(torch.equal(applied, expected) for applied, expected in zip(weights.applied, of_theta, strict=True))
    norm = torch.cat([gradient.flatten() for gradient in of_theta]).norm()
    torch.testing.assert_close(metrics["gradient/weights_norm"], norm)


@pytest.mark.parametrize("step", ["step_both", "step_alpha"])
def test_a_gradient_of_alpha_that_is_not_finite_moves_nothing(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    module, weights, alpha = stubbed(monkeypatch)
    broken = module.supernet.alpha_logits.sum().sub(module.supernet.alpha_logits.sum().detach()).sqrt()
    with pytest.raises(NonFiniteError, match="gradient of alpha is"):
        getattr(module, step)(some_total(module).total + broken)
    assert weights.applied == alpha.applied == []


@pytest.mark.parametrize(
    ("schedules", "entropy"),
    [(CoefficientSchedules(), 0.01), (CoefficientSchedules(entropy=PiecewiseLinear(0.0, 0.0)), 0.0075)],
    ids=["constant", "a quarter of the way to 0"],
)
def test_the_loss_of_a_rollout_is_equation_8(schedules: CoefficientSchedules, entropy: float) -> None:
    # in evaluation mode each frame is normalized alone, so that states and their successors can be asked separately
    module = make_search(coefficient_schedules=schedules, gamma=0.9).eval()
    module.env_steps = 250  # of 1000
    generator, frames = torch.Generator().manual_seed(5), random_pixels(8).view(2, 4, 2, 21, 21)
    reward, action = torch.randn(2, 3, generator=generator), torch.tensor([[0, 1, 2], [2, 1, 0]])
    done = torch.tensor([[False, True, False], [False, False, True]])
    after = {"pixels": frames[:, 1:], "reward": reward, "done": done, "terminated": done}
    acted = {"pixels": frames[:, :-1], "action": action, "log_prob": torch.full((2, 3), -1.1)}
    rollout = TensorDict({**acted, "next": after}, [2, 3])
    ((total, metrics),) = module.losses(rollout, module.agent)

    logits, value = (x.unflatten(0, (2, 3)) for x in module.agent(frames[:, :-1].flatten(0, 1)))
    target = (reward + 0.9 * module.agent(frames[:, 1:].flatten(0, 1))[1].view(2, 3) * ~done).detach()
    log_pi = logits.log_softmax(-1)
    terms = {
        "policy": -((target - value).detach() * log_pi.gather(-1, action[..., None])[..., 0]).mean(),
        "value": ((value - target) ** 2).mean() / 2,
        "entropy": (log_pi.exp() * log_pi).sum(-1).mean(),
    }
    by_hand = terms["policy"] + terms["value"] + entropy * terms["entropy"]
    assert abs(terms["entropy"].item()) > 1
    torch.testing.assert_close(total, by_hand)
    for name, term in {**terms, "total": by_hand}.items():
        torch.testing.assert_close(metrics[f"loss/{name}"], term.detach(), msg=partial("{}: {}".format, name))
    # losses of 1 leave rounding of 1e-7 in gradients, some of which are that small
    parameters = [p for p in module.parameters() if p.requires_grad]
    found, expected = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (total, by_hand))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_noise_of_alphas_gradient_is_that_of_what_its_optimizer_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, alpha = stubbed(monkeypatch, lambda_cost=0.5)
    applied = []
    metrics: dict[str, Any]
    for step in (module.step_both, module.step_alpha, module.step_both):
        metrics = step(some_total(module).total)
        applied.append(alpha.applied[0].double())
        module.supernet.draw(module.gumbel_generator)  # for another gradient
    gradients, weights = torch.stack(applied), torch.tensor([0.99**2, 0.99, 1.0]).view(3, 1, 1)
    mean = (weights * gradients).sum(0) / weights.sum()
    variance = (weights * (gradients - mean) ** 2).sum(0) / weights.sum()
    torch.testing.assert_close(module.alpha_gradient.mean, mean, check_dtype=False, rtol=1e-4, atol=1e-9)
    snr = mean.norm(dim=1) / variance.sum(1).sqrt()
    logged = torch.stack([metrics[f"search/alpha_snr_cell{i:02d}"] for i in range(3)])
    torch.testing.assert_close(logged, snr, check_dtype=False, rtol=1e-3, atol=0.0)
