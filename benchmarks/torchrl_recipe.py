"""A2C on Atari with TorchRL: ParallelEnv, Collector, GAE and A2CLoss, with one update per rollout.

The published recipe of TorchRL uses ten minibatches of 20 from 200 steps and resizes frames with torchvision in the
main process. This one favours TorchRL: one update per rollout, and frames resized by OpenCV in the workers.
"""

import ale_py
import gymnasium
import torch
from gymnasium.wrappers import AtariPreprocessing
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import CatFrames, EnvBase, GymWrapper, ParallelEnv, RewardSum, SignTransform, TransformedEnv
from torchrl.envs.transforms import DoubleToFloat, ToTensorImage, UnsqueezeTransform
from torchrl.modules import MLP, ActorValueOperator, ConvNet, OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import A2CLoss
from torchrl.objectives.value import GAE

from benchmarks.turns import Lap


def _game() -> EnvBase:
    gymnasium.register_envs(ale_py)
    env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    return GymWrapper(AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84))


def _env(num_envs: int) -> EnvBase:
    env = TransformedEnv(ParallelEnv(num_envs, _game, serial_for_single=True))
    pixels = ["observation"]
    for transform in (
        DoubleToFloat(),
        UnsqueezeTransform(-1, in_keys=pixels, out_keys=["pixels"]),
        ToTensorImage(in_keys=["pixels"]),
        CatFrames(N=4, dim=-3, in_keys=["pixels"]),
        RewardSum(),
        SignTransform(in_keys=["reward"]),
    ):
        env.append_transform(transform)
    return env


def train(lap: Lap, num_envs: int, steps: int) -> None:
    """Train the Nature CNN on 84x84 frames.

    Args:
        lap: Called after each rollout and its update.
        num_envs: Number of environments.
        steps: Steps per rollout.
    """
    env = _env(num_envs)
    cnn = ConvNet(
        in_features=4, num_cells=[32, 64, 64], kernel_sizes=[8, 4, 3], strides=[4, 2, 1], activation_class=torch.nn.ReLU
    )
    mlp = MLP(
        in_features=3136, out_features=512, num_cells=[], activation_class=torch.nn.ReLU, activate_last_layer=True
    )
    network = ActorValueOperator(
        TensorDictModule(torch.nn.Sequential(cnn, mlp), in_keys=["pixels"], out_keys=["common_features"]),
        ProbabilisticActor(
            TensorDictModule(torch.nn.Linear(512, 6), in_keys=["common_features"], out_keys=["logits"]),
            in_keys=["logits"],
            spec=env.full_action_spec_unbatched,
            distribution_class=OneHotCategorical,
            return_log_prob=True,
        ),
        ValueOperator(torch.nn.Linear(512, 1), in_keys=["common_features"]),
    )
    actor, critic = network.get_policy_operator(), network.get_value_operator()
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic, average_gae=True)
    loss_module = A2CLoss(actor_network=actor, critic_network=critic, loss_critic_type="l2", entropy_coeff=0.01)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-4)
    collector = Collector(env, actor, frames_per_batch=num_envs * steps, total_frames=-1)
    try:
        for data in collector:
            with torch.no_grad():
                advantage(data)
            losses = loss_module(data.reshape(-1))
            (losses["loss_critic"] + losses["loss_objective"] + losses["loss_entropy"]).backward()
            torch.nn.utils.clip_grad_norm_(loss_module.parameters(), max_norm=40.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            lap()
    finally:
        collector.shutdown()
