"""Contestants that take turns on one machine: all are alive, one works at a time.

A shared machine changes its speed by a third within a minute, so what is compared alternates every second.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

Lap = Callable[[], None]
Contestant = Callable[[Lap], None]
"""Works until it is stopped, and calls the lap after each rollout."""

_FORK = multiprocessing.get_context("fork")
"""What is imported once is there for all; nobody has computed anything before."""


def _laps(connection: Any) -> Iterator[None]:
    """Goes on once a rollout: waits for a turn, and answers with its mean seconds a rollout."""
    while (seconds := connection.recv()) is not None:
        yield  # not timed: it finds the caches of the one before
        began, rollouts = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds:
            yield
            rollouts += 1
        connection.send(spent / rollouts)
    raise SystemExit


def _perform(contestant: Contestant, connection: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    laps = _laps(connection)
    contestant(lambda: next(laps))


class Seat:
    """A contestant in a process of its own, since allocators and threads are settings of a process.

    Args:
        name: for errors.
        contestant: what it does there.
        warmup_seconds: that it works before the next one is seated, since two that get ready side by side, each with
            threads for all cores, would wait for each other's.
    """

    def __init__(self, name: str, contestant: Contestant, warmup_seconds: float) -> None:
        self.name = name
        self._warmup_seconds = warmup_seconds
        self._connection: Connection
        self._connection, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_perform, args=(contestant, theirs))
        self._process.start()
        theirs.close()

    def turn(self, seconds: float) -> float:
        """Lets it work for so long or for a rollout, after one that is not timed; returns its seconds a rollout.

        Raises:
            RuntimeError: it has ended.
        """
        try:
            self._connection.send(seconds)
            answer: float = self._connection.recv()
        except (EOFError, BrokenPipeError) as error:
            self._process.join()
            raise RuntimeError(f"{self.name} ended with exit code {self._process.exitcode}") from error
        return answer

    def __enter__(self) -> "Seat":
        self.turn(self._warmup_seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.terminate()
        elif self._process.is_alive():
            self._connection.send(None)
        self._process.join()


def beside_a_busy_process(contestant: Contestant) -> Contestant:
    """Return a contestant that works while another process of one thread does, too."""

    def run(lap: Lap) -> None:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:

            def lap_beside() -> None:
                busy.send_signal(signal.SIGSTOP)  # others may have their turns now
                lap()
                busy.send_signal(signal.SIGCONT)

            try:
                contestant(lap_beside)
            finally:
                busy.kill()

    return run


def alternate(seats: Sequence[Seat], turns: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a rollout of each, a figure a turn; who begins changes each turn."""
    found: dict[str, list[float]] = {seat.name: [] for seat in seats}
    for number in range(turns):
        first = number % len(seats)
        for seat in [*seats[first:], *seats[:first]]:
            found[seat.name].append(seat.turn(seconds))
    return found
