"""Each kind of normalization against an oracle of its own, and how running statistics move."""

import copy
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.networks import make_backbone
from a2d_lightning.models.normalization import (
    ChannelAffine,
    Normalization,
    PerStepBatchNorm2d,
    RunningBatchNorm2d,
    frozen_batch_norm_statistics,
    inference_normalization,
    recalibrate,
    time_steps,
    update_running_stats,
    with_normalization,
)
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet

M = TypeVar("M", bound=nn.Module)

FRAME: FrameShape = (2, 20, 20)
PLAN = Plan((1, 1, 1), (8, 16, 32))
NETWORKS = {
    "resnet14": lambda: make_backbone("resnet14", FRAME),
    "derived": lambda: Architecture(("conv_k3", "ir_k3_e3", "skip"), PLAN, FRAME, 0, 0).build(FRAME),
    "supernet": lambda: Supernet(PLAN, FRAME),
}
LAYERS: dict[Normalization, type[nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "running": RunningBatchNorm2d,
    "per_step": PerStepBatchNorm2d,
    "group": nn.GroupNorm,
    "none": ChannelAffine,
}
BATCH_NORMS: list[Normalization] = ["batch", "running", "per_step"]
ENVS, STEPS, CHANNELS = 3, 4, 5


def scrambled(module: M) -> M:
    """With norms as if they had been trained: none is the identity, none has fresh statistics."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, tuple(LAYERS.values())):
            affine: Any = layer
            nn.init.uniform_(affine.weight, 0.5, 1.5)
            nn.init.normal_(affine.bias)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    return module


def random_maps(batch: int, seed: int = 0, channels: int = CHANNELS) -> Tensor:
    """Float ``[batch, channels, 3, 3]``, each frame of another brightness and contrast, so that batches matter."""
    generator = torch.Generator().manual_seed(seed)
    shape, scalar = (batch, channels, 3, 3), (batch, 1, 1, 1)
    contrast, brightness = (torch.randn(scalar, generator=generator) for _ in range(2))
    return torch.randn(shape, generator=generator) * (1 + contrast.abs()) + 2 * brightness


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, by double precision."""
    columns = x.detach().double().transpose(0, 1).flatten(1)
    return columns.mean(1).float(), columns.var(1, correction=1).float()


def same_gradients(y: Tensor, oracle: Tensor, inputs: list[Tensor], oracle_inputs: list[Tensor]) -> None:
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(y, inputs, upstream)
    expected = torch.autograd.grad(oracle, oracle_inputs, upstream)
    for mine, its in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_batch_norm_of_a_network_becomes_the_asked_kind(network: str, kind: Normalization) -> None:
    before = {name: m for name, m in NETWORKS[network]().named_modules() if isinstance(m, nn.BatchNorm2d)}
    after = with_normalization(NETWORKS[network](), kind)
    norms: dict[str, Any] = {name: m for name, m in after.named_modules() if isinstance(m, tuple(LAYERS.values()))}
    assert len(before) >= 6
    assert norms.keys() == before.keys()
    assert {type(norm) for norm in norms.values()} == {LAYERS[kind]}
    # as many weights: one scale and one shift a channel
    assert all(norm.weight.shape == before[name].weight.shape for name, norm in norms.items())
    assert sum(p.numel() for p in after.parameters()) == sum(p.numel() for p in NETWORKS[network]().parameters())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["running", "per_step"])
def test_weights_of_every_kind_of_batch_norm_play_alike_by_conventional_batch_norm(
    network: str, kind: Normalization
) -> None:
    trained = scrambled(with_normalization(NETWORKS[network](), kind)).eval()
    plain = with_normalization(NETWORKS[network](), inference_normalization(kind)).eval()
    assert not any(isinstance(layer, LAYERS[kind]) for layer in plain.modules())
    plain.load_state_dict(trained.state_dict())  # refuses other names
    frames = torch.rand(3, *FRAME)
    assert torch.equal(plain(frames), trained(frames))
    assert plain(frames).std(0).max() > 0


@pytest.mark.parametrize("kind", ["batch", "group", "none"])
def test_kinds_without_an_acting_mode_of_their_own_are_evaluated_as_they_are(kind: Normalization) -> None:
    assert inference_normalization(kind) == kind


# --- layers -----------------------------------------------------------------------------------------------------------


def test_running_normalizes_by_earlier_statistics_and_sends_them_no_gradient() -> None:
    layer: Any = scrambled(RunningBatchNorm2d(CHANNELS)).train()
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()
    x = random_maps(6).requires_grad_()
    y = layer(x)
    leaves = [t.detach().clone().requires_grad_() for t in (x, layer.weight, layer.bias)]
    scale = leaves[1] / (variance + 1e-5).sqrt()
    oracle = (leaves[0] - mean[:, None, None]) * scale[:, None, None] + leaves[2][:, None, None]
    torch.testing.assert_close(y, oracle, rtol=1e-5, atol=1e-5)
    same_gradients(y, oracle, [x, layer.weight, layer.bias], leaves)
    assert torch.equal(layer.running_mean, mean)
    assert torch.equal(layer.running_var, variance)


def test_per_step_is_batch_norm_of_one_time_step_after_another() -> None:
    layer = scrambled(PerStepBatchNorm2d(CHANNELS)).train()
    oracle = nn.BatchNorm2d(CHANNELS)
    oracle.load_state_dict(layer.state_dict())
    x, its_x = (random_maps(ENVS * STEPS).requires_grad_() for _ in range(2))
    with time_steps(layer, ENVS, STEPS):
        y = layer(x)
    expected = torch.cat([oracle(its_x[t * ENVS : (t + 1) * ENVS]) for t in range(STEPS)])
    torch.testing.assert_close(y, expected)
    same_gradients(y, expected, [x, layer.weight, layer.bias], [its_x, oracle.weight, oracle.bias])
    # the whole batch at once would be something else
    assert (y - layer(x)).abs().max() > 0.1


def test_without_time_steps_per_step_takes_the_batch_for_one() -> None:
    layer = scrambled(PerStepBatchNorm2d(CHANNELS)).train()
    oracle = nn.BatchNorm2d(CHANNELS)
    oracle.load_state_dict(layer.state_dict())
    with time_steps(layer, ENVS, STEPS):
        layer.eval()
        torch.testing.assert_close(layer(random_maps(7)), oracle.eval()(random_maps(7)))
    torch.testing.assert_close(layer.train()(random_maps(ENVS)), oracle.train()(random_maps(ENVS)))


def test_frames_beyond_the_time_steps_are_normalized_by_running_statistics() -> None:
    layer = scrambled(PerStepBatchNorm2d(CHANNELS)).train()
    x = random_maps(ENVS * STEPS + 2)
    with time_steps(layer, ENVS, STEPS):
        alone = copy.deepcopy(layer)(x[: ENVS * STEPS])
        y = layer(x)
    assert torch.equal(y[: ENVS * STEPS], alone)
    # by now the time steps have moved them
    oracle = F.batch_norm(x[ENVS * STEPS :], layer.running_mean, layer.running_var, layer.weight, layer.bias)
    torch.testing.assert_close(y[ENVS * STEPS :], oracle)


def test_a_second_forward_leaves_the_first_ones_gradient_alone() -> None:
    # bi-level schemes update on two rollouts by one graph; the second moves running statistics
    def gradient(forwards: int) -> Tensor:
        layer = scrambled(PerStepBatchNorm2d(CHANNELS)).train()
        x = random_maps(ENVS * STEPS + 2).requires_grad_()
        with time_steps(layer, ENVS, STEPS):
            y = layer(x)
            for seed in range(1, forwards):
                layer(random_maps(ENVS * STEPS + 2, seed))
        y.square().sum().backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(gradient(2), gradient(1))
    assert gradient(1)[ENVS * STEPS :].norm() > 0


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 2), (24, 3), (40, 5), (12, 3), (5, 5)])
def test_group_normalizes_eight_channels_together_where_they_divide(channels: int, groups: int) -> None:
    network = scrambled(with_normalization(nn.Sequential(nn.BatchNorm2d(channels)), "group")).train()
    x = random_maps(4, channels=channels)
    norm: Any = network[0]
    expected = F.group_norm(x, groups, norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(network(x), expected)


def test_none_scales_and_shifts_each_channel() -> None:
    network = with_normalization(nn.Sequential(nn.BatchNorm2d(CHANNELS)), "none").train()
    x = random_maps(4)
    assert torch.equal(network(x), x)  # a fresh one is the identity
    scrambled(network)
    affine: Any = network[0]
    expected = torch.stack([affine.weight[c] * x[:, c] + affine.bias[c] for c in range(CHANNELS)], 1)
    torch.testing.assert_close(network(x), expected)


# --- running statistics -----------------------------------------------------------------------------------------------


def test_running_statistics_move_by_momentum_towards_the_mean_of_the_batches_seen() -> None:
    network = scrambled(nn.Sequential(RunningBatchNorm2d(CHANNELS), RunningBatchNorm2d(CHANNELS))).train()
    second: Any = network[1]
    second.momentum = 0.5
    before = copy.deepcopy(network)
    batches = [random_maps(4, seed=1), 2 * random_maps(9, seed=2), 5 + random_maps(2, seed=3)]
    for batch in batches:
        network(batch)
    update_running_stats(network, lambda x: x)
    with torch.no_grad():
        inputs = [batches, [before[0].eval()(batch) for batch in batches]]
    old: Any
    for layer, old, seen, momentum in zip(network, before, inputs, (0.1, 0.5), strict=True):
        means, variances = zip(*map(moments, seen), strict=True)
        for moved, start, target in (
            (layer.running_mean, old.running_mean, torch.stack(means).mean(0)),
            (layer.running_var, old.running_var, torch.stack(variances).mean(0)),
        ):
            torch.testing.assert_close(moved, (1 - momentum) * start + momentum * target)


def test_all_ranks_move_their_running_statistics_alike() -> None:
    # two ranks see a and b: both end where one that had seen both would
    frames = [random_maps(6, seed) for seed in (1, 2)]
    ranks = [scrambled(nn.Sequential(RunningBatchNorm2d(CHANNELS), RunningBatchNorm2d(CHANNELS))) for _ in range(2)]
    sent: list[Tensor] = []

    def send(x: Tensor) -> Tensor:
        sent.append(x)
        return x

    for rank, x in zip(ranks, frames, strict=True):
        rank.train()(x)
        update_running_stats(copy.deepcopy(rank), send)
    assert all(x.shape == (2 * 2 * CHANNELS,) for x in sent)  # one exchange each
    for rank in ranks:
        update_running_stats(rank, lambda x: (sent[0] + sent[1]) / 2)
    alone = scrambled(nn.Sequential(RunningBatchNorm2d(CHANNELS), RunningBatchNorm2d(CHANNELS))).train()
    for x in frames:
        alone(x)
    update_running_stats(alone, lambda x: x)
    for name, expected in alone.state_dict().items():
        for rank in ranks:
            torch.testing.assert_close(rank.state_dict()[name], expected)


def test_what_was_seen_moves_statistics_once() -> None:
    layer: Any = scrambled(RunningBatchNorm2d(CHANNELS)).train()
    layer(random_maps(4))
    update_running_stats(layer, lambda x: x)
    moved, calls = layer.running_mean.clone(), []

    def call(x: Tensor) -> Tensor:
        calls.append(x)
        return x

    update_running_stats(layer, call)
    assert not calls
    assert torch.equal(layer.running_mean, moved)
    # and what is seen afterwards is not mixed with it
    later = random_maps(4, seed=1)
    layer(later)
    update_running_stats(layer, lambda x: x)
    torch.testing.assert_close(layer.running_mean, 0.9 * moved + 0.1 * moments(later)[0])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_acting_and_evaluation_leave_all_statistics_where_they_are(network: str, kind: Normalization) -> None:
    net = scrambled(with_normalization(NETWORKS[network](), kind)).train()
    before = {name: x.clone() for name, x in net.state_dict().items()}

    def unmoved() -> bool:
        return all(torch.equal(x, before[name]) for name, x in net.state_dict().items())

    def see() -> None:
        net(torch.rand(4, *FRAME))
        with time_steps(net, 2, 2):
            net(torch.rand(5, *FRAME))
        update_running_stats(net, lambda x: x)

    with frozen_batch_norm_statistics(net):
        see()
        assert unmoved()
    net.eval()
    see()
    assert unmoved()
    # learning moves those that there are
    net.train()
    see()
    assert unmoved() == (kind in ("group", "none"))


def test_per_step_moves_its_statistics_by_one_momentum_an_update_however_many_steps() -> None:
    # towards a mean of 1 from 0, by 0.1/T T times: 1 - (1 - 0.1/T)^T, which is 0.1 for T = 1 and 1 - exp(-0.1) at most
    moved = []
    for steps in (1, 5, 20):
        layer: Any = PerStepBatchNorm2d(1).train()
        x = torch.tensor([0.0, 2.0]).repeat(steps)[:, None, None, None]
        with time_steps(layer, 2, steps):
            layer(x)
        moved.append(layer.running_mean.item())
    assert moved == pytest.approx([1 - (1 - 0.1 / steps) ** steps for steps in (1, 5, 20)], rel=1e-5)
    assert all(0.095 < x <= 0.1 + 1e-7 for x in moved)


# --- recalibration ----------------------------------------------------------------------------------------------------


def test_recalibration_takes_the_mean_of_the_batches_statistics() -> None:
    torch.manual_seed(0)
    network = scrambled(
        nn.Sequential(nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    ).append(scrambled(nn.BatchNorm2d(3, momentum=0.3)))
    batches = [random_maps(4, seed=1), 3 * random_maps(7, seed=2), 2 + random_maps(2, seed=3)]
    weights = {name: p.clone() for name, p in network.named_parameters()}
    recalibrate(network, batches)

    first, second = [], []
    norm: Any = network[1]
    with torch.no_grad():
        for batch in batches:
            x = network[0](batch)
            first.append(moments(x))
            # normalized by the batch itself, as while learning
            x = F.batch_norm(x, None, None, norm.weight, norm.bias, True)
            second.append(moments(network[3](x.relu())))
    for norm, found in ((network[1], first), (network[4], second)):
        means, variances = zip(*found, strict=True)
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert [network[1].momentum, network[4].momentum] == [0.1, 0.3]
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())


def test_recalibrated_statistics_depend_on_their_batches_alone() -> None:
    network = scrambled(NETWORKS["derived"]())
    networks = [network, copy.deepcopy(network)]
    for _ in range(3):
        networks[1].train()(torch.rand(8, *FRAME))  # another history
    batches = [torch.rand(5, *FRAME), torch.rand(8, *FRAME)]
    for network in networks:
        recalibrate(network, batches)
    frames = torch.rand(3, *FRAME)
    assert torch.equal(networks[0](frames), networks[1](frames))
