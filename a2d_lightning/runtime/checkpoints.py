"""Robust checkpoints: atomic writes, checks on loading, and the list of files that a run can resume from."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.plain_checkpoints import dump, load

LAST = "last"

WEIGHTS_OF_SPAWNED = ".temp.ckpt"
"""Lightning's file name for weights that ``ddp_spawn`` and ``ddp_fork`` workers return to the main process."""

UNFINISHED = "next.ckpt"
"""File name of a save that is in progress or was interrupted."""

_PARTS = {
    **{"pytorch-lightning_version": str, "epoch": int, "global_step": int, "state_dict": dict, "loops": dict},
    **{"optimizer_states": list, "callbacks": dict, "env_steps": int},
}
"""Entries that resuming requires, with their types."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically; a failed write leaves the old file and training continues.

    Own code: Lightning writes into ``$TMPDIR`` and copies from there. A kill during the copy loses both files.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint atomically; warn if the file cannot be written.

        Args:
            checkpoint: Tensors and plain values.
            path: A local file, or a remote path (``s3://...``), which Lightning writes in its own way.
            storage_options: Passed to Lightning for remote paths, ignored for local ones.

        Raises:
            RunFailedError: If the checkpoint holds a value that could not be loaded again.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = dump(checkpoint)
        try:
            write_atomically(Path(path), content)
        except OSError as error:
            rank_zero_info(
                f"warning: {path} could not be written ({error.strerror}); training continues, and earlier "
                "checkpoints are unchanged"
            )

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint of tensors and plain values; no code in the file is executed.

        Args:
            path: A local file or a remote path.
            map_location: As in ``torch.load``.
            weights_only: Ignored; treated as true.

        Returns:
            The checkpoint.

        Raises:
            SettingError: If the file is not a checkpoint of a run.
        """
        if "://" in str(path):
            checkpoint = super().load_checkpoint(path, map_location, weights_only=True)
        else:
            checkpoint = load(path, map_location)
        if Path(path).name == WEIGHTS_OF_SPAWNED:
            return checkpoint
        for name, kind in _PARTS.items():
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(name), kind):
                raise SettingError(
                    f"ckpt_path: {path} has no {name!r} and is not a checkpoint of a run; choose another."
                )
        return checkpoint


def kept(folder: Path) -> list[Path]:
    """Return the checkpoints that a run can be resumed from, newest first.

    RunCheckpoint writes ``last.ckpt`` and renames the previous ones to ``last-1.ckpt``, ``last-2.ckpt`` and so on. If
    none of these exists, the result is all other finished checkpoints in the folder, ordered by modification time.

    Args:
        folder: The folder of checkpoints.
    """
    older = [path for path in folder.glob(f"{LAST}-*.ckpt") if path.stem.removeprefix(f"{LAST}-").isdigit()]
    older.sort(key=lambda path: int(path.stem.removeprefix(f"{LAST}-")))
    found = [path for path in (folder / f"{LAST}.ckpt", *older) if path.is_file()]
    others = [path for path in folder.glob("*.ckpt") if path.name != UNFINISHED]
    return found or sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
