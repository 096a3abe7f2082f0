"""Signals that ask a run to stop: noted at once, obeyed where the run can be resumed exactly.

Own code: Lightning ends with status 0 after SIGTERM and 1 after Ctrl-C, as if the run were done or had failed, and
saves no checkpoint.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

INTERRUPTED = 75
"""Exit status of an interrupted run (``EX_TEMPFAIL`` of sysexits.h: try again)."""

GRACE_SECONDS = 6.0
"""A run that has not come to rest by then is ended where it is."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(BaseException):
    """The run was asked to stop, and did. No Exception: nobody should take it for a failure."""


class Interruption:
    """What this process was asked; one for each process, since signals are.

    A thread listens, as Python tells the main one of a signal only between two calls into torch, and a backward can
    take longer than a scheduler waits. It ends the process at a second Ctrl-C, and after ``grace_seconds`` if it is
    still busy.
    """

    def __init__(self) -> None:
        self.asked_by = ""
        """The signal's name, once there was one."""
        self.exit_status = INTERRUPTED
        """Of this process, when the thread ends it."""
        self.grace_seconds = GRACE_SECONDS
        """Until the thread ends it."""
        self.saving = threading.Lock()
        """Held while a checkpoint is written."""
        self.heard: Callable[[int], None] | None = None
        """Told of the first signal, from the thread."""
        self._ears: socket.socket | None = None
        self._handlers: dict[int, Any] = {}

    def catch_signals(self) -> None:
        """Notes signals from now on, in place of whoever handled them; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        if self._ears is None:
            self._ears, mouth = socket.socketpair()
            mouth.setblocking(False)
            signal.set_wakeup_fd(mouth.detach(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=[self._ears], daemon=True, name="signals").start()
        for signum in SIGNALS:
            handler = signal.signal(signum, _do_nothing)
            self._handlers.setdefault(signum, handler)

    def catch_signals_again(self) -> None:
        """Where a library has put handlers of its own in the place of those that were caught."""
        if self._handlers:
            self.catch_signals()

    def leave_signals(self) -> None:
        """Gives signals back to whoever handled them."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers.clear()

    def check(self) -> None:
        """Stops here if the process was asked to.

        Raises:
            Interrupted: it was.
        """
        if self.asked_by:
            raise Interrupted(self.asked_by)

    def _listen(self, ears: socket.socket) -> None:
        ctrl_c = 0
        while signals := ears.recv(1):
            signum = signals[0]
            if signum not in SIGNALS:
                continue
            ctrl_c += signum == signal.SIGINT
            if ctrl_c > 1:
                os._exit(self.exit_status)
            if not self.asked_by:
                self.asked_by = signal.Signals(signum).name
                threading.Thread(target=self._end_late, daemon=True, name="grace").start()
                if self.heard is not None:
                    self.heard(signum)

    def _end_late(self) -> None:
        time.sleep(self.grace_seconds)
        self.saving.acquire(timeout=2.0)
        print(f"interrupted by {self.asked_by}: what was under way took too long and was dropped", file=sys.stderr)
        sys.stderr.flush()
        os._exit(self.exit_status)


def _do_nothing(*_: Any) -> None:
    """The thread hears of the signal by other means."""


INTERRUPTION = Interruption()
"""This process's."""
