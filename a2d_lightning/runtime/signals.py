"""Graceful stop on signals: recorded at once, carried out where the run can be resumed exactly.

Own code: Lightning exits with status 0 after SIGTERM and 1 after Ctrl-C, as if the run had finished or failed, and
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
"""Default time in seconds from the first signal to the forced end of a run that is still busy."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(BaseException):
    """Raised after a graceful stop. Derives from BaseException so ``except Exception`` does not swallow it."""


class Interruption:
    """Signals received by this process; one instance per process, since signal handlers are process-wide.

    A background thread receives the signals through a wakeup file descriptor. Python runs signal handlers in the main
    thread only between two calls into torch, and a backward pass can take longer than a scheduler waits.

    In a command-line run, the thread ends the process at a second Ctrl-C, and after ``grace_seconds`` if the run is
    still busy. In library use, the thread never ends the process: a second Ctrl-C raises KeyboardInterrupt, and the
    previous handlers are restored when ``fit`` returns.
    """

    def __init__(self) -> None:
        self.received = ""
        """Name of the first signal received; empty before."""
        self.exit_status = INTERRUPTED
        """Exit status of the process if the thread ends it."""
        self.grace_seconds = GRACE_SECONDS
        """Seconds from the first signal until the thread ends the process."""
        self.saving = threading.Lock()
        """Lock held while a checkpoint is written."""
        self.on_signal: Callable[[int], None] | None = None
        """Called by the thread with the number of the first signal."""
        self._ends_process = self._ctrl_c = False
        self._handled_ctrl_c = 0
        self._over = threading.Event()
        self._wakeup_writer: int | None = None
        self._wakeup_before = -1
        self._handlers: dict[int, Any] = {}

    @property
    def is_catching(self) -> bool:
        """Return whether the handlers are installed."""
        return bool(self._handlers)

    def catch_signals(self, ends_process: bool = False) -> None:
        """Install handlers that record signals; do nothing outside of the main thread.

        Args:
            ends_process: Whether the process is a command-line run; ignored if the handlers are already installed.
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
        """Reinstall the handlers after a library has replaced them; do nothing if none were installed."""
        if self.is_catching:
            self.catch_signals()

    def restore_handlers(self) -> None:
        """Restore the previous handlers and discard recorded signals."""
        if self.is_catching:
            signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers.clear()
        self._over.set()
        self.received, self.on_signal = "", None

    def check(self) -> None:
        """Raise if a signal was received.

        Raises:
            Interrupted: If a signal was received.
        """
        if self.received:
            raise Interrupted(self.received)

    def _handle(self, signum: int, frame: Any) -> None:
        """Raise KeyboardInterrupt at the second Ctrl-C in library use.

        The thread receives the signal through the wakeup file descriptor, before or after this handler runs.
        """
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
        print(
            f"interrupted by {self.received}: unfinished work exceeded the grace period and was discarded",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(self.exit_status)


INTERRUPTION = Interruption()
"""The instance of this process."""
