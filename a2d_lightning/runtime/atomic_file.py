"""Files that are there whole or not at all, whenever the process or the machine stops."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes beside ``path``, waits for the disk, and replaces ``path``; makes its folder.

    Args:
        path: the file; whoever reads it sees the old content or the new.
        content: of the file.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    _wait_for_entry(path.parent)


def _wait_for_entry(folder: Path) -> None:
    """A new name is on the disk only once its folder is."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
