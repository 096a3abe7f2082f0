"""A lock that allows one run at a time in a folder."""

from pathlib import Path

from filelock import FileLock, Timeout

from a2d_lightning.runtime.errors import SettingError


class RunFolder:
    """Lock on the folder of a run, held until released or until the process ends, even by a kill."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def claim(self, run_dir: Path) -> None:
        """Lock a folder; do nothing on a file system without locks.

        Args:
            run_dir: The folder.

        Raises:
            SettingError: If another process holds the lock.
        """
        lock = FileLock(run_dir / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise SettingError(
                f"run_dir: another run is writing to {str(run_dir)!r}; wait until that run ends, or choose another "
                "folder with --run_dir."
            ) from None
        except (NotImplementedError, OSError):  # a file system without locks
            return
        self._lock = lock

    def release(self) -> None:
        """Release the lock, if held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


RUN_FOLDER = RunFolder()
"""The lock of this process."""
