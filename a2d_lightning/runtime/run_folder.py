"""One run at a time in a folder."""

from pathlib import Path

from filelock import FileLock, Timeout

from a2d_lightning.runtime.errors import SettingError


class RunFolder:
    """Claim the folder of a run for this process, until it is released or the process ends, however it ends."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def claim(self, run_dir: Path) -> None:
        """Take the folder.

        Raises:
            SettingError: another process has it.
        """
        lock = FileLock(run_dir / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise SettingError(
                f"run_dir: another run writes into {str(run_dir)!r}; wait for its end, or name another folder by "
                "--run_dir."
            ) from None
        except (NotImplementedError, OSError):  # a file system without locks
            return
        self._lock = lock

    def release(self) -> None:
        """Give it up, if this process has one."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


RUN_FOLDER = RunFolder()
"""Of this process."""
