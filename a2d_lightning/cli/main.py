"""Command line: LightningCLI with links between data and model, run folders and one-line errors."""

import errno
import importlib
import inspect
import json
import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from gymnasium.error import DependencyNotInstalled
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from a2d_lightning.agent_files import bundled_teachers, load_weights, newest_intact, read_agent
from a2d_lightning.cli.arguments import check_seed, whole_numbers
from a2d_lightning.cli.overlays import expand_overlays
from a2d_lightning.cli.parse_errors import one_line
from a2d_lightning.cli.save_config import SaveConfig
from a2d_lightning.cli.trainer_settings import check_trainer
from a2d_lightning.cpu.cores import usable_cores
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.models.networks import count_parameters
from a2d_lightning.modules import AgentModule, RandomModule, SearchModule, TeacherModule
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.runtime.allocator import keep_freed_memory
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.checkpoints import LAST, AtomicCheckpointIO, kept
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.loggers import MetricsFile, TensorBoardFile
from a2d_lightning.runtime.real_run import leaves_files
from a2d_lightning.runtime.run_folder import RUN_FOLDER
from a2d_lightning.runtime.signals import INTERRUPTION, Interrupted

LINKED = {
    "game": "data.game",
    "frame_shape": "data.frames",
    "num_actions": "data.game",
    "total_env_steps": "data.total_env_steps",
}
"""Model arguments that are linked to the data module, and the setting that determines each."""

CKPT_PATH_HELP = (
    "path of a checkpoint; last: the newest intact one in run_dir; best: the one with the highest score; auto (fit): "
    "last, or a new run if there is none. validate and test also accept an exported .safetensors or a bundled name."
)
"""Help of ``--ckpt_path``; Lightning's own offers keywords that have no meaning here."""

TRAINER_COMMANDS = ("fit", "validate", "test")

COMMANDS = {
    "export": "a2d_lightning.cli.export",
    "curves": "a2d_lightning.cli.curves",
    "compare": "a2d_lightning.cli.compare",
    "random_architecture": "a2d_lightning.cli.random_architecture",
    "derive": "a2d_lightning.cli.derive",
    "bank": "a2d_lightning.studies.bank",
    "judge": "a2d_lightning.studies.judge",
}
"""Commands without a trainer: name, and module with a function of the same name. LightningCLI runs the others."""


class A2DCLI(LightningCLI):
    """LightningCLI for the three stages: teacher, search and retraining.

    Args:
        args: Command-line arguments; the first is ``fit``, ``validate`` or ``test``.
    """

    def __init__(self, args: list[str]) -> None:
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            ActorCriticModule,
            RolloutDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": -1,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
            },
            parser_kwargs={**strict, **{name: {**strict} for name in self.subcommands()}},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands without ``predict``, which has no meaning here."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in TRAINER_COMMANDS}

    def _prepare_subcommand_parser(self, *args: Any, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(*args, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = CKPT_PATH_HELP
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--run_dir``, and link seeds and the model arguments in :data:`LINKED`."""
        parser.add_argument("--run_dir", type=str, default="runs/run", help="folder for everything that a run writes")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_seed)
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Reject model settings that the links to the data module would overwrite.

        Raises:
            SettingError: If a linked setting is given.
        """
        given = self._get(self.config, "model").get("init_args") or {}
        for name, source in LINKED.items():
            if given.get(name) is not None:
                raise SettingError(f"model.{name}: linked to {source}; remove it.")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Create the Trainer with logs and checkpoints in ``run_dir``.

        Raises:
            SettingError: If ``run_dir`` cannot be written, or a trainer setting has no meaning here.
        """
        run_dir = Path(self._get(self.config, "run_dir"))
        _check_writable(run_dir)
        if self._get(self.config, "trainer").get("default_root_dir") is not None:
            raise SettingError("trainer.default_root_dir: not supported; set the folder of a run with --run_dir.")
        kwargs["default_root_dir"] = str(run_dir)
        check_trainer(self._get(self.config_init, "trainer"), trains=self.subcommand == "fit")
        kwargs["logger"] = self._loggers(run_dir)
        plugins = self._get(self.config, "trainer").get("plugins") or []
        plugins = [*plugins] if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        trainer: Any = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run_dir / "checkpoints")
        return trainer

    def _loggers(self, run_dir: Path) -> list[Logger] | bool:
        """Return the user's loggers (default: TensorBoard) and, in ``fit``, the one for ``metrics.csv``."""
        asked = self._get(self.config_init, "trainer").get("logger")
        own = [] if asked in (None, True, False) else asked if isinstance(asked, list) else [asked]
        if asked is False or self.subcommand != "fit":
            return own or False
        own = own or [TensorBoardFile(run_dir, name="", version="")]
        return [*own, MetricsFile(run_dir, name="", version="")]

    def _parse_ckpt_path(self) -> None:
        # Lightning would replace the user's settings by the checkpoint's hyper-parameters
        return

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        run_dir = Path(self._get(self.config, "run_dir"))
        checkpoints = run_dir / "checkpoints"
        if subcommand == "fit":
            _claim(run_dir)
        else:
            kwargs["verbose"] = False  # after_test prints
        agent_file = bundled_teachers().get(str(kwargs.get("ckpt_path"))) or Path(str(kwargs.get("ckpt_path")))
        if agent_file.suffix == ".safetensors":
            self._load_agent(agent_file)
            return {**kwargs, "ckpt_path": None}
        kwargs["ckpt_path"] = _checkpoint(kwargs.get("ckpt_path"), checkpoints)
        if kwargs["ckpt_path"] is None:
            if subcommand == "fit":
                _check_unused(checkpoints)
            elif not isinstance(self.model, RandomModule):
                raise SettingError(
                    f"--ckpt_path: `{subcommand}` needs a checkpoint: a path, or best or last of --run_dir."
                )
        return kwargs

    def _load_agent(self, path: Path) -> None:
        """Load the weights of an exported agent into the model.

        Raises:
            SettingError: If the command is ``fit``, or the file is missing or does not fit the settings.
        """
        if self.subcommand == "fit":
            raise SettingError(
                f"--ckpt_path: {str(path)!r} is an exported agent without training state; give a checkpoint."
            )
        if not path.is_file():
            raise SettingError(f"--ckpt_path: there is no agent {str(path)!r}; give a path or a bundled name.")
        card, weights = read_agent(path)
        card.check_settings(self.model.card())
        load_weights(self.model.agent, weights, str(path))
        self.model.env_steps = card.env_steps

    def after_test(self) -> None:
        """Print the score and write ``run_dir/test-<actions>.json``."""
        if not self.trainer.is_global_zero:
            return
        metrics = self.trainer.callback_metrics
        result = {name.removeprefix("test/"): round(float(metrics[name]), 4) for name in metrics if name != "step"}
        result = {
            "game": self.datamodule.game,
            "actions": self.model.evaluation_actions,
            **result,
            "env_steps": self.model.env_steps,
            "macs": self.model.scored_macs(),
            "parameters": count_parameters(self.model.agent.backbone),
        }
        path = Path(self.trainer.default_root_dir) / f"test-{self.model.evaluation_actions}.json"
        if leaves_files(self.trainer):
            write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
        print(
            f"{self.datamodule.game}: mean score of {result['games']:.0f} full games {result['score']:.2f} "
            f"(95 % interval {result['score_low95']:.2f} to {result['score_high95']:.2f}; {result['score_min']:g} to "
            f"{result['score_max']:g}), actions {self.model.evaluation_actions}; {result['macs']:,.0f} MACs a frame, "
            f"{result['parameters']:,.0f} parameters (both without heads), trained for {result['env_steps']:,} "
            f"environment steps{f' -> {path}' if leaves_files(self.trainer) else ''}"
        )


@rank_zero_only
def _claim(run_dir: Path) -> None:
    RUN_FOLDER.claim(run_dir)


def _check_command(args: list[str]) -> None:
    known = (*TRAINER_COMMANDS, *COMMANDS)
    if args and not args[0].startswith("-") and args[0] not in known:
        raise SettingError(f"there is no command {args[0]!r}; choose one of {', '.join(known)}.")


def _seed(seed: Any) -> int:
    return int(seed) if isinstance(seed, int) and not isinstance(seed, bool) else 0


def _check_writable(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise SettingError(
            f"run_dir: {str(run_dir)!r} cannot be written ({error.strerror}); choose another."
        ) from error


def _checkpoint(asked: str | None, checkpoints: Path) -> str | None:
    """Resolve ``--ckpt_path`` to a file and check the file before anything starts.

    Args:
        asked: Path, ``last``, ``best``, ``auto`` or None.
        checkpoints: Folder of the run's checkpoints.

    Returns:
        Path; None without ``--ckpt_path``, or for ``auto`` without a checkpoint.

    Raises:
        SettingError: If the file is missing or damaged.
    """
    if asked is None:
        return None
    if asked in (LAST, "auto"):
        found = newest_intact(checkpoints)
        if found is None and asked == LAST:
            raise SettingError(
                f"--ckpt_path: {str(checkpoints)!r} contains no checkpoint; check --run_dir, or use --ckpt_path auto "
                "to start a new run."
            )
        return str(found) if found is not None else None
    path = checkpoints / "best.ckpt" if asked == "best" else Path(asked)
    if not path.is_file():
        raise SettingError(f"--ckpt_path: there is no checkpoint {str(path)!r}; check --run_dir or give a path.")
    read_agent(path)  # reject a file that is damaged or would run code, before anything starts
    return str(path)


def _check_unused(checkpoints: Path) -> None:
    if kept(checkpoints):
        raise SettingError(
            f"run_dir: {str(checkpoints.parent)!r} already contains a run; resume with --ckpt_path last, or choose "
            "another folder with --run_dir."
        )


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Exit with status 2 after a user error, 1 after a failed run and 75 after a signal, each with one line on standard
    error. Other exceptions propagate. If ``A2D_TRACEBACK`` is set, errors are raised instead of printed.

    Args:
        args: Command-line arguments; default ``sys.argv[1:]``.
    """
    args = sys.argv[1:] if args is None else args
    _quieten()
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    INTERRUPTION.catch_signals(ends_process=True)
    try:
        if args[:1] and args[0] in COMMANDS:
            command = importlib.import_module(COMMANDS[args[0]])
            getattr(command, args[0])(args[1:])
        else:
            _check_command(args)
            args = expand_overlays(whole_numbers(args))
            check_seed(args)
            A2DCLI(args)
    except Interrupted as signal:
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(f"interrupted by {signal}{': resume with --ckpt_path last' * (args[:1] == ['fit'])}", file=sys.stderr)
        sys.exit(INTERRUPTION.exit_status)
    except RunFailedError as error:
        _fail(error, 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _fail(_user_mistake(error), 2)
        where = error.filename or "run_dir"
        _fail(RunFailedError(f"{where}: {error.strerror}; free disk space and resume with --ckpt_path last."), 1)
    except Exception as error:
        _fail(_user_mistake(error), 2)
    finally:
        RUN_FOLDER.release()
        INTERRUPTION.restore_handlers()


def _quieten() -> None:
    """Suppress warnings and log messages that users cannot act on."""
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*args parameter is intended.*",
        ".*dataloader is not resumable.*",  # it resumes bit-exactly, which Lightning cannot detect
        ".*Grad strides do not match bucket view strides.*",  # channels_last weights
        ".*AccumulateGrad node's stream does not match.*",  # Lightning wraps the model for DDP in a separate stream
    ):
        warnings.filterwarnings("ignore", message=message)
    noise = ("litlogger", "litmodels", "`Trainer.fit` stopped", "has Tensor Cores")
    messages = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    messages.addFilter(lambda record: not any(words in record.getMessage() for words in noise))
    threading.excepthook = _say_unless_tensorboard_does


def _say_unless_tensorboard_does(error: threading.ExceptHookArgs) -> None:
    """Report errors of threads, except TensorBoard's writer, whose error is raised again at the next logging call."""
    if type(error.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(error)


def _user_mistake(error: BaseException) -> Exception:
    """Find the error that a user can fix: a wrong setting or a missing optional package.

    The chain of causes is searched because jsonargparse wraps exceptions raised in constructors.

    Raises:
        BaseException: ``error`` itself, if a user cannot fix it.
    """
    cause: BaseException | None = error
    seen: set[int] = set()  # chains can be cyclic: an error raised from its own context
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, SettingError | DependencyNotInstalled):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    missing = isinstance(error, ModuleNotFoundError) and "pip install" in str(error)
    missing |= isinstance(error, ValueError) and "cannot represent an object" in str(error)
    if isinstance(error, Exception) and (missing or isinstance(error, ArgumentError | MisconfigurationException)):
        return error
    raise error


def _known_settings() -> list[str]:
    models = (TeacherModule, SearchModule, AgentModule, ActorCriticModule)
    groups = [("data", RolloutDataModule), ("trainer", Trainer), *(("model", model) for model in models)]
    return [f"{group}.{name}" for group, cls in groups for name in inspect.signature(cls).parameters]


def _fail(error: Exception, status: int) -> None:
    if os.environ.get("A2D_TRACEBACK"):
        raise error
    print(f"error: {one_line(str(error), _known_settings())}", file=sys.stderr)
    sys.exit(status)
