"""Checkpoints that survive: written whole or not at all, checked before they are used, the ones before kept."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.plain_checkpoints import dump, load

LAST = "last"

WEIGHTS_OF_SPAWNED = ".temp.ckpt"
"""Lightning's name for weights that processes of ``ddp_spawn`` and ``ddp_fork`` hand to the one that started them."""

UNFINISHED = "next.ckpt"
"""A save that is under way, or was cut short."""

_PARTS = {
    **{"pytorch-lightning_version": str, "epoch": int, "global_step": int, "state_dict": dict, "loops": dict},
    **{"optimizer_states": list, "callbacks": dict, "env_steps": int},
}
"""What resuming reads."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file format, written atomically; a save that fails leaves the old file and lets training go on.

    Lightning's own writes into ``$TMPDIR`` and copies from there: a kill in the middle loses the new file and the old.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See the class; remote paths (``s3://...``) are Lightning's."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = dump(checkpoint)
        try:
            write_atomically(Path(path), content)
        except OSError as error:
            rank_zero_info(
                f"warning: {path} could not be written ({error.strerror}); training goes on, and what was saved before "
                "is as it was"
            )

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values only, whatever is asked for: nothing in the file is run.

        Raises:
            SettingError: it is no checkpoint of a run.
        """
        if "://" in str(path):
            checkpoint = super().load_checkpoint(path, map_location, weights_only=True)
        else:
            checkpoint = load(path, map_location)
        if Path(path).name == WEIGHTS_OF_SPAWNED:
            return checkpoint
        for name, kind in _PARTS.items():
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(name), kind):
                raise SettingError(f"ckpt_path: {path} has no {name!r} and is no checkpoint of a run; take another.")
        return checkpoint


def kept(folder: Path) -> list[Path]:
    """Return the checkpoints that a run can be resumed from, newest first.

    RunCheckpoint writes ``last.ckpt`` and renames the previous ones to ``last-1.ckpt``, ``last-2.ckpt``. Where none of
    these exists, all other checkpoints of the folder count, by their time.
    """
    older = [path for path in folder.glob(f"{LAST}-*.ckpt") if path.stem.removeprefix(f"{LAST}-").isdigit()]
    older.sort(key=lambda path: int(path.stem.removeprefix(f"{LAST}-")))
    found = [path for path in (folder / f"{LAST}.ckpt", *older) if path.is_file()]
    others = [path for path in folder.glob("*.ckpt") if path.name != UNFINISHED]
    return found or sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
