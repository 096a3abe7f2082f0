"""Jobs as tasks of a Ray cluster: one core per job, on a file system shared by all machines."""

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
"""Number of restarts by Ray after losing a machine or worker; each resumes from the job's checkpoint."""


def run_on_ray(jobs: Sequence[Job], address: str) -> Iterator[Ended]:
    """Run jobs on a Ray cluster and yield each as it ends.

    Args:
        jobs: Jobs to run.
        address: Address of the cluster as for ``ray.init``.

    Raises:
        SettingError: If Ray is not installed, or there is no such cluster.
        RunFailedError: If the cluster lost a job.
        Interrupted: If a signal stopped this process; jobs have saved their state.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingError("--address: a cluster needs Ray; pip install 'a2d-lightning[ray]'.")
    import ray  # noqa: PLC0415 (optional)

    INTERRUPTION.grace_seconds = GRACE_SECONDS + 3.0
    # machines import this package from the paths of this process
    paths = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    settings: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    settings["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"--address: there is no Ray cluster at {address!r} ({str(error).splitlines()[0]}); start one with 'ray "
            "start --head', or remove --address."
        ) from error
    INTERRUPTION.catch_signals_again()  # Ray's handlers would end the process
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
                        f"--address: {address!r}: the cluster lost job {job.name} ({type(error).__name__}); run the "
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
    """Run a job in a separate process on a machine of the cluster.

    Args:
        job: Job to run.
        folder: Working directory of the runner, the base of relative paths.

    Returns:
        Exit status and wall-clock seconds.
    """
    os.chdir(folder)
    began = time.monotonic()
    process = start_process(job)
    try:
        process.join()
    except KeyboardInterrupt:  # raised by Ray to cancel a task
        with contextlib.suppress(KeyboardInterrupt):
            stop_processes([process])
        return INTERRUPTED, time.monotonic() - began
    status = process.exitcode
    return INTERRUPTED if status is None else status, time.monotonic() - began
