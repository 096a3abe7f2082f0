"""TorchRL collector with a collection loop for games on the local CPU."""

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector

from a2d_lightning.rollouts.envs import StepResult
from a2d_lightning.runtime.errors import NonFiniteError


class RolloutCollector(Collector):
    """Collector of rollouts from a :class:`GameEnv` with a :class:`SamplingPolicy`.

    The loop replaces that of :class:`torchrl.collectors.Collector`, which costs a third of the emulation time. Each
    frame is copied into the rollout once, and a step creates arrays only.

    A rollout is a TensorDict ``[n, T]``:

    - ``pixels`` uint8 ``[n, T, *frame_shape]``, ``action`` int64 ``[n, T]``, ``log_prob`` float32 ``[n, T]``
    - ``next``: ``pixels`` as above; the other fields of :class:`StepResult` and ``done``, each ``[n, T, 1]``

    Both ``pixels`` are views of one buffer, which the next rollout overwrites; those of ``next`` are a copy if a game
    ended before the last step.

    Args:
        arguments, settings: Passed to :class:`torchrl.collectors.Collector`.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, track_traj_ids=False, use_buffers=False, **settings)
        device = self.storing_device or torch.device("cpu")
        shape = (self.frames_per_batch + 1, *self._carrier["pixels"].shape)
        # one slot per step: a GPU copies from pinned memory while the games continue
        self._host_frames = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")  # [T+1, n, ...]
        on_cpu = device.type == "cpu"
        self._device_frames = self._host_frames if on_cpu else torch.empty(shape, dtype=torch.uint8, device=device)

    @torch.no_grad()
    def rollout(self) -> TensorDict:
        """Collect the next rollout; the class describes its fields.

        Raises:
            NonFiniteError: If the policy's logits are not finite.
        """
        pixels: np.ndarray = self._carrier["pixels"].numpy()
        frames = self._host_frames.numpy()
        np.copyto(frames[0], pixels)  # a torch copy would leave OpenMP threads spinning while the emulators run
        decisions: list[StepResult] = []
        actions: list[Tensor] = []
        # noise is drawn before the loop and logits are checked after it: calls between two steps run on cold caches
        noise = self.policy.noise(self.frames_per_batch, len(pixels), self.env.num_actions)
        logits = torch.empty_like(noise)  # [T, n, actions]; a copy: a CUDA graph overwrites its outputs
        for step in range(self.frames_per_batch):
            logits[step] = self.policy.logits(self._shown(step))
            actions.append((logits[step] + noise[step]).argmax(-1))  # [n]
            decisions.append(self.env.step_games(actions[-1].cpu().numpy(), frames[step + 1]))
            pixels, done = decisions[-1].pixels, decisions[-1].done
            if done.any():
                pixels = self.env.reset_games(done)
                if step + 1 < self.frames_per_batch:  # the last slot keeps the result of the last decision
                    np.copyto(frames[step + 1], pixels)
        self._carrier["pixels"] = torch.from_numpy(pixels)
        self._shown(self.frames_per_batch)
        log_pi = logits.transpose(0, 1).log_softmax(-1)  # [n, T, actions]
        if not torch.isfinite(log_pi).all():
            raise NonFiniteError(
                "the policy's logits are not finite during rollout collection; lower the learning rate."
            )
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
        """Return the frames of a step on the agent's device, uint8 ``[n, *frame_shape]``; on a GPU, copy them there."""
        if self._device_frames is not self._host_frames:
            self._device_frames[step].copy_(self._host_frames[step], non_blocking=True)
        return self._device_frames[step]

    def _following(self, decisions: list[StepResult]) -> Tensor:
        """Return the frames after each step, uint8 ``[n, T, *frame_shape]``; the last frames of games that ended."""
        following = self._device_frames[1:].transpose(0, 1)
        ends = [(step, each) for step, each in enumerate(decisions[:-1]) if each.done.any()]
        if ends:
            following = following.clone()
        for step, decision in ends:
            done = decision.done
            following[torch.from_numpy(done), step] = torch.from_numpy(decision.pixels[done]).to(following.device)
        return following
