"""Run jobs as tasks of a Ray cluster: one core each, on a file system that all machines share."""

import contextlib
import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.signals import INTERRUPTED, INTERRUPTION
from a2d_lightning.studies.job import Ended, Job
from a2d_lightning.studies.job_process import GRACE_SECONDS, start_process, stop_processes

RETRIES = 3
"""Starts that Ray adds when a machine or its worker is lost; each resumes from the job's checkpoint."""


def run_on_ray(jobs: Sequence[Job], address: str) -> Iterator[Ended]:
    """Run jobs on the cluster at ``address`` and yield them as they end.

    Raises:
        SettingError: Ray is not installed, or there is no such cluster.
        RunFailedError: the cluster has gone.
        Interrupted: the process was asked to stop; jobs have saved their states.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingError("--address: a cluster needs Ray; pip install 'a2d-lightning[ray]'.")
    import ray  # noqa: PLC0415 (optional)

    INTERRUPTION.grace_seconds = GRACE_SECONDS + 3.0
    # machines import this package from the paths that this process has
    paths = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    settings: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    settings["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"--address: there is no Ray cluster at {address!r} ({str(error).splitlines()[0]}); start one by "
            "'ray start --head', or leave --address out."
        ) from error
    INTERRUPTION.catch_signals_again()  # Ray's own would end the process
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_run_task)
    pending: dict[Any, Job] = {task.remote(job, os.getcwd()): job for job in jobs}
    try:
        while pending:
            ended, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
            INTERRUPTION.check()
            for reference in ended:
                job = pending.pop(reference)
                try:
                    status, seconds = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise RunFailedError(
                        f"--address: {address!r}: the cluster lost job {job.name} ({type(error).__name__}); start the "
                        "command again to resume."
                    ) from error
                yield job, status, seconds
    finally:
        for reference in pending:
            ray.cancel(reference)
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=GRACE_SECONDS)
        ray.shutdown()


def _run_task(job: Job, folder: str) -> tuple[int, float]:
    """Run a job on a machine of the cluster, in a process of its own.

    Args:
        job: to run.
        folder: working directory of the runner, to which relative paths refer.

    Returns:
        exit status and seconds.
    """
    os.chdir(folder)
    began = time.monotonic()
    process = start_process(job)
    try:
        process.join()
    except KeyboardInterrupt:  # Ray's way to cancel a task
        with contextlib.suppress(KeyboardInterrupt):
            stop_processes([process])
        return INTERRUPTED, time.monotonic() - began
    status = process.exitcode
    return INTERRUPTED if status is None else status, time.monotonic() - began
