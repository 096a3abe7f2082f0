"""Callback that writes a run's configuration into its folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import SaveConfigCallback

from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.real_run import leaves_files


class SaveConfig(SaveConfigCallback):
    """Callback that writes the complete configuration into the run folder; a resumed run overwrites it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True, "save_to_log_dir": False})
        config = self.config.clone()
        if "ckpt_path" in config:
            config.ckpt_path = None  # applies to this start only
        self.content = self.parser.dump(config, skip_none=False)
        del self.parser  # ddp_spawn pickles callbacks, and a parser cannot be pickled

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write nothing yet: a rejected checkpoint must leave the folder unchanged."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Write the configuration after the checkpoint has been restored."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Any, pl_module: Any, stage: Any) -> None:
        """Write ``run_dir/config.yaml`` in ``fit``; other commands keep the file of the training."""
        if stage == "fit" and leaves_files(trainer):
            write_atomically(Path(trainer.default_root_dir) / "config.yaml", self.content.encode())
