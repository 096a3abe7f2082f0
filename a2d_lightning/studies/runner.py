"""Runner of many small jobs: several at a time, resumable, each an ordinary ``fit`` run with one thread."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.signals import INTERRUPTED, INTERRUPTION
from a2d_lightning.studies.job import LOG, Ended, Job
from a2d_lightning.studies.job_process import GRACE_SECONDS, start_process, stop_processes

RESTARTS = 3
"""Number of times that a job is resumed after an interruption (exit status 75) from outside the runner."""


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    address: str | None = None,
    after_each: Callable[[Job], None] | None = None,
    finished_before: int = 0,
) -> None:
    """Run all unfinished jobs and resume interrupted ones.

    One line is printed when a job ends. A failed job does not stop the others.

    Args:
        jobs: Jobs with different names and folders.
        workers: Number of concurrent jobs on this machine, one thread each.
        address: Address of a Ray cluster that runs the jobs instead (``auto``: the cluster of this machine).
        after_each: Called with each job that ended with exit status 0.
        finished_before: Number of finished jobs that are not in ``jobs``, counted in the progress lines.

    Raises:
        SettingError: If a job was started before with other arguments, ``workers`` is not positive, or there is no such
            cluster.
        RunFailedError: If some jobs failed; the message names them. The other jobs are finished.
        Interrupted: If a signal stopped this process; jobs have saved their state.
    """
    for job in jobs:
        job.check_arguments()
    if workers < 1:
        raise SettingError(f"--workers: {workers} must be positive.")
    waiting = [job for job in jobs if not job.finished]
    progress = _Progress(finished_before + len(jobs), finished_before + len(jobs) - len(waiting))
    failed = []
    for job, status, seconds in _ended(waiting, workers, address):
        progress.report(job, status, seconds)
        if status != 0:
            failed.append(job.name)
        elif after_each is not None:
            after_each(job)
    if failed:
        raise RunFailedError(
            f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed[:10])}{', ...' * (len(failed) > 10)}; see "
            f"their last lines above and {LOG} in each folder. Run the command again to retry them."
        )


def _ended(jobs: Sequence[Job], workers: int, address: str | None) -> Iterator[Ended]:
    if address is None:
        return run_here(jobs, workers)
    from a2d_lightning.studies.ray_jobs import run_on_ray  # noqa: PLC0415 (Ray is optional)

    return run_on_ray(jobs, address)


def run_here(jobs: Sequence[Job], workers: int) -> Iterator[Ended]:
    """Run jobs on this machine and yield each as it ends.

    Args:
        jobs: Jobs to run.
        workers: Number of concurrent jobs.

    Raises:
        Interrupted: If a signal stopped this process; jobs have saved their state.
    """
    INTERRUPTION.grace_seconds = GRACE_SECONDS + 1.0  # leave the jobs time to save and exit
    waiting = deque(jobs)
    starts: dict[str, int] = {}
    running: dict[BaseProcess, tuple[Job, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers and not INTERRUPTION.received:
                job = waiting.popleft()
                starts[job.name] = starts.get(job.name, 0) + 1
                running[start_process(job)] = job, time.monotonic()
            wait([process.sentinel for process in running], timeout=0.2)
            INTERRUPTION.check()
            for process in [process for process in running if process.exitcode is not None]:
                job, began = running.pop(process)
                status = process.exitcode or 0
                if status == INTERRUPTED and starts[job.name] <= RESTARTS:
                    waiting.append(job)
                else:
                    yield job, status, time.monotonic() - began
    finally:
        stop_processes(list(running))


class _Progress:
    """Prints a line when a job ends, with an estimate of the remaining time."""

    def __init__(self, total: int, done_before: int) -> None:
        self.total = total
        self.done = self.done_before = done_before
        self.began = time.monotonic()
        if done_before:
            print(f"{done_before}/{total} jobs were finished before", flush=True)

    def report(self, job: Job, status: int, seconds: float) -> None:
        self.done += 1
        per_job = (time.monotonic() - self.began) / (self.done - self.done_before)
        left = per_job * (self.total - self.done) / 60
        result = "" if status == 0 else f" FAILED ({_described(status)}): {job.last_log_line()}"
        print(f"{self.done}/{self.total} {job.name} {seconds / 60:.1f} min, {left:.0f} min left{result}", flush=True)


def _described(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"ended by {signal.Signals(-status).name}"
