"""Which runs leave files."""

from typing import Any


def leaves_files(trainer: Any) -> bool:
    """Return whether a trainer's run is a real one: neither ``fast_dev_run`` nor Lightning's sanity check before it."""
    return not (trainer.sanity_checking or getattr(trainer, "fast_dev_run", False))
