"""Rollouts by the workers of a Ray cluster: of two nodes, on this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from runs import goes_on_to_the_last_bit

from a2d_lightning.models.networks import ActorCritic, make_backbone
from a2d_lightning.models.normalization import with_normalization
from a2d_lightning.rollouts.collection import EnvSpec, LocalCollection
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.rollouts.ray_collection import RayCollection
from a2d_lightning.runtime.errors import NonFiniteError, RunFailedError, SettingError
from a2d_lightning.runtime.signals import INTERRUPTED

ROOT = Path(__file__).parents[2]
SHAPE = (4, 42, 42)
CPU = torch.device("cpu")
GAMES = EnvSpec("breakout", 4, FrameSettings(size=42), 30, 1, 60.0, 5, "rank 0")


def agent_of(network: str = "four_conv") -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(make_backbone(network, SHAPE), SHAPE, 4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster of two nodes with a core each."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    yield found.address
    ray.shutdown()
    found.shutdown()


@contextmanager
def collecting(collection: Any, games: Any, agent: Any, state: Any = None) -> Iterator[Any]:
    found = collection.start(games, agent, 5, CPU, state or {})
    try:
        yield found
    finally:
        found.shutdown()


def played(found: Any, agent: Any, rollouts: int) -> list:
    """Copies of rollouts, with other weights for each."""
    rows = []
    for number in range(rollouts):
        torch.manual_seed(number)
        with torch.no_grad():
            for weight in agent.parameters():
                weight.normal_(0, 0.05)
        rows.append(found.rollout().clone())
    return rows


@pytest.mark.slow
def test_workers_on_two_nodes_play_what_two_local_collectors_play(cluster: str) -> None:
    collection = RayCollection(2, address=cluster)
    agent = agent_of()
    with collecting(collection, GAMES, agent) as found:
        assert ray.available_resources().get("CPU", 0) == 0  # a worker on each node
        together = played(found, agent, 30)
    assert together[0].batch_size == (4, 5)
    for number, games in enumerate(GAMES.split(2, 1)):
        agent = agent_of()
        with collecting(LocalCollection(), games, agent) as found:
            alone = played(found, agent, 30)
        mine = slice(2 * number, 2 * number + 2)
        for ours, theirs in zip(together, alone, strict=True):
            for name in ("pixels", "action", "log_prob", ("next", "reward"), ("next", "done"), ("next", "game_score")):
                assert torch.equal(ours[mine][name], theirs[name]), name
    assert not torch.equal(together[-1]["pixels"][:2], together[-1]["pixels"][2:])


@pytest.mark.slow
def test_a_run_on_a_cluster_goes_on_to_the_last_bit(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--data.collection", "RayCollection", "--data.collection.num_workers", "2"]
    args += ["--data.collection.address", cluster]
    goes_on_to_the_last_bit("search", args, [160], tmp_path, monkeypatch)


@pytest.mark.slow
def test_what_fails_on_a_worker_is_named(cluster: str) -> None:
    agent = agent_of()
    with collecting(RayCollection(2, address=cluster), GAMES, agent) as found:
        with torch.no_grad():
            agent.actor.weight.fill_(float("nan"))
        with pytest.raises(NonFiniteError, match="the policy's logits are not finite during rollout collection"):
            found.rollout()
        ray.kill(found.collector.remote_collectors[1])
        with pytest.raises(
            RunFailedError, match=r"^data.collection: rank 0, worker 1 of 2 on the Ray cluster has died"
        ):
            found.rollout()


@pytest.mark.slow
def test_games_that_somebody_made_up_are_refused(cluster: str) -> None:
    agent = agent_of()
    with collecting(RayCollection(2, address=cluster), GAMES, agent) as found:
        found.rollout()
        state = found.state()
    state["workers"][1]["games"]["journal"]["actions"] += 100
    with pytest.raises(SettingError, match=r"^ckpt_path: the games cannot be restored"):
        RayCollection(2, address=cluster).start(GAMES, agent, 5, CPU, state)


@pytest.mark.slow
def test_more_workers_than_cores_are_refused(cluster: str) -> None:
    with pytest.raises(SettingError, match="4 workers of 1 cores on a cluster that has 2;"):
        RayCollection(4, address=cluster).start(GAMES, agent_of(), 5, CPU, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "status", "seconds"),
    # Ray's agents see after a minute that nobody is left
    [(signal.SIGTERM, INTERRUPTED, 15), (signal.SIGKILL, -signal.SIGKILL, 120)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_no_process_outlives_a_run_with_a_cluster_of_its_own(
    signum: signal.Signals, status: int, seconds: float, tmp_path: Path
) -> None:
    mark = f"A2D_MARK={os.getpid()}-{time.time_ns()}"
    name, value = mark.split("=")
    command = [sys.executable, "-m", "a2d_lightning", "fit", "--config", "configs/teacher.yaml"]
    command += ["--config", "configs/scale/smoke.yaml", "--run_dir", str(tmp_path), "--data.total_env_steps", "1000000"]
    command += ["--data.collection", "RayCollection", "--data.collection.num_workers", "2"]
    environment = {**os.environ, name: value}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "metrics.csv").is_file():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert sum("ray::" in line for line in marked(mark)) >= 2
    run.send_signal(signum)
    assert run.wait(timeout=10) == status
    deadline = time.monotonic() + seconds
    while left := marked(mark):
        assert time.monotonic() < deadline, left
        time.sleep(1)


def marked(mark: str) -> list[str]:
    """Command lines of the processes with ``mark`` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " ")[:80])
        except OSError:
            continue
    return found


def test_workers_share_the_environments_equally() -> None:
    with pytest.raises(SettingError, match=re.escape("3 workers cannot share data.num_envs 16 equally")):
        RayCollection(3).check(16)
    RayCollection(4).check(16)
    parts = replace(GAMES, num_envs=16).split(4, 2)
    assert [part.num_envs for part in parts] == [4] * 4
    assert {part.num_threads for part in parts} == {2}
    assert len({part.seed for part in parts}) == 4


def test_games_that_must_act_together_are_not_played_apart() -> None:
    agent = with_normalization(agent_of("resnet14"), "per_step")
    with pytest.raises(SettingError, match=r"data\.collection: model\.normalization per_step"):
        RayCollection(2).start(GAMES, agent, 5, CPU, {})


def test_the_command_line_refuses_it_in_one_line(run: Callable[..., str]) -> None:
    error = run("teacher", "--data.collection", "RayCollection", "--data.collection.num_workers", "3")
    assert "data.collection.num_workers: 3 workers cannot share data.num_envs 4 equally" in error


def test_an_address_where_nobody_is_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SettingError, match=f"there is no Ray cluster at '{address}'"):
        RayCollection(2, address=address).start(GAMES, agent_of(), 5, CPU, {})


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=re.escape("pip install 'a2d-lightning[ray]'")):
        RayCollection(2)
