"""Each use of Lightning's internals, against a run of Lightning's own."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from a2d_lightning.runtime import lightning_compat


class Saver(L.Callback):
    """Saves before the first evaluation, and notes what the functions return."""

    def __init__(self, path: Path | None = None, change: Any = None) -> None:
        self.path, self.change = path, change
        self.batches: list[tuple[int, int, bool]] = []
        self.evaluations: list[int] = []
        self.resumes_at_evaluation: list[bool] = []
        self._changes = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        lightning_compat.count_no_batch_twice(trainer)
        self.resumes_at_evaluation.append(lightning_compat.resumes_at_evaluation(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.batches.append(
            (
                lightning_compat.batches_started(trainer),
                lightning_compat.batches_of_run(trainer),
                lightning_compat.is_logged(trainer),
            )
        )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            lightning_compat.restart_evaluation(trainer)
            self.evaluations.append(lightning_compat.batches_of_run(trainer))
            if self.path is not None:
                self._changes = True
                trainer.save_checkpoint(self.path)
                self._changes, self.path = False, None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._changes:
            self.change(checkpoint)


def fit(folder: Path, saver: Saver, ckpt_path: Path | None = None, epochs: int = 2, **settings: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=5,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        log_every_n_steps=3,
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[saver],
        **settings,
    )
    trainer.fit(BoringModel(), ckpt_path=ckpt_path, weights_only=False)
    return trainer


def test_batches_are_counted_and_logged_ones_known(tmp_path: Path) -> None:
    saver = Saver()
    fit(tmp_path, saver)
    assert [started for started, *_ in saver.batches] == [1, 2, 3, 4, 5] * 2
    assert [total for _, total, _ in saver.batches] == list(range(1, 11))
    assert [logged for *_, logged in saver.batches] == [total % 3 == 0 for total in range(1, 11)]


def test_a_run_saved_before_an_evaluation_begins_with_it(tmp_path: Path) -> None:
    path = tmp_path / "before.ckpt"
    fit(tmp_path, Saver(path, lightning_compat.mark_evaluation_as_started))
    resumed = Saver()
    fit(tmp_path, resumed, ckpt_path=path)
    assert resumed.resumes_at_evaluation == [True]
    assert resumed.evaluations == [5, 10]
    assert [total for _, total, _ in resumed.batches] == [6, 7, 8, 9, 10]


def test_without_the_mark_the_evaluation_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "before.ckpt"
    fit(tmp_path, Saver(path, lambda checkpoint: None))
    resumed = Saver()
    fit(tmp_path, resumed, ckpt_path=path)
    assert resumed.resumes_at_evaluation == [False]
    assert resumed.evaluations == [10]


def test_a_run_that_ended_inside_an_epoch_continues_there(tmp_path: Path) -> None:
    class Stops(Saver):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            super().on_train_batch_end(trainer)
            trainer.should_stop = lightning_compat.batches_of_run(trainer) == 3

        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self._changes = True
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    fit(tmp_path, Stops(change=lightning_compat.mark_epoch_as_unfinished))
    resumed = Saver()
    fit(tmp_path, resumed, ckpt_path=tmp_path / "end.ckpt")
    assert [total for _, total, _ in resumed.batches] == list(range(4, 11))
    assert resumed.evaluations == [5, 10]


def test_ddp_says_whether_it_looks_for_unused_parameters() -> None:
    cases: list[tuple[bool, dict[str, Any]]] = [(True, {"find_unused_parameters": True}), (False, {})]
    for found, settings in cases:
        trainer: Any = SimpleNamespace(strategy=DDPStrategy(**settings))
        assert lightning_compat.finds_unused_parameters(trainer) is found
    assert not lightning_compat.finds_unused_parameters(L.Trainer(accelerator="cpu", logger=False))


def test_lightnings_observer_of_processes_is_suspended() -> None:
    polled = threading.Event()
    child: Any = SimpleNamespace(returncode=0, poll=polled.set)  # one that ended well, at which the observer ends
    observer = _ChildProcessObserver(main_pid=0, child_processes=[child], sleep_period=1)
    observer.start()
    suspended = True
    lightning_compat.suspend_child_observer(lambda: suspended)
    assert not polled.wait(1.5)
    suspended = False
    assert polled.wait(5)
    observer.join(5)
    assert not observer.is_alive()
