"""Signals that ask a run to stop: noted at once, obeyed where the run can be resumed exactly.

Own code: Lightning ends with status 0 after SIGTERM and 1 after Ctrl-C, as if the run were done or had failed, and
saves no checkpoint.
"""

import os
import signal
import socket
import sys
import threading
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
    take longer than a scheduler waits. In a run of the command line it ends the process at a second Ctrl-C, and after
    ``grace_seconds`` if the run is still busy. Where the package is a library it never does: a second Ctrl-C is a
    KeyboardInterrupt, and the handlers of before are back when ``fit`` returns.
    """

    def __init__(self) -> None:
        self.received = ""
        """The signal's name, once there was one."""
        self.exit_status = INTERRUPTED
        """Of this process, when the thread ends it."""
        self.grace_seconds = GRACE_SECONDS
        """Until the thread ends it."""
        self.saving = threading.Lock()
        """Held while a checkpoint is written."""
        self.on_signal: Callable[[int], None] | None = None
        """Told of the first signal, from the thread."""
        self._ends_process = self._ctrl_c = False
        self._handled_ctrl_c = 0
        self._over = threading.Event()
        self._wakeup_writer: int | None = None
        self._wakeup_before = -1
        self._handlers: dict[int, Any] = {}

    @property
    def is_catching(self) -> bool:
        """Whether signals are noted."""
        return bool(self._handlers)

    def catch_signals(self, ends_process: bool = False) -> None:
        """Replace the handlers of signals by one that notes them; only the main thread can.

        Args:
            ends_process: whether the process is a run of the command line; of no meaning where signals are caught
                already.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if self._wakeup_writer is None:
            reader, writer = socket.socketpair()
            writer.setblocking(False)
            self._wakeup_writer = writer.detach()
            threading.Thread(target=self._listen, args=[reader], daemon=True, name="signals").start()
        if not self.is_catching:
            self._ends_process = ends_process
            self._over = threading.Event()
            self._handled_ctrl_c = 0
            self._wakeup_before = signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        for signum in SIGNALS:
            handler = signal.signal(signum, self._handle)
            self._handlers.setdefault(signum, handler)

    def catch_signals_again(self) -> None:
        """Where a library has put handlers of its own in the place of those that were caught."""
        if self.is_catching:
            self.catch_signals()

    def restore_handlers(self) -> None:
        """Restore the handlers of before, and forget the signals that came."""
        if self.is_catching:
            signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers.clear()
        self._over.set()
        self.received, self.on_signal = "", None

    def check(self) -> None:
        """Stop here if the process was asked to.

        Raises:
            Interrupted: it was.
        """
        if self.received:
            raise Interrupted(self.received)

    def _handle(self, signum: int, frame: Any) -> None:
        """The thread hears of the signal by other means, sooner or later than this handler."""
        self._handled_ctrl_c += signum == signal.SIGINT
        if self._handled_ctrl_c > 1 and not self._ends_process:
            raise KeyboardInterrupt

    def _listen(self, reader: socket.socket) -> None:
        while signals := reader.recv(1):
            signum = signals[0]
            if signum not in SIGNALS or not self.is_catching:
                continue
            if self.received:
                if signum == signal.SIGINT and self._ends_process and self._ctrl_c:
                    os._exit(self.exit_status)
                self._ctrl_c |= signum == signal.SIGINT
                continue
            self._ctrl_c = signum == signal.SIGINT
            self.received = signal.Signals(signum).name
            if self._ends_process:
                threading.Thread(target=self._end_late, args=[self._over], daemon=True, name="grace").start()
            if self.on_signal is not None:
                self.on_signal(signum)

    def _end_late(self, over: threading.Event) -> None:
        if over.wait(self.grace_seconds):
            return
        self.saving.acquire(timeout=2.0)
        print(f"interrupted by {self.received}: what was under way took too long and was dropped", file=sys.stderr)
        sys.stderr.flush()
        os._exit(self.exit_status)


INTERRUPTION = Interruption()
"""This process's."""
