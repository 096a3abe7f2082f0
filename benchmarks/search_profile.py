"""``python -m benchmarks.search_profile``: time of a search by part of a rollout and by kernel."""

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.profiler import ProfilerActivity, profile

from a2d_lightning.agent_files import FrozenTeacher
from a2d_lightning.data import Rollouts
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.sampling import Sampling, SinglePath, SoftSum
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rl import algorithms
from a2d_lightning.rollouts.envs import GameEnv
from a2d_lightning.rollouts.policy import SamplingPolicy
from a2d_lightning.runtime.allocator import keep_freed_memory
from benchmarks.ours import Stopwatch, data_of, train
from benchmarks.supernets import LAPTOP_PLAN

PARTS: dict[str, list[tuple[Any, str]]] = {
    "emulators": [(GameEnv, "step_games"), (GameEnv, "reset_games")],
    "acting": [(SamplingPolicy, "logits")],
    "teacher": [(FrozenTeacher, "forward")],
    "learning, forward": [(algorithms, "joint_forward")],
    "learning, backward": [(SearchModule, "manual_backward")],
    "optimizers": [(LightningOptimizer, "step")],
}
PLANS = {"paper": Plan(), "laptop": LAPTOP_PLAN}
SAMPLINGS: dict[str, type[Sampling]] = {"soft": SoftSum, "single": SinglePath}


@contextmanager
def timed_parts(seconds: dict[str, float]) -> Iterator[None]:
    """Accumulate the time spent in each part while the context is active; parts are not nested.

    Args:
        seconds: Wall-clock seconds by part, updated in place.
    """

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[part] += time.perf_counter() - began
            return result

        return run

    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        yield


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", choices=PLANS, default="laptop")
    parser.add_argument("--sampling", choices=SAMPLINGS, default="soft")
    parser.add_argument("--frame_size", type=int, default=42)
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of the emulators")
    settings = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    watch = Stopwatch()
    rollouts = watch.warmup_rollouts + settings.rollouts
    data = data_of(16, 5, settings.frame_size, settings.threads, rollouts)
    seconds = dict.fromkeys(PARTS, 0.0)
    search: dict[str, Any] = {"plan": PLANS[settings.plan], "sampling": SAMPLINGS[settings.sampling]()}
    search |= {"distillation": "actor+critic", "teacher": "pong_four_conv_42"}
    collected = Rollouts.__iter__

    def after_warmup(rollouts: Rollouts) -> Iterator[Any]:
        for number, rollout in enumerate(collected(rollouts)):
            if number == watch.warmup_rollouts:
                seconds.update(dict.fromkeys(PARTS, 0.0))
            yield rollout

    kernels = profile(activities=[ProfilerActivity.CPU])
    with timed_parts(seconds), patch.object(Rollouts, "__iter__", after_warmup):
        train(SearchModule, data, watch, **search)
    whole = watch.seconds_a_rollout * settings.rollouts
    with kernels:
        train(SearchModule, data_of(16, 5, settings.frame_size, settings.threads, 2), Stopwatch(), **search)
    print(f"{whole / settings.rollouts * 1e3:.1f} ms a rollout of 16 environments x 5")
    for part, spent in [*seconds.items(), ("everything else", whole - sum(seconds.values()))]:
        print(f"{part:20} {spent / settings.rollouts * 1e3:8.1f} ms {spent / whole:6.1%}")
    events = sorted(kernels.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("kernels, of acting and learning together")
    for event in events[:10]:
        print(f"{event.key:40} {event.self_cpu_time_total / total:6.1%}")


if __name__ == "__main__":
    main()
