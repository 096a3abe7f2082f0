"""The distinction between runs that write files and dry runs."""

from typing import Any


def leaves_files(trainer: Any) -> bool:
    """Return whether a trainer's run writes files: not with ``fast_dev_run``, and not in Lightning's sanity check.

    Args:
        trainer: Lightning's Trainer.
    """
    return not (trainer.sanity_checking or getattr(trainer, "fast_dev_run", False))
