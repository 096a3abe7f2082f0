"""Ends the process when what must come back does not: an emulator's thread that died is waited for for ever."""

import os
import sys
import threading
import time
from types import TracebackType


class Watchdog:
    """``with watchdog:`` around what may hang.

    Own code: the call that hangs is in C++ and can be given no time limit. Ends with exit status 1 and one line.

    Args:
        what: to call it in the line.
        seconds: that it may take.
    """

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        self._deadline = float("inf")
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def __enter__(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadline = float("inf")

    def close(self) -> None:
        """Watches no more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() > self._deadline:
                print(
                    f"error: {self.what} did not answer for {self.seconds:g} s; go on with --ckpt_path last, and raise "
                    "data.env_timeout_seconds if its steps may take as long.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
