"""TorchRL's collector with its loop written for games on this machine's CPU."""

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector

from a2d_lightning.rollouts.envs import StepResult
from a2d_lightning.runtime.errors import NonFiniteError


class RolloutCollector(Collector):
    """Collects as :class:`torchrl.collectors.Collector` does, from a :class:`GameEnv` by a :class:`SamplingPolicy`.

    Own code, since TorchRL's loop takes a third of the emulators' time again (benchmarks/README.md): its frames are
    copied into a rollout once, each to its place, and nothing but arrays is made a step.

    A rollout is a TensorDict ``[n, T]`` with ``pixels``, ``action``, ``log_prob`` and ``next`` (:class:`StepResult`'s
    fields and ``done``; all but pixels ``[n, T, 1]``). Its pixels and those of ``next`` share memory, which the next
    rollout uses again.

    Args:
        arguments, settings: the collector's.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, track_traj_ids=False, use_buffers=False, **settings)
        device = self.storing_device or torch.device("cpu")
        shape = (self.frames_per_batch + 1, *self._carrier["pixels"].shape)
        # a slot of its own for each step, since a GPU copies from pinned memory while the games go on
        self._host_frames = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")  # [T+1, n, ...]
        on_cpu = device.type == "cpu"
        self._device_frames = self._host_frames if on_cpu else torch.empty(shape, dtype=torch.uint8, device=device)

    @torch.no_grad()
    def rollout(self) -> TensorDict:
        """The next rollout, see the class."""
        pixels: np.ndarray = self._carrier["pixels"].numpy()
        frames = self._host_frames.numpy()
        np.copyto(frames[0], pixels)  # torch's copy would leave its threads spinning beside the emulators
        decisions: list[StepResult] = []
        actions: list[Tensor] = []
        # drawn at once and judged at once: between two steps every call finds the emulators' data in its cache
        noise = self.policy.noise(self.frames_per_batch, len(pixels), self.env.num_actions)
        logits = torch.empty_like(noise)  # [T, n, actions]; a copy, since a CUDA graph overwrites its outputs
        for step in range(self.frames_per_batch):
            logits[step] = self.policy.logits(self._shown(step))
            actions.append((logits[step] + noise[step]).argmax(-1))  # [n]
            decisions.append(self.env.step_games(actions[-1].cpu().numpy(), frames[step + 1]))
            pixels, done = decisions[-1].pixels, decisions[-1].done
            if done.any():
                pixels = self.env.reset_games(done)
                if step + 1 < self.frames_per_batch:  # the last slot is for what the last decision led to
                    np.copyto(frames[step + 1], pixels)
        self._carrier["pixels"] = torch.from_numpy(pixels)
        self._shown(self.frames_per_batch)
        log_pi = logits.transpose(0, 1).log_softmax(-1)  # [n, T, actions]
        if not torch.isfinite(log_pi).all():
            raise NonFiniteError("the policy's logits are not finite while acting; lower the learning rate.")
        action = torch.stack(actions, 1)  # [n, T]
        return TensorDict(
            {
                "pixels": self._device_frames[:-1].transpose(0, 1),
                "action": action,
                "log_prob": log_pi.gather(-1, action[..., None])[..., 0],
                "next": {
                    "pixels": self._following(decisions),
                    **{
                        name: torch.from_numpy(np.stack([getattr(each, name) for each in decisions], 1))[..., None].to(
                            self._device_frames.device
                        )
                        for name in ("reward", "game_score", "life_lost", "terminated", "truncated", "done")
                    },
                },
            },
            [self._device_frames.shape[1], self.frames_per_batch],
        )

    def _shown(self, step: int) -> Tensor:
        """A slot's frames on the agent's device, uint8 ``[n, stack, size, size]``."""
        if self._device_frames is not self._host_frames:
            self._device_frames[step].copy_(self._host_frames[step], non_blocking=True)
        return self._device_frames[step]

    def _following(self, decisions: list[StepResult]) -> Tensor:
        """What each step led to, ``[n, T, ...]``: the frames of the next one, unless a game ended between them."""
        following = self._device_frames[1:].transpose(0, 1)
        ends = [(step, each) for step, each in enumerate(decisions[:-1]) if each.done.any()]
        if ends:
            following = following.clone()
        for step, decision in ends:
            done = decision.done
            following[torch.from_numpy(done), step] = torch.from_numpy(decision.pixels[done]).to(following.device)
        return following
