"""The hand-made backbones against the paper's sizes, and the two-headed agent."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from a2d_lightning.agent_files import build_backbone
from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import (
    BACKBONES,
    ActorCritic,
    count_parameters,
    initialize,
    make_backbone,
    scaled_frame_shape,
)
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rollouts.envs import FrameSettings, make_env
from a2d_lightning.runtime.errors import SettingError

FRAME = (4, 84, 84)


def make_agent(network: str = "resnet14", num_actions: int = 6, frame: FrameShape = (4, 42, 42)) -> ActorCritic:
    return ActorCritic(make_backbone(network, frame), frame, num_actions)


def random_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_parameters_are_the_papers() -> None:
    # Vanilla: 4*32*64+32 + 32*64*16+64 + 64*64*9+64 + 3136*512+512 = 8,224 + 32,832 + 36,928 + 1,606,144
    # ResNet-20: stem 4*16*9 + 2*16                                          =     608
    #   group 1: 6 convs 16*16*9, 6 norms 2*16                               =  14,016
    #   group 2: 16*32*9 + 5 * 32*32*9 + projection 16*32, 7 norms 2*32      =  51,648
    #   group 3: 32*64*9 + 5 * 64*64*9 + projection 32*64, 7 norms 2*64      = 205,696
    #   FC: 64*256 + 256                                                     =  16,640
    big, small = (count_parameters(make_backbone(name, FRAME)) for name in ("vanilla", "resnet20"))
    assert big == 1_684_128
    assert small == 288_608
    assert 5.83 <= big / small < 5.84  # the paper prints 5.83x


def test_macs_of_resnet20_by_hand() -> None:
    # 3x3 convolutions at height * width * out * in * 9; a 1x1 projection has no 9. Maps 84 -> 42 -> 21 -> 11.
    stem = 42 * 42 * 16 * 4 * 9  # 1,016,064
    group_1 = 6 * 42 * 42 * 16 * 16 * 9  # 24,385,536
    group_2 = 21 * 21 * (32 * 16 * 9 + 5 * 32 * 32 * 9 + 32 * 16)  # 22,579,200
    group_3 = 11 * 11 * (64 * 32 * 9 + 5 * 64 * 64 * 9 + 64 * 32)  # 24,780,800
    fc = 64 * 256  # 16,384
    assert stem + group_1 + group_2 + group_3 + fc == 72_777_984  # the digest's 72.8 M
    assert count_macs(make_backbone("resnet20", FRAME), torch.Size(FRAME)) == 72_777_984


def test_macs_of_vanilla_by_hand() -> None:
    # maps 84 -> 20 -> 9 -> 7: 400*32*4*64 + 81*64*32*16 + 49*64*64*9 + 3136*512
    by_hand = 3_276_800 + 2_654_208 + 1_806_336 + 1_605_632
    assert count_macs(make_backbone("vanilla", FRAME), torch.Size(FRAME)) == by_hand


@pytest.mark.parametrize("depth", [14, 20, 38, 74])
def test_a_resnet_is_as_deep_as_its_name(depth: int) -> None:
    # the main path is all its 3x3 convolutions (projections are 1x1) and the FC: 6 n + 1 + 1 layers
    layers = list(make_backbone(f"resnet{depth}", FRAME).modules())
    main_path = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(main_path) == depth - 1
    assert sum(isinstance(m, nn.Linear) for m in layers) == 1


def test_a_resnet_halves_its_maps_three_times() -> None:
    backbone = make_backbone("resnet14", FRAME)
    sizes = []
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[1:])))
    features = backbone(torch.zeros(2, *FRAME))
    assert sizes == [(16, 42, 42)] * 5 + [(32, 21, 21)] * 4 + [(64, 11, 11)] * 4
    assert features.shape == (2, 256)


def test_a_residual_block_passes_its_input_on() -> None:
    # with every norm silenced the blocks of group 1 add nothing, and relu(stem) comes through unchanged
    backbone = make_backbone("resnet14", FRAME)
    assert isinstance(backbone, nn.Sequential)
    stem, blocks = backbone[:3], backbone[3:5]
    for module in blocks.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    x = stem(torch.rand(2, *FRAME))
    assert x.max() > 0
    assert torch.equal(blocks(x), x)


@pytest.mark.parametrize("network", BACKBONES)
@pytest.mark.parametrize(("size", "num_actions"), [(42, 3), (84, 18)])
def test_every_network_makes_an_agent(network: str, size: int, num_actions: int) -> None:
    agent = make_agent(network, num_actions, (4, size, size))
    logits, value = agent(random_pixels(2, 4, size, size))
    assert logits.shape == (2, num_actions)
    assert value.shape == (2,)


def test_building_an_agent_leaves_its_norms_fresh_and_in_train_mode() -> None:
    # it measures its backbone's features by a forward of zeros
    agent = make_agent()
    assert all(module.training for module in agent.modules())
    norms: list[Any] = [m for m in agent.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all((norm.running_var == 1).all() for norm in norms)


def test_other_stacks_and_oblong_frames_work() -> None:
    logits, value = make_agent("vanilla", 5, (1, 50, 60))(random_pixels(3, 1, 50, 60))
    assert logits.shape == (3, 5)
    assert value.shape == (3,)


def test_an_unknown_network_is_refused_and_the_choices_named() -> None:
    with pytest.raises(SettingError) as refusal:
        make_backbone("resnet19", FRAME)
    assert "'resnet19'" in str(refusal.value)
    assert all(name in str(refusal.value) for name in BACKBONES)
    assert "\n" not in str(refusal.value)


def test_too_small_frames_are_refused() -> None:
    # (36 - 8)/4 + 1 = 8, (8 - 4)/2 + 1 = 3, 3 - 3 + 1 = 1: 36 is the least; 35 leaves 2 for a kernel of 3
    make_backbone("vanilla", (4, 36, 36))
    with pytest.raises(SettingError, match="35x36"):
        make_backbone("vanilla", (4, 35, 36))


def test_a_derived_backbone_is_built_from_its_architecture() -> None:
    architecture = Architecture(("skip", "conv_k3"), Plan((1, 1), (4, 8)), (4, 20, 20), macs=0, parameters=0)
    backbone = build_backbone("derived", architecture, (4, 20, 20))
    # stem 4*4*9 + 2*4, conv 4*8*9 + 2*8, FC 8*256 + 256
    assert count_parameters(backbone) == 152 + 304 + 2304
    with pytest.raises(SettingError):
        build_backbone("derived", None, (4, 20, 20))


def test_the_agent_scales_bytes_to_the_unit_interval() -> None:
    agent = make_agent().eval()
    pixels = random_pixels(3, 4, 42, 42)
    with torch.no_grad():
        logits, value = agent(pixels)
        features = agent.backbone(pixels.float() / 255)
        torch.testing.assert_close(logits, agent.actor(features))
        torch.testing.assert_close(value, agent.critic(features)[:, 0])
    assert logits.std(0).max() > 0  # the frames differ, so must what is said of them


@pytest.mark.parametrize("times", [2, 3])
def test_larger_frames_are_seen_as_their_rounded_means(times: int) -> None:
    agent = make_agent().eval()
    large = random_pixels(3, 4, 42 * times, 42 * times)
    # each square's pixels side by side; numpy rounds halves to even, as emulators' resizing and torch do
    squares = large.numpy().reshape(3, 4, 42, times, 42, times).transpose(0, 1, 2, 4, 3, 5).reshape(3, 4, 42, 42, -1)
    means = squares.mean(-1, dtype=np.float64)
    assert (means % 1 != 0).any()
    with torch.no_grad():
        expected = agent(torch.from_numpy(means.round().astype(np.uint8)))
        for seen, own in zip(agent(large), expected, strict=True):
            assert torch.equal(seen, own)
            assert own.std() > 0


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_a_games_smaller_frames_are_the_means_of_its_larger_ones(game: str) -> None:
    # which is what makes an agent that averages the larger ones play as one that was trained on the smaller
    def frames(size: int) -> torch.Tensor:
        env = make_env(game, 2, FrameSettings(size=size), seed=3, num_threads=1, noop_max=30)
        generator = torch.Generator().manual_seed(0)
        state, seen = env.reset(), []
        for _ in range(30):
            seen.append(state["pixels"])
            state["action"] = torch.randint(env.num_actions, (2,), generator=generator)
            _, state = env.step_and_maybe_reset(state)
        env.close()
        return torch.cat(seen).double()

    large, small = frames(84), frames(42)
    means = large.unflatten(-1, (42, 2)).unflatten(-3, (42, 2)).mean((-1, -3))
    assert small.std() > 10
    # a half and the rounding of four pixels
    assert (means - small).abs().max() <= 1.0


@pytest.mark.parametrize(
    ("shape", "size", "own"),
    [((4, 84, 84), None, (4, 84, 84)), ((4, 84, 84), 42, (4, 42, 42)), ((1, 84, 84), 28, (1, 28, 28))],
)
def test_an_agents_own_frames_are_as_large_as_asked(shape: FrameShape, size: int | None, own: FrameShape) -> None:
    assert scaled_frame_shape(shape, size) == own
    assert scaled_frame_shape(own, own[-1]) == own


@pytest.mark.parametrize(
    ("shape", "size"), [((4, 84, 84), s) for s in (0, -42, 40, 85, 168)] + [((4, 84, 42), 42), ((4, 42, 84), 42)]
)
def test_frames_that_cannot_be_averaged_down_are_refused(shape: FrameShape, size: int) -> None:
    with pytest.raises(SettingError, match=r"model\.agent_frame_size.*data\.frames\.size") as refusal:
        scaled_frame_shape(shape, size)
    assert f"{shape[1]}x{shape[2]}" in str(refusal.value)
    assert f"{size}x{size}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_backbone_is_shared_by_both_heads() -> None:
    agent = make_agent()
    logits, value = agent(random_pixels(2, 4, 42, 42))
    shared = list(agent.backbone.parameters())
    for head in (logits.square().sum(), value.square().sum()):
        assert all(gradient.norm() > 0 for gradient in torch.autograd.grad(head, shared[:1], retain_graph=True))


def test_initial_weights_are_orthogonal_with_gain_root_two_and_biases_zero() -> None:
    torch.manual_seed(0)
    agent = initialize(make_agent("vanilla"))
    layers = [m for m in agent.backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    for layer in layers:
        matrix = layer.weight.detach().flatten(1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        # sums of up to 3,136 float32 products of size 1: rounding of about 3136 * 6e-8 / sqrt(3136) < 1e-5
        torch.testing.assert_close(gram, 2 * torch.eye(len(gram)), atol=1e-5, rtol=0)
    for layer in [*layers, agent.actor, agent.critic]:
        assert layer.bias is not None
        assert not layer.bias.any()


def test_the_first_policy_is_nearly_uniform() -> None:
    # orthonormal rows times 0.01: |logits| <= 0.01 |features|, which is what makes the policy flat
    torch.manual_seed(0)
    agent = initialize(make_agent()).eval()
    torch.testing.assert_close(agent.actor.weight @ agent.actor.weight.T, 1e-4 * torch.eye(6), atol=1e-9, rtol=0)
    with torch.no_grad():
        logits, _ = agent(random_pixels(8, 4, 42, 42))
    assert logits.any()
    assert (logits.softmax(-1) - 1 / 6).abs().max() < 0.01


def test_initialize_leaves_batch_norm_alone() -> None:
    for module in initialize(make_agent()).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_bfloat16_gives_float32_and_sees_each_update_at_once() -> None:
    agent = make_agent()
    pixels = random_pixels(8, 4, 42, 42)
    exact, _ = agent(pixels)
    agent.autocast_dtype = torch.bfloat16
    # as a training step of bf16-mixed: Lightning's context keeps converted weights until it ends
    with torch.autocast("cpu", torch.bfloat16):
        logits, values = agent(pixels)
        assert (logits.dtype, values.dtype) == (torch.float32, torch.float32)
        assert not torch.equal(logits, exact)
        assert torch.allclose(logits, exact, atol=0.05 * float(exact.abs().max()))
        with torch.no_grad():
            agent.actor.weight.mul_(2.0)
            agent.actor.bias.mul_(2.0)
        assert torch.allclose(agent(pixels)[0], 2 * logits, rtol=0.02, atol=1e-3)
    logits.sum().backward()
    assert agent.actor.weight.grad is not None
    assert agent.actor.weight.grad.dtype == torch.float32
