"""Our RMSProp is torch's: its steps, its state, its other settings."""

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from a2d_lightning.cpu.kernels import kernels
from a2d_lightning.cpu.rmsprop import RMSprop

SETTINGS: dict[str, Any] = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-5}


def network() -> nn.Module:
    torch.manual_seed(0)
    # 3 * 5 * 9 + 5 and 45 * 700 + 700 elements: shares of neither begin or end with a tensor
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(45, 700)).to(memory_format=torch.channels_last)


def trained(module: nn.Module, make: Callable[..., torch.optim.Optimizer], steps: int = 5, **settings: Any) -> Any:
    """The optimizer after some steps of ``module`` along gradients that are the same each time."""
    optimizer = make(module.named_parameters(), **{**SETTINGS, **settings})
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in module.parameters():
            # powers of ten: eps outweighs some
            scale = 10 ** torch.randint(-7, 2, (), generator=generator).double()
            weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator) * scale)
        optimizer.step()
    return optimizer


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-5, atol=1e-6)


def test_steps_and_state_are_torchs_in_double_precision() -> None:
    ours, plain = network(), network().double()
    run = kernels()
    assert run is not None
    with patch.object(run, "rmsprop", wraps=run.rmsprop) as called:
        optimizer = trained(ours, RMSprop)
    assert called.call_count == 5
    expected = trained(plain, torch.optim.RMSprop)
    assert_same([p.detach() for p in ours.parameters()], [p.detach() for p in plain.parameters()])
    for mine, theirs in zip(optimizer.state.values(), expected.state.values(), strict=True):
        assert list(mine) == list(theirs)
        assert mine["step"] == theirs["step"] == 5
        torch.testing.assert_close(mine["square_avg"].double(), theirs["square_avg"], rtol=1e-5, atol=1e-20)


@pytest.mark.parametrize(
    "other",
    [{"momentum": 0.5}, {"weight_decay": 0.1}, {"centered": True}, {"maximize": True}, {"lr": torch.tensor(1e-2)}],
    ids=str,
)
def test_other_settings_are_torchs_own(other: dict[str, Any]) -> None:
    ours, plain = network(), network()
    trained(ours, RMSprop, **other)
    trained(plain, torch.optim.RMSprop, **other)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("other", ["double", "layout of a gradient", "kernels"])
def test_other_weights_are_torchs_own(other: str) -> None:
    ours = network()
    if other == "double":
        ours = ours.double()
    plain = copy.deepcopy(ours)
    run = kernels()
    assert run is not None
    for module, make in ((ours, RMSprop), (plain, torch.optim.RMSprop)):
        optimizer = make(module.parameters(), **SETTINGS)
        for weight in module.parameters():
            weight.grad = torch.ones_like(weight)
            if other == "layout of a gradient":
                weight.grad = weight.grad.contiguous()
        with (
            patch.object(run, "rmsprop") as called,
            patch("a2d_lightning.cpu.rmsprop.kernels", lambda: None if other == "kernels" else run),
        ):
            optimizer.step()
        assert not called.called
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), plain.parameters(), strict=True))


def test_it_goes_on_from_a_checkpoint_of_torchs_and_back() -> None:
    ours, plain = network(), network()
    state = copy.deepcopy(trained(plain, torch.optim.RMSprop).state_dict())
    ours.load_state_dict(plain.state_dict())
    mine, theirs = RMSprop(ours.parameters(), **SETTINGS), torch.optim.RMSprop(plain.parameters(), **SETTINGS)
    mine.load_state_dict(copy.deepcopy(state))
    theirs.load_state_dict(state)
    for module, optimizer in ((ours, mine), (plain, theirs)):
        for weight in module.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert_same([p.detach() for p in ours.parameters()], [p.detach() for p in plain.parameters()])
    theirs.load_state_dict(mine.state_dict())


def test_weights_without_a_gradient_stay_and_a_closure_is_called() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    optimizer = RMSprop(module.parameters(), **SETTINGS)
    frozen, moved = list(module.parameters())[:2]
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    def closure() -> Tensor:
        loss = moved.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == before["0.bias"].sum()
    assert torch.equal(frozen, before["0.weight"])
    assert not torch.equal(moved, before["0.bias"])


def test_a_graph_of_before_the_step_is_not_used_after_it() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = RMSprop([weight], **SETTINGS)
    loss = weight.square().sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
