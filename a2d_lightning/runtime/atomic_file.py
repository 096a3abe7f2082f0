"""Atomic file writes: after a crash, a file has its old content or its new content, never a part of either."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a temporary file beside ``path``, sync it to disk and rename it to ``path``.

    Missing parent folders are created.

    Args:
        path: The file. Readers see the old content or the new content, never a mixture.
        content: The new content.

    Raises:
        OSError: If the file cannot be written (the old file is then unchanged), or its folder cannot be synced to disk
            after the rename.
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
    """Sync a folder to disk, without which a rename inside it may be lost in a crash."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
