"""Alternating measurements on one machine: the processes of all contestants are alive, one runs at a time.

The speed of a shared machine changes by a third within a minute; contestants therefore alternate in short turns.
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
"""Workload that runs until its process is stopped and calls ``lap`` after each rollout."""

_FORK = multiprocessing.get_context("fork")
"""Forked processes share the parent's imports. Forking is safe because the parent has run no computation."""


def _laps(connection: Any) -> Iterator[None]:
    """Yield once per rollout: wait for a turn, then send its mean seconds per rollout when it ends."""
    while (seconds := connection.recv()) is not None:
        yield  # untimed: CPU caches hold data of the previous contestant
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
    """Contestant in a separate process, since allocators and threads are settings of a process.

    Args:
        name: Name for errors.
        contestant: Workload to run.
        warmup_seconds: Duration of the warm-up on entering the context. Contestants warm up one after another: each
            uses threads for all cores, and two at once would delay each other.
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
        """Run the contestant for a turn: one untimed rollout, then at least one timed rollout.

        Args:
            seconds: Duration of the turn; the last rollout is completed.

        Returns:
            Mean seconds per timed rollout.

        Raises:
            RuntimeError: If the contestant's process has ended.
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
    """Return a contestant that runs beside a busy single-threaded process."""

    def run(lap: Lap) -> None:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:

            def lap_beside() -> None:
                busy.send_signal(signal.SIGSTOP)  # pause: other contestants may have their turns now
                lap()
                busy.send_signal(signal.SIGCONT)

            try:
                contestant(lap_beside)
            finally:
                busy.kill()

    return run


def alternate(seats: Sequence[Seat], turns: int, seconds: float) -> dict[str, list[float]]:
    """Give all contestants turns; a different one begins each time.

    Args:
        seats: Contestants.
        turns: Turns of each contestant.
        seconds: Duration of a turn.

    Returns:
        Mean seconds per rollout of each turn, by name.
    """
    found: dict[str, list[float]] = {seat.name: [] for seat in seats}
    for number in range(turns):
        first = number % len(seats)
        for seat in [*seats[first:], *seats[:first]]:
            found[seat.name].append(seat.turn(seconds))
    return found
