"""A callback that kills its own process, as a preempted machine would: at once and without a word."""

import os
import random
import signal
import threading
from typing import Any

import lightning as L

from a2d_lightning.runtime import atomic_file


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(L.Callback):
    """Kills at a random moment.

    Args:
        when: ``anywhere``; ``saving``, at a random step of writing a checkpoint, half of the file written or none of it
            renamed; or ``after_game``, once a game has ended in this session.
        seed: of the moment.
        within_seconds: of the start of training, or of the game's end.
    """

    def __init__(self, when: str, seed: int, within_seconds: float = 2.0) -> None:
        self.when = when
        self.random = random.Random(seed)
        self.within_seconds = within_seconds
        self._counting = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.when == "anywhere":
            self._kill_soon()
        if self.when == "saving":
            calls = self.random.randint(1, 20)
            for name in ("fsync", "replace"):
                self._count(name, calls)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.when == "after_game" and not self._counting and batch["next", "game_over"].any():
            self._counting = True
            self._kill_soon()

    def _kill_soon(self) -> None:
        timer = threading.Timer(self.random.uniform(0, self.within_seconds), kill)
        timer.daemon = True
        timer.start()

    def _count(self, name: str, calls: int) -> None:
        real = getattr(os, name)
        self.left = calls

        def counted(*args: Any) -> Any:
            self.left -= 1
            if self.left <= 0:
                new = name == "fsync" and os.readlink(f"/proc/self/fd/{args[0]}").endswith(".part")
                if new and self.random.random() < 0.5:
                    os.truncate(args[0], os.fstat(args[0]).st_size // 2)  # the disk had only half of it
                kill()
            return real(*args)

        setattr(atomic_file.os, name, counted)
