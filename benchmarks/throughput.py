"""``python -m benchmarks.throughput``: ours, Stable-Baselines3, TorchRL and the limit, interleaved on one machine.

Machines are noisy and shared: every figure is a ratio of medians over rounds in which each contestant has its turn. A
turn is a process of its own, since allocators and threads are settings of a process.
"""

import argparse
import csv
import functools
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib
import torch
from matplotlib import pyplot as plt

from a2d_lightning.allocator import keep_freed_memory
from a2d_lightning.modules import TeacherModule
from a2d_lightning.sampling import SoftSum
from a2d_lightning.search_space import Plan
from benchmarks import footprint, limit, ours, stable_baselines, supernets, torchrl_recipe
from benchmarks.plain_supernet import PlainSoftSum

NUM_ENVS, STEPS, SIZE = 16, 5, 84
ENV_STEPS = NUM_ENVS * STEPS

PEERS = ("Stable-Baselines3", "TorchRL", "soft sum, plain")
"""Who plays without this package's own settings of the process."""

Seconds = dict[str, list[float]]
"""Of a rollout, by contestant, one figure a round."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    value: float
    target: str
    reached: bool
    detail: str


def contestants(threads: int, rollouts: int) -> dict[str, Callable[[], float]]:
    """Everything that is timed by the rollout: name to its turn, with a warm-up of its own."""
    data = functools.partial(ours.data_of, NUM_ENVS, STEPS, SIZE, threads)
    found: dict[str, Callable[[], float]] = {
        "raw emulators": lambda: limit.seconds_to_emulate(NUM_ENVS, STEPS, SIZE, threads, rollouts),
        "our rollouts": lambda: ours.seconds_to_collect(data(rollouts)),
        "ours, vanilla": lambda: ours.seconds_a_rollout(TeacherModule, data(rollouts), network="vanilla"),
        "ours, vanilla in bfloat16": lambda: ours.seconds_a_rollout(
            TeacherModule, data(rollouts), precision="bf16-mixed", network="vanilla"
        ),
        "ours, resnet20": lambda: ours.seconds_a_rollout(TeacherModule, data(rollouts // 4), network="resnet20"),
        "single-path search": lambda: supernets.seconds_of_single_path(threads, rollouts),
        "its agent": lambda: supernets.seconds_of_its_agent(threads, rollouts),
        "TorchRL": lambda: torchrl_recipe.seconds_a_rollout(NUM_ENVS, STEPS, max(10, rollouts // 4)),
    }
    for network, times in (("vanilla", rollouts // 4), ("resnet20", rollouts // 16)):
        found[f"computing, {network}"] = functools.partial(_computing, network, times)
    if importlib.util.find_spec("stable_baselines3"):
        found["Stable-Baselines3"] = lambda: stable_baselines.seconds_a_rollout(NUM_ENVS, STEPS, rollouts)
    soft = functools.partial(
        supernets.seconds_of_soft_sum,
        num_envs=NUM_ENVS,
        steps=STEPS,
        frame_size=42,
        plan=Plan(),
        times=max(2, rollouts // 40),
    )
    found["soft sum"] = functools.partial(soft, SoftSum(), False)
    found["soft sum, recomputed"] = functools.partial(soft, SoftSum(), True)
    found["soft sum, plain"] = functools.partial(soft, PlainSoftSum(), False)
    return found


def _computing(network: str, times: int) -> float:
    return sum(limit.seconds_to_compute(network, NUM_ENVS, STEPS, SIZE, max(3, times)).values())


def take_turn(name: str, threads: int, rollouts: int) -> float:
    """Seconds a rollout of one contestant, in this process."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    if name not in PEERS:
        keep_freed_memory()
    return contestants(threads, rollouts)[name]()


def interleaved(threads: int, rollouts: int, rounds: int) -> Seconds:
    """Each contestant's turns, each in a process of its own; the order turns by one a round."""
    names = list(contestants(threads, rollouts))
    seconds: Seconds = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            command = [sys.executable, "-m", "benchmarks.throughput", "--turn", name]
            command += ["--threads", str(threads), "--rollouts", str(rollouts)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds[name].append(float(done.stdout.split()[-1]))
            print(f"round {number + 1} of {rounds}: {name}: {seconds[name][-1] * 1e3:.1f} ms a rollout", flush=True)
    return seconds


def table(seconds: Seconds, quick: bool, threads: int) -> list[Row]:
    """The targets and what came out."""
    mid = {name: median(values) for name, values in seconds.items()}
    rows = [_at_least("rollout, trivial policy / raw emulators", mid["raw emulators"] / mid["our rollouts"], 0.90)]
    for peer, target in (("Stable-Baselines3", 1.6), ("TorchRL", 4.0)):
        if peer in mid:
            rows.append(_at_least(f"A2C training, vanilla / {peer}", mid[peer] / mid["ours, vanilla"], target))
    for peer in ("Stable-Baselines3", "TorchRL"):
        if peer in mid:
            rows.append(_shown(f"in bfloat16 / {peer}", mid[peer] / mid["ours, vanilla in bfloat16"]))
    for network in ("vanilla", "resnet20"):
        bound = mid["raw emulators"] + mid[f"computing, {network}"]
        detail = f"{ENV_STEPS / mid[f'ours, {network}']:.0f} of {ENV_STEPS / bound:.0f} steps/s"
        rows.append(_at_least(f"A2C training, {network} / limit", bound / mid[f"ours, {network}"], 0.85, detail))
    rows.append(_at_most("soft supernet at 42x42 / plain form", mid["soft sum"] / mid["soft sum, plain"], 0.75))
    rows.append(_at_most("single-path search / its agent", mid["single-path search"] / mid["its agent"], 1.3))
    rows.append(_shown("soft supernet, activations recomputed / kept", mid["soft sum, recomputed"] / mid["soft sum"]))
    if not quick:
        for sampling, size, target in (("soft", 42, 3.0), ("single", 84, 2.5)):
            peak = footprint.peak_gib(size, sampling, False, threads)
            rows.append(_at_most(f"peak memory, {sampling} at {size}x{size} (GiB)", peak, target))
        peak = footprint.peak_gib(84, "soft", True, threads)
        rows.append(_shown("peak memory, soft at 84x84, recomputed (GiB)", peak))
    times = 1 if quick else 5
    importing, overview, helping = footprint.seconds_to_start(
        [
            ["-c", "from lightning.pytorch.cli import LightningCLI"],
            ["-m", "a2d_lightning", "--help"],
            ["-m", "a2d_lightning", "fit", "--help"],
        ],
        times,
    )
    rows.append(_at_most("--help (s)", overview, 1.0))
    rows.append(_at_most("fit --help / importing LightningCLI", helping / importing, 1.3, f"{helping:.1f} s"))
    return rows


def _at_least(what: str, value: float, target: float, detail: str = "") -> Row:
    return Row(what, value, f">= {target}", value >= target, detail)


def _at_most(what: str, value: float, target: float, detail: str = "") -> Row:
    return Row(what, value, f"<= {target}", value <= target, detail)


def _shown(what: str, value: float) -> Row:
    return Row(what, value, "", True, "")


def write(rows: list[Row], seconds: Seconds, output: Path) -> None:
    """``throughput.csv``, a line a turn, and ``throughput.png``."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "throughput.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["contestant", "round", "seconds_a_rollout", "env_steps_per_second"])
        for name, values in seconds.items():
            lines.writerows([name, number, value, ENV_STEPS / value] for number, value in enumerate(values))
    matplotlib.use("Agg")
    trainings = [
        name for name in ("TorchRL", "Stable-Baselines3", "ours, vanilla", "ours, resnet20") if name in seconds
    ]
    figure, axis = plt.subplots(figsize=(7, 0.6 * len(trainings) + 1.2), layout="constrained")
    rates = [ENV_STEPS / median(seconds[name]) for name in trainings]
    axis.barh(trainings, rates)
    for place, name in enumerate(trainings):
        axis.plot([ENV_STEPS / value for value in seconds[name]], [place] * len(seconds[name]), "k.", markersize=3)
        if name.startswith("ours"):
            bound = median(seconds["raw emulators"]) + median(seconds[f"computing, {name.removeprefix('ours, ')}"])
            axis.plot([ENV_STEPS / bound] * 2, [place - 0.45, place + 0.45], "r", label="limit")
    axis.set_xlabel("environment steps/s, A2C on Pong, 84x84, 16 environments x 5; red: the limit")
    figure.savefig(output / "throughput.png", dpi=100)
    plt.close(figure)
    width = max(len(row.what) for row in rows)
    print(f"\n{'what':{width}}  {'value':>7}  {'target':>8}")
    for row in rows:
        print(f"{row.what:{width}}  {row.value:7.2f}  {row.target:>8}  {'yes' if row.reached else 'NO'}  {row.detail}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, no peak memory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of the emulators")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/throughput"))
    parser.add_argument("--turn", help="one contestant's turn, in this process: prints its seconds a rollout")
    parser.add_argument("--rollouts", type=int, default=60, help="of a turn")
    settings = parser.parse_args()
    if settings.turn:
        print(take_turn(settings.turn, settings.threads, settings.rollouts))
        return
    rounds, rollouts = (1, 40) if settings.quick else (settings.rounds, settings.rollouts)
    seconds = interleaved(settings.threads, rollouts, rounds)
    write(table(seconds, settings.quick, settings.threads), seconds, settings.output)


if __name__ == "__main__":
    main()
