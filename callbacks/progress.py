"""Progress display in environment steps: a live line on a terminal, periodic lines in a log file."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.live import Live
from rich.text import Text

_SHOWN = {
    "train/recent_game_score": "recent score {:.1f}",
    "val/score": "score {:.1f}",
    "val/derived_score": "derived network's {:.1f}",
    "loss/policy": "policy {:.3f}",
    "loss/value": "value {:.3f}",
    "policy/entropy": "entropy {:.2f}",
    "loss/actor_distillation": "KL to teacher {:.3f}",
    "loss/critic_distillation": "value to teacher {:.3f}",
    "search/tau": "tau {:.2f}",
    "search/expected_macs": "expected MACs {:,.0f}",
}


class EnvStepsProgress(ProgressBar):
    """Shows environment steps, steps/s, time left, scores and loss terms, and in a search tau and expected MACs.

    Args:
        log_every_seconds: Seconds between two lines if the output is not a terminal.
    """

    def __init__(self, log_every_seconds: float = 30.0) -> None:
        super().__init__()
        self.log_every_seconds = log_every_seconds
        self._enabled = True
        self._live: Live | None = None
        self._shown_at = 0.0
        self._started_at = 0.0
        self._started_env_steps = 0
        self._seconds_evaluating = 0.0
        self._evaluation_started_at = 0.0

    @property
    def _console(self) -> Console:
        # not an attribute: a Console can be neither pickled nor copied
        return Console(stderr=True, highlight=False) if self._live is None else self._live.console

    def disable(self) -> None:
        """Disable the display; Lightning calls this on all ranks but one."""
        self._enabled = False

    def enable(self) -> None:
        """Enable the display."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and the live line on a terminal."""
        self._started_at = time.monotonic()
        self._started_env_steps = _env_steps(pl_module)
        self._seconds_evaluating = 0.0
        if self._enabled and sys.stderr.isatty():
            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Show the progress at the display's interval."""
        interval = 0.25 if self._live is not None else self.log_every_seconds
        if self._enabled and time.monotonic() - self._shown_at >= interval:
            self._show(self.line(trainer, pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show that games are being played, which can take minutes."""
        self._evaluation_started_at = time.monotonic()
        if self._enabled:
            self._show(f"{_env_steps(pl_module):,} environment steps | playing {_games(trainer)} full games ...")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the scores of the evaluation."""
        self._seconds_evaluating += time.monotonic() - self._evaluation_started_at
        metrics = trainer.callback_metrics
        if self._enabled and "val/score" in metrics:
            scores = [f"score of {float(metrics['val/games']):.0f} full games {_score(metrics, 'val/')}"]
            if "val/derived_score" in metrics:
                scores.append(f"of the derived network {_score(metrics, 'val/derived_')}")
            seconds = time.monotonic() - self._evaluation_started_at
            self._console.print(
                f"{_env_steps(pl_module):,} environment steps | {', '.join(scores)} in {seconds:.0f} s", soft_wrap=True
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the final state and stop the live line."""
        if self._enabled:
            self._show(self.line(trainer, pl_module))
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop the live line, which releases the terminal."""
        self._stop()

    def line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        """Return one line with the progress of the run."""
        env_steps = _env_steps(pl_module)
        total = env_steps + _env_steps_left(trainer, pl_module)
        seconds = max(time.monotonic() - self._started_at, 1e-9)
        done = env_steps - self._started_env_steps
        rate = done / max(seconds - self._seconds_evaluating, 1e-9)
        left = (total - env_steps) * seconds / max(done, 1)
        parts = [
            f"{env_steps:,} of {total:,} environment steps ({env_steps / total:.0%})",
            f"{rate:,.0f} steps/s",
            f"{_clock(seconds)} elapsed, {_clock(left)} left",
        ]
        metrics = trainer.callback_metrics
        parts += [form.format(float(metrics[name])) for name, form in _SHOWN.items() if name in metrics]
        return " | ".join(parts)

    def _show(self, line: str) -> None:
        self._shown_at = time.monotonic()
        if self._live is not None:
            self._live.update(Text(line))
        else:
            self._console.print(line, soft_wrap=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _score(metrics: Mapping[str, Any], prefix: str) -> str:
    score, low, high = (float(metrics[f"{prefix}{name}"]) for name in ("score", "score_low95", "score_high95"))
    return f"{score:.2f} (95 % interval {low:.2f} to {high:.2f})"


def _env_steps(module: L.LightningModule) -> int:
    return int(getattr(module, "env_steps", 0))


def _env_steps_left(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Return the environment steps until the end of the budget, rounded up to whole rollouts."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        return 0
    a_rollout = int(data.env_steps_per_rollout)
    return max(-(-(int(data.total_env_steps) - _env_steps(module)) // a_rollout), 0) * a_rollout


def _games(trainer: L.Trainer) -> int:
    data: Any = getattr(trainer, "datamodule", None)
    return int(data.evaluation_games) if data is not None else 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
