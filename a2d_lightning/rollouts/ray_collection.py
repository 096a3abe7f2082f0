"""Rollouts by the workers of a Ray cluster, for more environments than one machine has cores for."""

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
    """By TorchRL's Ray collector: each worker plays an equal part of the environments and acts for them on its CPU.

    On-policy all the same: workers get the weights before each rollout, and the update waits for all of them. Under
    ``batch`` normalization a worker normalizes by its own games while it acts.

    Args:
        num_workers: that share ``data.num_envs``, for each process that learns.
        cpus_per_worker: cores that Ray keeps for a worker; its emulators and its torch use as many threads.
        address: of the cluster (``host:port``); ``auto``: the one that this machine is part of; ``local``: this
            machine's cores alone, for the time of the run.
    """

    def __init__(self, num_workers: PositiveInt, cpus_per_worker: PositiveInt = 1, address: str = "local") -> None:
        if importlib.util.find_spec("ray") is None:
            raise SettingError("data.collection: RayCollection needs Ray; pip install 'a2d-lightning[ray]'.")
        self.num_workers = int(num_workers)
        self.cpus_per_worker = int(cpus_per_worker)
        self.address = address

    def check(self, num_envs: int) -> None:
        """See :class:`CollectionBackend`."""
        if num_envs % self.num_workers:
            raise SettingError(
                f"data.collection.num_workers: {self.num_workers} workers cannot share data.num_envs {num_envs} "
                "equally; choose a divisor."
            )

    def start(
        self, games: EnvSpec, agent: nn.Module, rollout_length: int, device: torch.device, state: dict[str, Any]
    ) -> RolloutSource:
        """See :class:`CollectionBackend`.

        Raises:
            SettingError: no such cluster, too few cores in it, or a network whose frames must act together.
        """
        if normalizes_by_time_step(agent):
            raise SettingError(
                "data.collection: model.normalization per_step normalizes over all games of a time step, which "
                "RayCollection's workers play apart; take another of the two."
            )
        return _RaySource(self, games, agent, rollout_length, device, state)

    def description(self) -> str:
        """See :class:`CollectionBackend`."""
        return f"RayCollection of {self.num_workers}"

    def connect(self) -> bool:
        """Connects this process to the cluster.

        Returns:
            whether it was not connected before, and is to be disconnected; that ends a cluster of its own.

        Raises:
            SettingError: there is none, or it is too small.
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
                    f"({str(error).splitlines()[0]}); start one by 'ray start --head', or say local."
                ) from error
            INTERRUPTION.catch_signals_again()  # Ray's own would end the process
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
        """Ray goes on asking for minutes at an address where nobody is."""
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
            # the weights travel with the request for a rollout: TorchRL's own way sends no channels_last ones
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
                self.shutdown()  # nobody else will
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
        """Calls a method of every worker with its own arguments, side by side."""
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
                    f"({type(error).__name__}; its own words are above or in Ray's logs); go on with --ckpt_path last."
                ) from error
            if isinstance(found, Exception):
                raise found
            answers.append(found)
        return answers
