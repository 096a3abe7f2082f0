"""Hand-designed backbones (App. C), and the agent: one backbone shared by an actor and a critic."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.cpu.accelerate import accelerate
from a2d_lightning.models.layers import BasicBlock, FrameShape, pooled_features
from a2d_lightning.runtime.errors import SettingError


def resnet(frame_shape: FrameShape, blocks_per_group: int, channels: Sequence[int] = (16, 32, 64)) -> nn.Sequential:
    """Build the CIFAR ResNet with a first convolution of stride 2 and a last FC to 256 (App. C).

    Args:
        frame_shape: (stack, height, width) of the input.
        blocks_per_group: basic blocks in each group, n.
        channels: channels of each group.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(frame_shape[0], channels[0], 3, 2, 1, bias=False),
        nn.BatchNorm2d(channels[0]),
        nn.ReLU(inplace=True),
    ]
    in_channels = channels[0]
    for group, out_channels in enumerate(channels):
        for block in range(blocks_per_group):
            stride = 2 if group > 0 and block == 0 else 1
            layers.append(BasicBlock(in_channels, out_channels, stride))
            in_channels = out_channels
    return nn.Sequential(*layers, *pooled_features(in_channels))


def vanilla(frame_shape: FrameShape) -> nn.Sequential:
    """Build the DQN network of Mnih et al. 2015."""
    body = nn.Sequential(
        nn.Conv2d(frame_shape[0], 32, 8, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
    )
    features = _num_features(body, frame_shape, "vanilla")
    return nn.Sequential(*body, nn.Linear(features, 512), nn.ReLU(inplace=True))


def four_conv(frame_shape: FrameShape) -> nn.Sequential:
    """Build four 3x3 convolutions of stride 2 and 32 channels, and FC 256, for 42x42 frames (universe-starter-agent).

    Not in the paper. Small and fast enough that PPO can train it on two cores.
    """
    body: list[nn.Module] = []
    in_channels = frame_shape[0]
    for _ in range(4):
        body += [nn.Conv2d(in_channels, 32, 3, 2, 1), nn.ReLU(inplace=True)]
        in_channels = 32
    body.append(nn.Flatten())
    features = _num_features(nn.Sequential(*body), frame_shape, "four_conv")
    return nn.Sequential(*body, nn.Linear(features, 256), nn.ReLU(inplace=True))


def two_conv(frame_shape: FrameShape) -> nn.Sequential:
    """Build two 3x3 convolutions of 32 channels, the second of stride 2, and FC 256, for the 10x10 images of MinAtar.

    Not in the paper. Modelled on Young and Tian 2019, who use one convolution of 16 channels and FC 128.
    """
    body = nn.Sequential(
        nn.Conv2d(frame_shape[0], 32, 3, 1, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
    )
    features = _num_features(body, frame_shape, "two_conv")
    return nn.Sequential(*body, nn.Linear(features, 256), nn.ReLU(inplace=True))


BACKBONES: dict[str, Callable[[FrameShape], nn.Module]] = {
    "vanilla": vanilla,
    "resnet14": lambda shape: resnet(shape, 2),
    "resnet20": lambda shape: resnet(shape, 3),
    "resnet38": lambda shape: resnet(shape, 6),
    "resnet74": lambda shape: resnet(shape, 12),
    "four_conv": four_conv,
    "two_conv": two_conv,
}


def make_backbone(network: str, frame_shape: FrameShape) -> nn.Module:
    """Build a hand-designed backbone.

    Args:
        network: name in :data:`BACKBONES`.
        frame_shape: (stack, height, width) of the observations.

    Raises:
        SettingError: If there is no such network, or the frames are too small for it.
    """
    if network not in BACKBONES:
        raise SettingError(f"model.network: there is no {network!r}; choose one of {', '.join(BACKBONES)}.")
    return BACKBONES[network](frame_shape)


class ActorCritic(nn.Module):
    """The paper's agent: a backbone, an actor (logits) and a critic (scalar).

    ``forward`` takes pixels uint8 ``[B, stack, k h, k w]`` and returns logits ``[B, actions]`` and values ``[B]``.
    Frames that are k times larger than ``frame_shape`` are first averaged over k x k pixels. Up to rounding, this gives
    the frames that the emulator would give at the smaller size, because those are area averages, too.

    Args:
        backbone: float ``[B, stack, h, w]`` in [0, 1] to features ``[B, F]``.
        frame_shape: (stack, height, width) of the backbone's input.
        num_actions: number of actions.
    """

    def __init__(self, backbone: nn.Module, frame_shape: FrameShape, num_actions: int) -> None:
        super().__init__()
        features = _num_features(backbone, frame_shape, "backbone")
        self.backbone = accelerate(backbone)
        self.actor = nn.Linear(features, num_actions)
        self.critic = nn.Linear(features, 1)
        self.frame_shape = frame_shape
        self.num_actions = num_actions
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    autocast_dtype: torch.dtype | None = None
    """Lower precision of convolutions and dense layers, if set; logits and values stay float32."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self.autocast_dtype is None:
            return self._forward(pixels)
        # without the cache, which would keep the weights from before an update for the next minibatch's forward
        with torch.autocast(pixels.device.type, self.autocast_dtype, cache_enabled=False):
            logits, values = self._forward(pixels)
        return logits.float(), values.float()

    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next(self.parameters()).dtype
        times = pixels.shape[-1] // self.frame_shape[-1]
        if times == 1:
            frames = pixels.to(dtype, memory_format=torch.channels_last) / 255.0
        else:
            frames = F.avg_pool2d(pixels.to(dtype, memory_format=torch.channels_last), times).round() / 255.0
        features = self.backbone(frames)
        return self.actor(features), self.critic(features)[:, 0]


def initialize(agent: ActorCritic) -> ActorCritic:
    """Initialize an agent in place as usual for A2C and PPO, and return it.

    Weights are orthogonal with gain sqrt 2, except for the actor (0.01, so that the first policy is nearly uniform) and
    the critic (1). Biases are zero. Batch norm keeps its defaults.
    """
    for layer in agent.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            gain = 0.01 if layer is agent.actor else 1.0 if layer is agent.critic else 2**0.5
            # orthogonal_ rejects channels_last weights, so it fills a contiguous tensor
            layer.weight.data.copy_(nn.init.orthogonal_(torch.empty(layer.weight.shape), gain))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return agent


def count_parameters(module: nn.Module) -> int:
    """Count the parameters of ``module``, without buffers."""
    return sum(p.numel() for p in module.parameters())


def scaled_frame_shape(frame_shape: FrameShape, size: int | None) -> FrameShape:
    """Return the shape of the frames that the agent's network takes.

    Args:
        frame_shape: (stack, height, width) of the observations.
        size: height and width of the network's frames in pixels; absent if the same as the observations'.

    Raises:
        SettingError: If the observations are not square, or their size is not a multiple of ``size``.
    """
    if size is None:
        return frame_shape
    stack, height, width = frame_shape
    if size <= 0 or height % size or width % size or height != width:
        raise SettingError(
            f"model.agent_frame_size: frames of {height}x{width} cannot be averaged down to {size}x{size}; "
            "data.frames.size must be a multiple of model.agent_frame_size."
        )
    return stack, size, size


def _num_features(backbone: nn.Module, frame_shape: FrameShape, name: str) -> int:
    training = backbone.training
    try:
        with torch.no_grad():
            return backbone.eval()(torch.zeros(1, *frame_shape)).shape[1]
    except RuntimeError as error:
        raise SettingError(
            f"data.frames.size: frames of {frame_shape[1]}x{frame_shape[2]} are too small for {name}; use larger ones."
        ) from error
    finally:
        backbone.train(training)
