"""``python -m a2d_lightning compare``: scores of several runs in one picture, per environment step and per update."""

from pathlib import Path

import matplotlib
import numpy as np
from jsonargparse import ArgumentParser
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from a2d_lightning.cli.curves import Series, picture_path, read_metrics
from a2d_lightning.runtime.errors import SettingError

Metrics = dict[str, Series]

PANELS = (
    ("train/recent_game_score", "mean of the last 100 games while training"),
    ("val/score", "score in evaluations, 95 % interval"),
    ("val/derived_score", "score of the derived network, 95 % interval"),
    ("loss/actor_distillation", "KL to the teacher (nats)"),
)
"""Metric and title of each panel; a panel without data from any run is omitted."""

SMOOTHED_PARTS = 50
"""Number of parts of a run; training metrics are smoothed by a moving average over one part."""


def compare(args: list[str]) -> None:
    """Plot the metrics of several runs.

    Args:
        args: Command-line arguments after the command name.

    Raises:
        SettingError: If a folder holds no metrics, the numbers of labels and runs differ, or the picture cannot be
            written.
    """
    parser = ArgumentParser(prog="a2d_lightning compare", description=__doc__, exit_on_error=False)
    parser.add_argument("--run_dirs", type=list[str], required=True, help="folders of runs, [a,b,...]")
    parser.add_argument(
        "--labels", type=list[str] | None, default=None, help="labels of the runs; default: folder names"
    )
    parser.add_argument("--output", type=str, required=True, help="image file")
    settings = parser.parse_args(args)
    labels = settings.labels or [Path(run_dir).name for run_dir in settings.run_dirs]
    if len(labels) != len(settings.run_dirs):
        raise SettingError(f"--labels: {len(labels)} labels for {len(settings.run_dirs)} runs; give one label per run.")
    runs = [(label, read_metrics(Path(run_dir))) for label, run_dir in zip(labels, settings.run_dirs, strict=True)]
    output = picture_path(settings.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        plot(runs, output)
    except OSError as error:
        raise SettingError(f"--output: {str(output)!r} cannot be written ({error.strerror}).") from error
    print(output)


def plot(runs: list[tuple[str, Metrics]], output: Path) -> None:
    """Write a picture with one row of panels over environment steps and one over updates of the weights.

    Args:
        runs: Label and metrics of each run.
        output: Path of the picture.

    Raises:
        SettingError: If no run has data for any panel.
        OSError: If the picture cannot be written.
    """
    matplotlib.use("Agg")
    panels = [panel for panel in PANELS if any(panel[0] in metrics for _, metrics in runs)]
    if not panels:
        raise SettingError("--run_dirs: none of the runs has a score yet.")
    figure, axes = plt.subplots(
        2, len(panels), figsize=(4.3 * len(panels), 6.5), squeeze=False, layout="constrained", sharey="col"
    )
    for column, (name, title) in enumerate(panels):
        for number, (label, metrics) in enumerate(runs):
            # the legend shows every run, even in a panel without data from it
            for axis, updates in ((axes[0, column], False), (axes[1, column], True)):
                axis.plot([], [], color=f"C{number}", label=label)
                if name in metrics:
                    _line(axis, metrics, name, f"C{number}", updates)
        axes[0, column].set_title(title, fontsize=10)
        axes[0, column].set_xlabel("environment steps", fontsize=8)
        axes[1, column].set_xlabel("weight updates", fontsize=8)
        for axis in axes[:, column]:
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def _line(axis: Axes, metrics: Metrics, name: str, color: str, updates: bool) -> None:
    steps, values = np.array(metrics[name]).T
    x = _updates(metrics, steps) if updates else steps
    if not name.startswith("val/"):
        window = 1 + len(values) // SMOOTHED_PARTS
        x, values = (np.convolve(y, np.ones(window) / window, mode="valid") for y in (x, values))
        axis.plot(x, values, linewidth=1, color=color)
        return
    axis.plot(x, values, "o-", markersize=3, linewidth=1, color=color)
    low, high = (np.array(metrics[f"{name}_{side}95"]).T[1] for side in ("low", "high"))
    axis.fill_between(x, low, high, alpha=0.15, color=color)


def _updates(metrics: Metrics, steps: np.ndarray) -> np.ndarray:
    """Interpolate the number of weight updates done after ``steps`` environment steps."""
    known_steps, updates = np.array(metrics["weight_updates"]).T
    return np.interp(steps, known_steps, updates)
