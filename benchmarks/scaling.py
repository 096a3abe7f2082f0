"""``python -m benchmarks.scaling``: environment steps/s by number of environments, frame size, network and processes.

The workload is A2C on Pong with rollouts of 5 steps. Each point in the plot is the median over rounds. In each round,
every set-up runs once in a new process.
"""

import argparse
import csv
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

import matplotlib
import torch
from lightning.pytorch.utilities import rank_zero_only
from matplotlib import pyplot as plt

from a2d_lightning.modules import TeacherModule
from a2d_lightning.runtime.allocator import keep_freed_memory
from benchmarks.ours import Stopwatch, data_of, train

STEPS = 5
NUM_ENVS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Setup:
    """Set-up of one training."""

    network: str
    frame_size: int
    num_envs: int
    """Number of environments over all processes."""
    processes: int = 1

    def __str__(self) -> str:
        return ",".join(str(value) for value in astuple(self))

    @staticmethod
    def parse(text: str) -> "Setup":
        """Parse the output of ``str``."""
        network, *numbers = text.split(",")
        return Setup(network, *(int(number) for number in numbers))


def setups() -> Iterator[Setup]:
    """Yield all set-ups."""
    for network, frame_size in (("vanilla", 84), ("four_conv", 42), ("resnet20", 84), ("resnet20", 42)):
        for num_envs in NUM_ENVS:
            yield Setup(network, frame_size, num_envs)
    for network, frame_size in (("vanilla", 84), ("resnet20", 42)):
        yield Setup(network, frame_size, 32, processes=2)


def take_turn(setup: Setup, threads: int, env_steps: int) -> float:
    """Train one set-up, in this process and any DDP processes that it starts.

    Args:
        setup: Set-up to train.
        threads: Threads of torch and of the emulators, over all processes.
        env_steps: Timed environment steps over all processes, rounded to rollouts; at least 10 rollouts.

    Returns:
        Environment steps per second over all processes.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(max(1, threads // setup.processes))
    keep_freed_memory()
    num_envs = setup.num_envs // setup.processes
    steps = setup.num_envs * STEPS
    watch = Stopwatch()
    # over all processes
    rollouts = (watch.warmup_rollouts + max(10, env_steps // steps)) * setup.processes
    data = data_of(num_envs, STEPS, setup.frame_size, max(1, threads // setup.processes), rollouts)
    train(TeacherModule, data, watch, processes=setup.processes, network=setup.network)
    return steps / watch.seconds_a_rollout


def draw(rates: dict[Setup, list[float]], output: Path) -> None:
    """Write ``scaling.csv``, with one line per turn, and ``scaling.png``.

    Args:
        rates: Environment steps per second of each round, by set-up.
        output: Folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "scaling.csv", "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*(field.name for field in fields(Setup)), "round", "env_steps_per_second"])
        for setup, values in rates.items():
            lines.writerows([*astuple(setup), number, value] for number, value in enumerate(values))
    matplotlib.use("Agg")
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    groups: dict[tuple[str, int, int], list[Setup]] = {}
    for setup in rates:
        groups.setdefault((setup.network, setup.frame_size, setup.processes), []).append(setup)
    networks = list(dict.fromkeys(key[:2] for key in groups))
    for (network, frame_size, processes), members in groups.items():
        label = f"{network}, {frame_size}x{frame_size}" + (f", {processes} processes" if processes > 1 else "")
        marks = f"C{networks.index((network, frame_size))}{'o-' if processes == 1 else '*'}"
        heights = [median(rates[setup]) for setup in members]
        axis.plot([setup.num_envs for setup in members], heights, marks, markersize=6 * processes, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(NUM_ENVS, [str(number) for number in NUM_ENVS])
    axis.set_yscale("log")
    axis.set_xlabel("environments")
    axis.set_ylabel("environment steps/s, A2C on Pong")
    axis.grid(alpha=0.3, which="both")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(output / "scaling.png", dpi=100)
    plt.close(figure)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of the emulators")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--env_steps", type=int, default=6_400, help="of a turn, after its warm-up")
    parser.add_argument("--output", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--turn", help="one set-up's turn, in this process: prints its environment steps/s")
    settings = parser.parse_args()
    if settings.turn:
        rate = take_turn(Setup.parse(settings.turn), settings.threads, settings.env_steps)
        rank_zero_only(print)(rate)  # the other DDP processes run this line, too
        return
    rates: dict[Setup, list[float]] = {setup: [] for setup in setups()}
    for number in range(settings.rounds):
        for setup, found in rates.items():
            command = [sys.executable, "-m", "benchmarks.scaling", "--turn", str(setup)]
            command += ["--threads", str(settings.threads), "--env_steps", str(settings.env_steps)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(float(done.stdout.split()[-1]))
            print(f"round {number + 1} of {settings.rounds}: {setup}: {found[-1]:.0f} steps/s", flush=True)
    draw(rates, settings.output)


if __name__ == "__main__":
    main()
