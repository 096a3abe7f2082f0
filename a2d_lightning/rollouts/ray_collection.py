"""Collection of rollouts by the workers of a Ray cluster, for more environments than one machine can run."""

import copy
import functools
import importlib.util
import logging
import socket
import sys
import warnings
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from tensordict import TensorDict
from torch import nn

from a2d_lightning.models.normalization import normalizes_by_time_step
from a2d_lightning.rollouts.collection import CollectionBackend, EnvSpec, RolloutSource, restoring
from a2d_lightning.rollouts.policy import SamplingPolicy
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.signals import INTERRUPTION

CPU = torch.device("cpu")


class RayCollection(CollectionBackend):
    """Collection by TorchRL's Ray collector, where each worker plays an equal part of the environments on CPU.

    Collection is on-policy: workers receive the weights before each rollout, and the update waits for all workers.
    With ``batch`` normalization, a worker normalizes over its part of the environments while acting.

    Args:
        num_workers: Number of workers that share ``data.num_envs``, for each training process.
        cpus_per_worker: Cores that Ray reserves for a worker; its emulators and torch each use as many threads.
        address: Cluster address: ``host:port``; ``auto`` for the cluster this machine belongs to; ``local`` for a
            temporary cluster of this machine's cores.

    Raises:
        SettingError: If Ray is not installed.
    """

    def __init__(self, num_workers: PositiveInt, cpus_per_worker: PositiveInt = 1, address: str = "local") -> None:
        if importlib.util.find_spec("ray") is None:
            raise SettingError("data.collection: RayCollection needs Ray; pip install 'a2d-lightning[ray]'.")
        self.num_workers = int(num_workers)
        self.cpus_per_worker = int(cpus_per_worker)
        self.address = address

    def check(self, num_envs: int) -> None:
        """Check that the workers can share ``num_envs`` equally.

        Raises:
            SettingError: If ``num_envs`` is not a multiple of ``num_workers``.
        """
        if num_envs % self.num_workers:
            raise SettingError(
                f"data.collection.num_workers: {self.num_workers} workers cannot share data.num_envs {num_envs} "
                "equally; choose a divisor."
            )

    def start(
        self, games: EnvSpec, agent: nn.Module, rollout_length: int, device: torch.device, state: dict[str, Any]
    ) -> RolloutSource:
        """Start the workers; see :class:`CollectionBackend`.

        Raises:
            SettingError: If there is no such cluster, it has too few cores, ``state`` cannot be restored, or the agent
                has ``per_step`` normalization.
        """
        if normalizes_by_time_step(agent):
            raise SettingError(
                "data.collection: model.normalization per_step normalizes over all games of a time step, but "
                "RayCollection's workers play them separately; change one of the two."
            )
        return _RaySource(self, games, agent, rollout_length, device, state)

    def description(self) -> str:
        """Return the backend's name and number of workers."""
        return f"RayCollection of {self.num_workers}"

    def connect(self) -> bool:
        """Connect this process to the cluster.

        Returns:
            Whether this call connected the process. The caller must then disconnect it, which also stops a local
            cluster.

        Raises:
            SettingError: If there is no such cluster, or it has too few cores.
        """
        import ray  # noqa: PLC0415 (optional)

        new = not ray.is_initialized()
        if new:
            settings: dict[str, Any] = {"include_dashboard": False} if self.address == "local" else {}
            try:
                self._check_reachable()
                ray.init(address=self.address, logging_level=logging.ERROR, **settings)
            except (OSError, ValueError, RuntimeError) as error:
                raise SettingError(
                    f"data.collection.address: there is no Ray cluster at {self.address!r} "
                    f"({str(error).splitlines()[0]}); start one with 'ray start --head', or set "
                    "data.collection.address to local."
                ) from error
            INTERRUPTION.catch_signals_again()  # Ray's handlers would end the process
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < self.num_workers * self.cpus_per_worker:
            if new:
                ray.shutdown()
            raise SettingError(
                f"data.collection.num_workers: {self.num_workers} workers of {self.cpus_per_worker} cores on a cluster "
                f"that has {cores}; choose fewer, or add machines."
            )
        return new

    def _check_reachable(self) -> None:
        """Raise an OSError if nothing listens at ``host:port``, where Ray would retry for minutes."""
        host, _, port = self.address.rpartition(":")
        if host and port.isdecimal():
            socket.create_connection((host, int(port)), timeout=10.0).close()


class _RaySource(RolloutSource):
    def __init__(
        self,
        settings: RayCollection,
        games: EnvSpec,
        agent: nn.Module,
        rollout_length: int,
        device: torch.device,
        state: dict[str, Any],
    ) -> None:
        self.agent = agent
        self.device = device
        self.owner = games.owner
        self.connected = settings.connect()
        from torchrl.collectors.distributed import RayCollector  # noqa: PLC0415 (imports Ray)

        from a2d_lightning.rollouts.ray_worker import Worker  # noqa: PLC0415 (slow to import)

        parts = games.split(settings.num_workers, settings.cpus_per_worker)
        copied = copy.deepcopy(agent).to(CPU)
        with warnings.catch_warnings():
            # weights are sent with each rollout request: TorchRL's weight sync cannot send channels_last tensors
            warnings.filterwarnings("ignore", message="The policy is not an nn.Module")
            self.collector = RayCollector(
                [part.build for part in parts],
                policy_factory=[functools.partial(SamplingPolicy, copied, part.seed, CPU) for part in parts],
                collector_class=Worker,
                collector_kwargs=[{"auto_register_policy_transforms": False, "return_same_td": True} for _ in parts],
                frames_per_batch=games.num_envs * rollout_length,
                total_frames=sys.maxsize,
                device=CPU,
                trust_policy=True,
                sync=True,
                remote_configs={"num_cpus": settings.cpus_per_worker},
                weight_sync_schemes={},
            )
        if state:
            try:
                with restoring():
                    self._all("load_state", [(part,) for part in state["workers"]])
            except BaseException:
                self.shutdown()  # the caller gets no source to shut down
                raise

    def rollout(self) -> TensorDict:
        import ray  # noqa: PLC0415 (optional)

        weights = ray.put({name: tensor.detach().to(CPU) for name, tensor in self.agent.state_dict().items()})
        request = weights, self.agent.training
        return torch.cat(self._all("collect", [request for _ in self.collector.remote_collectors])).to(self.device)

    def state(self) -> dict[str, Any]:
        return {"workers": self._all("state_dict", [() for _ in self.collector.remote_collectors])}

    def shutdown(self) -> None:
        import ray  # noqa: PLC0415 (optional)

        self.collector.shutdown()
        if self.connected:
            ray.shutdown()

    def _all(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Call a method of all workers in parallel and return the results.

        Args:
            method: Name of the method.
            arguments: Arguments for each worker.

        Raises:
            RunFailedError: If a worker has died.
            Exception: Whatever the method raised on a worker.
        """
        import ray  # noqa: PLC0415 (optional)

        workers = self.collector.remote_collectors
        asked = [getattr(worker, method).remote(*given) for worker, given in zip(workers, arguments, strict=True)]
        answers = []
        for number, answer in enumerate(asked):
            try:
                found = ray.get(answer)
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                raise RunFailedError(
                    f"data.collection: {self.owner}, worker {number} of {len(workers)} on the Ray cluster has died "
                    f"({type(error).__name__}; the original error is above or in Ray's logs); resume with --ckpt_path "
                    "last."
                ) from error
            if isinstance(found, Exception):
                raise found
            answers.append(found)
        return answers
