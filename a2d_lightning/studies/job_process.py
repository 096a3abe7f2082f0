"""Process of one job: forked from a server with preloaded imports, one thread, output in the job's log."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from a2d_lightning.studies.job import LOG, Job

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

PRELOADED = [
    "a2d_lightning.studies.fork_server",
    "a2d_lightning.cli.main",
    "a2d_lightning.rollouts.collector",
    "a2d_lightning.rollouts.envs",
    "a2d_lightning.callbacks",
]
"""Imports of the fork server. Forking jobs from the server saves about 11 of the 26 seconds of a smoke run on a CPU.
None of the modules may start a thread: threads do not survive a fork."""

GRACE_SECONDS = 11.0
"""Seconds between SIGTERM and SIGKILL, in which jobs save their state and exit."""


def start_process(job: Job) -> BaseProcess:
    """Start the job and return its process.

    The process has the exit status of the command line. The job saves its state and exits with 75 on SIGTERM, and also
    when the calling process ends in any way, including SIGKILL.

    Args:
        job: Job to run; its folder and ``job.json`` are written first.
    """
    job.mark_started()
    for name in THREAD_VARIABLES:  # libraries read these when loaded: set them before the fork server imports
        os.environ[name] = "1"
    process: BaseProcess = _context().Process(target=_run, args=(job,), name=job.name)  # type: ignore[attr-defined]
    process.start()
    return process


def stop_processes(processes: Sequence[BaseProcess]) -> None:
    """Send SIGTERM to processes, wait up to :data:`GRACE_SECONDS`, and kill the remaining ones."""
    began = asked = time.monotonic()
    for process in processes:
        process.terminate()
    while any(process.exitcode is None for process in processes):
        now = time.monotonic()
        if now - began > GRACE_SECONDS:
            for process in processes:
                process.kill()
            return
        if now - asked > 1.0:  # a newly forked process may have missed the first signal
            asked = now
            for process in processes:
                process.terminate()
        time.sleep(0.05)


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _run(job: Job) -> None:
    """Run the job in this process, which exits with the status of the command line."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored by the fork server
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C then reaches only the runner, which stops each job once
    _redirect_output(job)
    threading.Thread(target=_stop_with_parent, daemon=True, name="parent").start()
    began = time.monotonic()
    from a2d_lightning.__main__ import main  # noqa: PLC0415 (takes seconds unless preloaded)

    main(job.command_line())
    job.mark_finished(time.monotonic() - began)


def _redirect_output(job: Job) -> None:
    """Append standard output and standard error to the log, line-buffered."""
    handle = os.open(job.run_dir / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor in (1, 2):
        os.dup2(handle, descriptor)
    os.close(handle)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 (open until the process ends)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 (open until the process ends)


def _stop_with_parent() -> None:
    """Raise SIGTERM in this process when its parent ends, which closes the pipe between them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)
