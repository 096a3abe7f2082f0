"""A watchdog that ends the process if an environment step hangs, for example after an emulator thread died."""

import os
import sys
import threading
import time
from types import TracebackType


class Watchdog:
    """Time limit for code that may hang: ``with watchdog: ...``.

    At the limit, print one line and end the process with exit status 1. Own code: the call that hangs is in C++ and has
    no timeout.

    Args:
        what: Name of the guarded code, for the message.
        seconds: Time limit of each block.
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
        """Stop the watchdog's thread."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() > self._deadline:
                print(
                    f"error: {self.what} did not respond for {self.seconds:g} s; resume with --ckpt_path last, and "
                    "raise data.env_timeout_seconds if steps can take that long.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
