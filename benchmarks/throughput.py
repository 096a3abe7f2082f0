"""``python -m benchmarks.throughput``: a2d_lightning, Stable-Baselines3, TorchRL and the limit.

The limit is the sum of the parts of a rollout. Contestants to be compared form a group, whose members alternate on one
machine, by default every second. Each round starts new processes.
"""

import argparse
import csv
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import matplotlib
import torch
from matplotlib import pyplot as plt

from a2d_lightning.cpu.cores import let_waiting_threads_sleep
from a2d_lightning.modules import TeacherModule
from a2d_lightning.nas.sampling import Sampling, SoftSum
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.allocator import keep_freed_memory
from benchmarks import footprint, limit, ours, stable_baselines, supernets, torchrl_recipe
from benchmarks.plain_supernet import PlainSoftSum
from benchmarks.turns import Contestant, Lap, Seat, alternate, beside_a_busy_process

NUM_ENVS, STEPS, SIZE = 16, 5, 84
ENV_STEPS = NUM_ENVS * STEPS

PEERS = {"Stable-Baselines3": 1.6, "TorchRL": 4.0}
"""Libraries that also train the Vanilla network, and the target speed-up of a2d_lightning."""

BESIDE = "ours, vanilla, beside one busy process"

WITHOUT_TARGET = ("ours, vanilla in bfloat16", "soft sum, recomputed")
"""Contestants omitted by ``--quick``."""

Group = dict[str, Contestant]

Seconds = dict[str, list[list[float]]]
"""Seconds per rollout in a group, by contestant, round and turn."""


@dataclass(frozen=True)
class Row:
    """Row of the table: a value and, optionally, its target."""

    what: str
    value: float
    detail: str = ""
    at_least: float = -math.inf
    at_most: float = math.inf

    def __str__(self) -> str:
        reached = "yes" if self.at_least <= self.value <= self.at_most else "NO"
        if self.at_least > -math.inf:
            target = f">= {self.at_least:<4}  {reached:3}"
        elif self.at_most < math.inf:
            target = f"<= {self.at_most:<4}  {reached:3}"
        else:
            target = " " * 12
        return f"{self.what:45}  {self.value:5.2f}  {target}  {self.detail}".rstrip()


def groups(threads: int) -> dict[str, Group]:
    """Return all contestants whose rollouts are timed, by group.

    Args:
        threads: Threads of torch and of the emulators.
    """

    def peer(work: Callable[..., None], *arguments: Any) -> Contestant:
        def run(lap: Lap) -> None:
            logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
            torch.set_num_threads(threads)
            work(lap, *arguments)

        return run

    def our(work: Callable[..., None], *arguments: Any) -> Contestant:
        def run(lap: Lap) -> None:
            keep_freed_memory()  # as in the command line of a2d_lightning
            peer(work, *arguments)(lap)

        return run

    def the_limit(network: str) -> Group:
        parts: Group = {
            f"{part}, {network}": our(limit.compute, part, network, NUM_ENVS, STEPS, SIZE) for part in limit.PARTS
        }
        return {"raw emulators": our(limit.emulate, NUM_ENVS, STEPS, SIZE, threads), **parts}

    def soft(sampling: Sampling, recompute: bool) -> tuple[Any, ...]:
        return supernets.soft_sum, sampling, recompute, NUM_ENVS, STEPS, 42, Plan()

    vanilla: Group = {
        **the_limit("vanilla"),
        "our rollouts": our(_collect, threads),
        "ours, vanilla": our(_train, threads, "vanilla"),
        BESIDE: beside_a_busy_process(our(_train, threads, "vanilla")),
        "ours, vanilla in bfloat16": our(_train, threads, "vanilla", "bf16-mixed"),
        "TorchRL": peer(torchrl_recipe.train, NUM_ENVS, STEPS),
    }
    if importlib.util.find_spec("stable_baselines3"):
        vanilla["Stable-Baselines3"] = peer(stable_baselines.train, NUM_ENVS, STEPS)
    return {
        "vanilla": vanilla,
        "resnet20": {**the_limit("resnet20"), "ours, resnet20": our(_train, threads, "resnet20")},
        "soft sum": {
            "soft sum": our(*soft(SoftSum(), False)),
            "soft sum, recomputed": our(*soft(SoftSum(), True)),
            "soft sum, plain": peer(*soft(PlainSoftSum(), False)),
        },
        "single path": {
            "single-path search": our(supernets.single_path, threads),
            "its agent": our(supernets.its_agent, threads),
        },
    }


def _collect(lap: Lap, threads: int) -> None:
    ours.collect(lap, ours.data_of(NUM_ENVS, STEPS, SIZE, threads, ours.ENDLESS))


def _train(lap: Lap, threads: int, network: str, precision: Literal["32-true", "bf16-mixed"] = "32-true") -> None:
    data = ours.data_of(NUM_ENVS, STEPS, SIZE, threads, ours.ENDLESS)
    ours.train(TeacherModule, data, ours.Laps(lap), network=network, precision=precision)


def play(group: Group, rounds: int, turns: int, seconds: float) -> Seconds:
    """Run the contestants of a group in turns.

    Args:
        group: Contestants by name.
        rounds: Number of rounds; each starts new processes.
        turns: Turns of each contestant per round.
        seconds: Duration of a turn.

    Returns:
        Seconds per rollout, by contestant, round and turn.
    """
    found: Seconds = {name: [] for name in group}
    for number in range(rounds):
        with ExitStack() as stack:
            seats = [stack.enter_context(Seat(name, contestant, seconds)) for name, contestant in group.items()]
            for name, values in alternate(seats, turns, seconds).items():
                found[name].append(values)
                each = " ".join(f"{value * 1e3:.1f}" for value in values)
                print(f"round {number + 1} of {rounds}: {name}: {each} ms a rollout", flush=True)
    return found


def table(seconds: dict[str, Seconds], quick: bool, threads: int) -> list[Row]:
    """Compare the results with the targets, and measure memory and start-up time.

    Args:
        seconds: Seconds per rollout by group.
        quick: Whether peak memory and rows without a target are omitted.
        threads: Threads for the measurements of memory.
    """
    vanilla, resnet20, soft, single = (seconds[name] for name in ("vanilla", "resnet20", "soft sum", "single path"))
    fast, faster = ["ours, vanilla"], ["ours, vanilla in bfloat16"]
    peers = [peer for peer in PEERS if peer in vanilla]
    trivial = ratio(vanilla, ["raw emulators"], ["our rollouts"])
    rows = [Row("rollout, trivial policy / raw emulators", *trivial, at_least=0.9)]
    rows += [Row(f"A2C, Vanilla / {peer}", *ratio(vanilla, [peer], fast), at_least=PEERS[peer]) for peer in peers]
    rows.append(Row("A2C, Vanilla beside one busy process / alone", *ratio(vanilla, fast, [BESIDE]), at_least=0.4))
    if not quick:
        rows += [Row(f"A2C, Vanilla in bfloat16 / {peer}", *ratio(vanilla, [peer], faster)) for peer in peers]
    for name, network, group in (("Vanilla", "vanilla", vanilla), ("ResNet-20", "resnet20", resnet20)):
        of_limit = ratio(group, parts_of_limit(network), [f"ours, {network}"])
        rows.append(Row(f"A2C, {name} / limit", *of_limit, at_least=0.85))
    rows += [
        Row("soft supernet at 42x42 / plain form", *ratio(soft, ["soft sum"], ["soft sum, plain"]), at_most=0.75),
        Row("single-path search / its agent", *ratio(single, ["single-path search"], ["its agent"]), at_most=1.3),
    ]
    if not quick:
        rows.append(
            Row("soft supernet, activations recomputed / kept", *ratio(soft, ["soft sum, recomputed"], ["soft sum"]))
        )
        peaks = [footprint.peak_gib(42, "soft", False, threads), footprint.peak_gib(84, "single", False, threads)]
        rows += [
            Row("peak memory, soft at 42x42 (GiB)", peaks[0], at_most=3.0),
            Row("peak memory, single path at 84x84 (GiB)", peaks[1], at_most=2.5),
            Row("peak memory, soft at 84x84, recomputed (GiB)", footprint.peak_gib(84, "soft", True, threads)),
        ]
    importing, overview, helping = footprint.seconds_to_start(
        [
            ["-c", "from lightning.pytorch.cli import LightningCLI"],
            ["-m", "a2d_lightning", "--help"],
            ["-m", "a2d_lightning", "fit", "--help"],
        ],
        times=1 if quick else 6,
    )
    rows.append(Row("--help (s)", overview, at_most=1.0))
    rows.append(Row("fit --help / importing LightningCLI", helping / importing, f"{helping:.1f} s", at_most=1.3))
    return rows


def parts_of_limit(network: str) -> list[str]:
    """Return the names of the contestants whose times add up to the limit."""
    return ["raw emulators", *(f"{part}, {network}" for part in limit.PARTS)]


def ratio(group: Seconds, above: list[str], below: list[str]) -> tuple[float, str]:
    """Compute the ratio of times between two sets of contestants.

    Ratios are taken within rounds, of sums of medians over turns: the speed of a shared machine may change in the
    minutes between rounds.

    Args:
        group: Seconds per rollout by contestant.
        above: Contestants in the numerator.
        below: Contestants in the denominator.

    Returns:
        Median over rounds, and a text that lists the ratio of each round.
    """
    rounds = range(len(group[above[0]]))
    ratios = [
        sum(median(group[name][number]) for name in above) / sum(median(group[name][number]) for name in below)
        for number in rounds
    ]
    return median(ratios), "by round " + ", ".join(f"{each:.2f}" for each in ratios)


def write(seconds: dict[str, Seconds], output: Path) -> None:
    """Write ``throughput.csv``, with one line per turn, and ``throughput.png``.

    Args:
        seconds: Seconds per rollout by group.
        output: Folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "throughput.csv", "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["group", "contestant", "round", "turn", "seconds_a_rollout", "env_steps_per_second"])
        for group, members in seconds.items():
            for name, rounds in members.items():
                for number, turns in enumerate(rounds):
                    lines.writerows([group, name, number, *each, ENV_STEPS / each[1]] for each in enumerate(turns))
    matplotlib.use("Agg")
    trained = {
        name: [ENV_STEPS / turn for turns in rounds for turn in turns]
        for group in ("resnet20", "vanilla")
        for name, rounds in seconds[group].items()
        if name in (*PEERS, "ours, vanilla", "ours, resnet20")
    }
    figure, axis = plt.subplots(figsize=(7, 0.6 * len(trained) + 1.2), layout="constrained")
    for place, (name, rates) in enumerate(trained.items()):
        axis.barh(place, median(rates), color="C0")
        axis.plot(rates, [place] * len(rates), "k.", markersize=2)
        network = name.removeprefix("ours, ")
        if network in seconds:
            of_limit, _ = ratio(seconds[network], parts_of_limit(network), [name])
            axis.plot([median(rates) / of_limit] * 2, [place - 0.45, place + 0.45], "r")
    axis.set_yticks(range(len(trained)), trained)
    axis.set_xlabel("environment steps/s, A2C on Pong, 84x84, 16 x 5\nbar: median, dots: turns, red: the limit")
    figure.savefig(output / "throughput.png", dpi=100)
    plt.close(figure)


def main() -> None:
    """Run the benchmark."""
    if let_waiting_threads_sleep():  # as in the command line; torch reads the variable at import
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.throughput", *sys.argv[1:]])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of what has a target, no peak memory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of the emulators")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=6, help="of each contestant, a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--output", type=Path, default=Path("runs/throughput"))
    settings = parser.parse_args()
    rounds, turns, turn_seconds = settings.rounds, settings.turns, settings.seconds
    if settings.quick:
        rounds, turns, turn_seconds = 1, 3, 0.5
    seconds = {}
    for name, group in groups(settings.threads).items():
        playing = {who: work for who, work in group.items() if not settings.quick or who not in WITHOUT_TARGET}
        # a rollout with the soft sum takes longer than a turn
        seconds[name] = play(playing, rounds, turns if name != "soft sum" else (turns + 1) // 2, turn_seconds)
    write(seconds, settings.output)
    for row in table(seconds, settings.quick, settings.threads):
        print(row)


if __name__ == "__main__":
    main()
