"""``python -m benchmarks.gpu``: environment steps per second of each stage on a GPU and on the CPU.

Each measurement is a ``fit`` run with the shipped configs and without evaluations. All runs alternate in one process.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from statistics import median

import torch

from a2d_lightning.cli.main import main as command
from benchmarks.clock import Clock

CONFIGS = Path(__file__).parent.parent / "configs"
GRAPHS = ["--trainer.callbacks+=a2d_lightning.callbacks.CompiledAgent", "--trainer.callbacks.mode", "reduce-overhead"]
BFLOAT16 = ["--trainer.precision", "bf16-mixed"]
LAPTOP = ["--config", str(CONFIGS / "scale" / "laptop.yaml")]
MINATAR = ["--config", str(CONFIGS / "scale" / "minatar.yaml")]


def contestants(architecture: Path) -> dict[str, list[str]]:
    """Return stage and further arguments of ``fit`` by name of the contestant.

    Args:
        architecture: JSON file of the network to retrain.
    """
    retrain = ["retrain", "--model.architecture", str(architecture)]
    gpu, cpu = ["--trainer.accelerator", "gpu"], ["--trainer.accelerator", "cpu"]
    return {
        "teacher, GPU": ["teacher", *gpu],
        "teacher, CPU": ["teacher", *cpu],
        "search, GPU": ["search", *gpu],
        "search, CPU": ["search", *cpu],
        "retraining, GPU": [*retrain, *gpu],
        "retraining, CPU": [*retrain, *cpu],
        "laptop search, GPU": ["search", *LAPTOP, *gpu],
        "laptop search, CPU": ["search", *LAPTOP, *cpu],
        "teacher, GPU, CUDA graphs": ["teacher", *gpu, *GRAPHS],
        "retraining, GPU, CUDA graphs": [*retrain, *gpu, *GRAPHS],
        "teacher, GPU, bfloat16": ["teacher", *gpu, *BFLOAT16],
        "search, GPU, bfloat16": ["search", *gpu, *BFLOAT16],
        "teacher, GPU, 128 environments": ["teacher", *gpu, "--data.num_envs", "128"],
        "search, GPU, 128 environments": ["search", *gpu, "--data.num_envs", "128"],
        "MinAtar search, GPU": ["search", *MINATAR, *gpu],
        "MinAtar search, CPU": ["search", *MINATAR, *cpu],
    }


def speed(stage: str, *args: str, seconds: float) -> float:
    """Measure the environment steps per second of a ``fit`` run and discard its standard output.

    Args:
        stage: Name of the config in ``configs``.
        args: Further arguments of ``fit``.
        seconds: Duration of the measurement in seconds.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        command(
            [
                *("fit", "--config", str(CONFIGS / f"{stage}.yaml"), *args, "--run_dir", folder),
                *("--trainer.devices", "1", "--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0"),
                *("--data.total_env_steps", "100_000_000", "--data.env_steps_per_epoch", "100_000_000"),
                *("--trainer.callbacks+=benchmarks.clock.Clock", "--trainer.callbacks.seconds", str(seconds)),
            ]
        )
    return Clock.env_steps_per_second


def main() -> None:
    """Measure all contestants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of turns; the table has medians")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measurement a turn")
    parser.add_argument("--only", default="", help="part of the contestants' names")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command(["random_architecture", "--count", "1", "--frame_shape", "[4,84,84]", "--output", folder])
        each = contestants(Path(folder) / "random_000.json")
        for _ in range(options.rounds):
            for name in (name for name in each if options.only in name):
                torch._dynamo.reset()
                found.setdefault(name, []).append(speed(*each[name], seconds=options.seconds))
                print(f"{name}: {found[name][-1]:.0f} steps/s, {Clock.peak_mebibytes:.0f} MiB so far", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{device}, {torch.get_num_threads()} CPU threads")
    for name, speeds in found.items():
        print(f"| {name} | {median(speeds):.0f} |")


if __name__ == "__main__":
    main()
