"""Peak memory of a search and start-up time of commands, each in a separate process."""

import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

_PEAK = """
import resource, sys
import torch
from a2d_lightning.runtime.allocator import keep_freed_memory
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.sampling import SinglePath, SoftSum
from benchmarks.ours import Stopwatch, data_of, train
size, name, recompute, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
keep_freed_memory()
data = data_of(16, 5, int(size), int(threads), 4)
sampling = {"soft": SoftSum, "single": SinglePath}[name]()
train(SearchModule, data, Stopwatch(), sampling=sampling, recompute_activations=recompute == "True")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def peak_gib(frame_size: int, sampling: str, recompute: bool, threads: int) -> float:
    """Measure the peak memory of a search with the paper's plan and without a teacher.

    The search runs for 4 rollouts of 16 environments x 5 steps.

    Args:
        frame_size: Height and width of frames in pixels.
        sampling: ``soft`` or ``single`` (path).
        recompute: Whether activations are recomputed in the backward pass.
        threads: Threads of torch and of the emulators.

    Returns:
        Peak resident memory in GiB.
    """
    command = [sys.executable, "-c", _PEAK, str(frame_size), sampling, str(recompute), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def seconds_to_start(commands: Sequence[Sequence[str]], times: int) -> list[float]:
    """Measure the wall-clock time of commands that run in turn.

    Args:
        commands: Arguments of ``python`` for each command.
        times: Number of runs of each command; if several, the first is discarded because it fills the disk cache.

    Returns:
        Median seconds of each command.
    """
    seconds: list[list[float]] = [[] for _ in commands]
    for _ in range(times):
        for arguments, mine in zip(commands, seconds, strict=True):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            mine.append(time.perf_counter() - began)
    return [median(mine[times > 1 :]) for mine in seconds]
