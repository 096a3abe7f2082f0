"""Use of Lightning's internals: attributes that have no public interface, in one place.

``tests/runtime/test_lightning_compat.py`` checks each function against a run, to find what an upgrade of Lightning
breaks.
"""

import threading
from collections.abc import Callable
from typing import Any, cast

import lightning as L


def batches_started(trainer: L.Trainer) -> int:
    """Return the number of training batches of the current epoch that were started."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def batches_of_run(trainer: L.Trainer) -> int:
    """Return the number of training batches of the run, with the current one."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def is_logged(trainer: L.Trainer) -> bool:
    """Return whether Lightning writes the metrics of the current batch to the loggers."""
    return bool(cast(Any, trainer)._logger_connector.should_update_logs)


def finds_unused_parameters(trainer: L.Trainer) -> bool:
    """Return whether DDP looks for parameters without a gradient."""
    return bool(getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters", False))


def count_no_batch_twice(trainer: L.Trainer) -> None:
    """Prevent a run that resumes between two epochs from counting the last batch again."""
    epoch = trainer.fit_loop.epoch_loop
    if epoch.restarting and epoch.batch_progress.current.ready == 0:
        epoch.restarting = False


def resumes_at_evaluation(trainer: L.Trainer) -> bool:
    """Return whether the run was resumed from a checkpoint that was saved before or during an evaluation."""
    return bool(trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation)


def evaluate_before_training(trainer: L.Trainer) -> None:
    """Have a run that :func:`resumes_at_evaluation` evaluate, even if its training is complete."""
    trainer.val_check_batch = trainer.fit_loop.epoch_loop.batch_idx + 1


def restart_evaluation(trainer: L.Trainer) -> None:
    """Reset the progress of an evaluation that was resumed, so that all of its games are played."""
    games = trainer.fit_loop.epoch_loop.val_loop
    if games.restarted_mid_evaluation:
        games.batch_progress.total.reset()


def mark_evaluation_as_started(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint that is saved before an evaluation: resuming from it begins with the evaluation."""
    _evaluation_progress(checkpoint).update(ready=1, started=1, processed=0, completed=0)


def mark_epoch_as_unfinished(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint of a run that ended inside an epoch: resuming from it continues inside that epoch."""
    evaluation = _evaluation_progress(checkpoint)
    evaluation.update(dict.fromkeys(evaluation, 0))
    for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
        progress.update(processed=progress["started"] - 1, completed=progress["started"] - 1)


def _evaluation_progress(checkpoint: dict[str, Any]) -> dict[str, int]:
    progress: dict[str, int] = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    return progress


def suspend_child_observer(while_true: Callable[[], bool]) -> None:
    """Suspend Lightning's observer of child processes while ``while_true()``.

    The observer checks for dead child processes every five seconds and kills all processes without a message that says
    how to resume.
    """
    for thread in cast(list[Any], threading.enumerate()):
        if thread.name == "child-process-observer":
            look = thread._run
            thread._run = lambda look=look: not while_true() and look()
