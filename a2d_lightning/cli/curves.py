"""``python -m a2d_lightning curves``: metrics of one run against environment steps, in one picture."""

import csv
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import matplotlib
from jsonargparse import ArgumentParser
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase

from a2d_lightning.runtime.errors import SettingError

Series = list[tuple[float, float]]
"""Pairs (environment steps, value)."""

MARGINS = "margin of each cell (logits)"

PANELS: dict[str, tuple[str, ...]] = {
    "score": ("train/recent_game_score", "val/score", "val/derived_score"),
    "loss terms": ("loss/policy", "loss/value", "loss/actor_distillation", "loss/critic_distillation"),
    "policy entropy (nats)": ("policy/entropy",),
    "KL, acting to updated policy (nats)": ("policy/kl_acted_updated",),
    "explained variance": ("value/explained_variance",),
    "learning rate": ("learning_rate",),
    "tau": ("search/tau",),
    "MACs": ("search/expected_macs", "search/derived_macs", "search/argmax_macs"),
    "entropy of each cell (nats)": ("search/entropy_cell*",),
    MARGINS: ("search/margin_cell*",),
    "gradient norm of alpha": ("gradient/alpha_reward_norm", "gradient/alpha_cost_norm"),
    "signal-to-noise ratio of alpha's gradient": ("search/alpha_snr_cell*",),
    "skips": ("search/skips",),
}
"""Title and metrics of each panel; a panel without data is omitted."""

LOGARITHMIC = {"tau", "KL, acting to updated policy (nats)", "gradient norm of alpha", "learning rate"}


def curves(args: list[str]) -> None:
    """Plot ``run_dir/metrics*.csv``.

    Args:
        args: Command-line arguments after the command name.

    Raises:
        SettingError: If there are no metrics, or the picture cannot be written.
    """
    parser = ArgumentParser(prog="a2d_lightning curves", description=__doc__, exit_on_error=False)
    parser.add_argument("--run_dir", type=str, required=True, help="folder of a run")
    parser.add_argument("--output", type=str, default=None, help="image file; default: run_dir/curves.png")
    settings = parser.parse_args(args)
    run_dir = Path(settings.run_dir)
    metrics = read_metrics(run_dir)
    output = picture_path(settings.output or str(run_dir / "curves.png"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        plot(metrics, output, title=run_dir.name)
    except OSError as error:
        raise SettingError(f"--output: {str(output)!r} cannot be written ({error.strerror}).") from error
    print(output)


def picture_path(output: str) -> Path:
    """Return ``output`` as a path, with ``.png`` appended if its suffix is not an image format of matplotlib."""
    kinds = FigureCanvasBase.get_supported_filetypes()
    return Path(output if Path(output).suffix.removeprefix(".") in kinds else f"{output}.png")


def read_metrics(run_dir: Path) -> dict[str, Series]:
    """Read all metrics of a run, merged over its resumed sessions.

    Args:
        run_dir: Folder with ``metrics.csv`` and, after resumes, ``metrics-0.csv`` and so on.

    Returns:
        Series of (environment steps, value), sorted by steps, by metric name.

    Raises:
        SettingError: If ``run_dir`` holds no metrics.
    """
    metrics: dict[str, dict[float, float]] = {}
    files = sorted(run_dir.glob("metrics*.csv"))
    if not files:
        raise SettingError(f"--run_dir: {str(run_dir)!r} contains no metrics.csv; give the folder of a run.")
    resumed_at = float("inf")
    for file in sorted(files, key=_order, reverse=True):
        # after a power loss, the last line may be incomplete
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        # rows after the checkpoint from which a later session resumed were recomputed
        rows = [row for row in csv.DictReader(lines) if row["step"] and float(row["step"]) <= resumed_at]
        for row in rows:
            for name, value in row.items():
                if value and name != "step":
                    # a session that begins with an evaluation repeats the last step of the previous session
                    metrics.setdefault(name, {}).setdefault(float(row["step"]), float(value))
        resumed_at = min((float(row["step"]) for row in rows), default=resumed_at)
    return {name: sorted(series.items()) for name, series in metrics.items()}


def _order(file: Path) -> float:
    """Return a sort key: ``metrics-0.csv`` is the oldest file, ``metrics.csv`` the newest."""
    number = file.stem.removeprefix("metrics").removeprefix("-")
    return float(number) if number else float("inf")


def plot(metrics: dict[str, Series], output: Path, title: str) -> None:
    """Write a picture of all panels with data, three in a row.

    Args:
        metrics: Series by metric name.
        output: Path of the picture.
        title: Title of the picture.

    Raises:
        OSError: If the picture cannot be written.
    """
    matplotlib.use("Agg")
    panels = [(name, _matching(metrics, patterns)) for name, patterns in PANELS.items()]
    panels = [(name, found) for name, found in panels if found]
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(13, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    pressed = budget_outweighs_reward_at(metrics)
    for axis, (name, found) in zip(axes.flat, panels, strict=False):
        _panel(axis, name, {key: metrics[key] for key in found})
        if name == MARGINS and pressed is not None:
            axis.axvline(pressed, color="black", linestyle="--", linewidth=1)
            axis.text(pressed, 0.98, " cost > reward", transform=axis.get_xaxis_transform(), va="top", fontsize=7)
    figure.suptitle(title)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def budget_outweighs_reward_at(metrics: dict[str, Series]) -> float | None:
    """Find when the cost gradient of alpha first exceeds the reward gradient.

    Gradients of single updates are noisy, so the norms are compared as medians over a tenth of the search.

    Args:
        metrics: Series by metric name.

    Returns:
        Environment steps at the start of the first such tenth; None if there is none or the run is not a search.
    """
    cost, reward = (dict(metrics.get(f"gradient/alpha_{name}_norm", [])) for name in ("cost", "reward"))
    steps = sorted(cost.keys() & reward.keys())
    window = 1 + len(steps) // 10
    for first in range(len(steps) - window + 1):
        part = steps[first : first + window]
        if median(cost[step] for step in part) > median(reward[step] for step in part):
            return part[0]
    return None


def _matching(metrics: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in sorted(metrics) for pattern in patterns if Path(name).match(pattern)]


def _panel(axis: Axes, name: str, lines: dict[str, Series]) -> None:
    for key, series in lines.items():
        steps, values = zip(*series, strict=True)
        marker = "o-" if key.startswith("val/") else "-"
        axis.plot(steps, values, marker, linewidth=1, label=key.rpartition("/")[2])
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("environment steps", fontsize=8)
    if name in LOGARITHMIC and any(value > 0 for series in lines.values() for _, value in series):
        axis.set_yscale("log")
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=7)
