"""``python -m a2d_lightning bank``: training of many architectures by one recipe with several seeds, in one table."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from a2d_lightning.agent_files import read_agent
from a2d_lightning.cli.arguments import description
from a2d_lightning.cli.curves import read_metrics
from a2d_lightning.cli.overlays import config_path, merged_configs
from a2d_lightning.cpu.cores import usable_cores
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import count_parameters
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rollouts.games import canonical_game, without_module
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.studies.job import Job
from a2d_lightning.studies.runner import run_jobs
from a2d_lightning.studies.table import Row, read_table, write_table

OWN_SETTINGS = ("--run_dir", "--ckpt_path", "--seed_everything", "--model.architecture", "--config")
"""Options of the runs that are set by the bank."""


def bank(args: list[str]) -> None:
    """Train every architecture with every seed and write OUTPUT/bank.csv.

    The same command resumes an unfinished bank: runs with rows in the table are skipped, others continue from their
    checkpoints.

    Raises:
        SettingError: If a file is missing or damaged, or OUTPUT holds a bank of another recipe.
        RunFailedError: If some runs failed.
        Interrupted: If a signal stopped the command; all runs have saved their state.
    """
    parser = ArgumentParser(prog="a2d_lightning bank", description=description(bank), exit_on_error=False)
    parser.add_argument(
        "--config", action="append", type=str, default=[], help="config file of the runs, as for fit; repeatable"
    )
    parser.add_argument(
        "--architectures", type=list[str] | str, required=True, help="folder of JSON files, a file, or [a.json,b.json]"
    )
    parser.add_argument("--seeds", type=list[int], default=[0], help="seeds to train each network with (default: [0])")
    parser.add_argument("--output", type=str, required=True, help="folder for bank.csv and the runs")
    parser.add_argument(
        "--overrides", type=list[str], default=[], help='settings of the runs: "[--data.game=Pong, ...]"'
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="number of parallel runs, one thread each")
    parser.add_argument("--address", type=str | None, default=None, help="Ray cluster to train on instead, e.g. auto")
    parser.add_argument(
        "--origin", type=str | None, default=None, help="label of the networks; default: derived from their names"
    )
    parser.add_argument("--keep_runs", type=bool, default=True, help="false: delete the folder of a finished run")
    settings = parser.parse_args(args)
    output = Path(settings.output)
    recipe = Recipe.read([config_path(name) for name in settings.config], settings.overrides)
    networks = read_networks(settings.architectures, settings.origin)
    recipe.check_or_write(output / "bank.json")
    table = Table(output / "bank.csv", recipe.game)
    for network in networks.values():
        table.check(network)
    # train all networks with the first seed first: an incomplete bank is already usable
    pairs = [(network, seed) for seed in dict.fromkeys(settings.seeds) for network in networks.values()]
    jobs: dict[str, tuple[Job, Network, int]] = {}
    for network, seed in pairs:
        job = recipe.job(network, seed, output)
        if table.has(network.name, seed):
            _delete(job, settings.keep_runs)
        elif job.finished:  # the bank was stopped after the run ended and before the table was written
            job.check_arguments()
            table.add(job, network, seed)
            _delete(job, settings.keep_runs)
        else:
            jobs[job.name] = job, network, seed

    def after_each(job: Job) -> None:
        table.add(*jobs[job.name])
        _delete(job, settings.keep_runs)

    run_jobs(
        [job for job, _, _ in jobs.values()],
        settings.workers,
        settings.address,
        after_each,
        finished_before=len(pairs) - len(jobs),
    )
    print(f"{output / 'bank.csv'}: {len(table.rows)} evaluations of {len({row.name for row in table.rows})} networks")


@dataclass(frozen=True)
class Network:
    """Architecture in a bank, with its name and origin."""

    name: str
    origin: str
    path: Path
    architecture: Architecture


def read_networks(architectures: str | Sequence[str], origin: str | None = None) -> dict[str, Network]:
    """Read architectures from JSON files.

    Args:
        architectures: Folder, file, or several of both.
        origin: Label of all networks; default: :func:`origin_of` each name.

    Returns:
        Networks by file stem.

    Raises:
        SettingError: If there are no files, one cannot be read, or two have the same stem.
    """
    networks: dict[str, Network] = {}
    for given in [architectures] if isinstance(architectures, str) else architectures:
        folder = Path(given)
        files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
        if not files:
            raise SettingError(
                f"--architectures: {given!r} contains no JSON files; create some with random_architecture."
            )
        for path in files:
            if path.stem in networks:
                raise SettingError(
                    f"--architectures: {str(path)!r} and {str(networks[path.stem].path)!r} have the same name; rename "
                    "one."
                )
            label = origin or origin_of(path.stem)
            networks[path.stem] = Network(path.stem, label, path, Architecture.load(path))
    return networks


def origin_of(name: str) -> str:
    """Infer the origin from a name: ``random...`` is random, ``hand...`` is hand-made, all others are searched."""
    if name.startswith("random"):
        return "random"
    return "hand-made" if name.startswith("hand") else "searched"


@dataclass(frozen=True)
class Recipe:
    """Settings shared by all runs of a bank."""

    configs: tuple[str, ...]
    settings: dict[str, Any]
    """Merged settings of the configs for the chosen model, without overlay sections for other models."""
    overrides: tuple[str, ...]
    game: str

    @staticmethod
    def read(configs: Sequence[str], overrides: Sequence[str]) -> "Recipe":
        """Read the configs and check the overrides.

        Args:
            configs: Config files in command-line order.
            overrides: Further options of all runs, ``--name=value``.

        Raises:
            SettingError: If a config cannot be read, or an override is malformed or set by the bank.
        """
        settings = merged_configs(configs)
        for override in overrides:
            name, _, value = override.partition("=")
            if not name.startswith("--") or not value:
                raise SettingError(f"--overrides: {override!r} must have the form --name=value.")
            if name in OWN_SETTINGS:
                raise SettingError(f"--overrides: {name} is set by the bank; remove it.")
        game = str((settings.get("data") or {}).get("game", "Pong"))
        for override in overrides:
            if override.startswith("--data.game="):
                game = override.partition("=")[2]
        return Recipe(tuple(configs), settings, tuple(overrides), _canonical(game))

    def job(self, network: Network, seed: int, output: Path) -> Job:
        """Return the job that trains one network with one seed.

        ``seed_everything`` also seeds environments, actions and the module through links of the command line.

        Args:
            network: Network to train.
            seed: Value of ``seed_everything``.
            output: Folder of the bank; the run is written to ``output/runs/<name>-s<seed>``.
        """
        name = f"{network.name}-s{seed}"
        arguments = [word for path in self.configs for word in ("--config", path)]
        arguments += ["--data.num_env_threads", "1", *self.overrides]
        arguments += ["--model.architecture", str(network.path), "--seed_everything", str(seed)]
        return Job(name, tuple(arguments), output / "runs" / name)

    def check_or_write(self, path: Path) -> None:
        """Compare the recipe with ``bank.json``, or write that file if it is missing.

        Args:
            path: Path of ``bank.json``.

        Raises:
            SettingError: If the file is damaged, or its recipe differs; the message names the settings.
        """
        content = {"game": self.game, "overrides": list(self.overrides), "settings": self.settings}
        content = json.loads(json.dumps(content, default=str))
        if not path.is_file():
            write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
            return
        try:
            earlier = _flat(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SettingError(f"--output: {str(path)!r} is damaged; restore it, or choose another folder.") from error
        now = _flat(content)
        different = [name for name in sorted(earlier | now) if earlier.get(name) != now.get(name)]
        if different:
            name = different[0]
            raise SettingError(
                f"--output: {str(path.parent)!r} is a bank with another recipe: {', '.join(different[:5])} (first: "
                f"{earlier.get(name)!r} before, {now.get(name)!r} now); restore them, or choose another folder."
            )


class Table:
    """Content of ``bank.csv``, written after each finished run.

    Args:
        path: Path of ``bank.csv``.
        game: Game of the runs to add.

    Raises:
        SettingError: If the file exists and is not a bank's table.
    """

    def __init__(self, path: Path, game: str) -> None:
        self.path = path
        self.game = game
        self.rows = read_table(path) if path.is_file() else []
        self._finished = {(row.name, row.seed) for row in self.rows if row.game == game}

    def has(self, name: str, seed: int) -> bool:
        """Return whether the table has rows of the run of network ``name`` with ``seed``."""
        return (name, seed) in self._finished

    def check(self, network: Network) -> None:
        """Check that rows with the network's name are of the same network.

        Raises:
            SettingError: If the table has another network with this name.
        """
        operators = " ".join(network.architecture.operators)
        for row in self.rows:
            if (
                row.game == self.game
                and row.name == network.name
                and (row.operators, row.plan)
                != (
                    operators,
                    plan_text(network.architecture.plan),
                )
            ):
                raise SettingError(
                    f"--architectures: {str(network.path)!r} is not the network stored in {str(self.path)!r} under "
                    "this name; rename the file."
                )

    def add(self, job: Job, network: Network, seed: int) -> None:
        """Add the rows of a finished run and write the table.

        Raises:
            SettingError: If the run's folder lacks metrics or its last checkpoint.
        """
        self.rows += rows_of(job, network, seed, self.game)
        self._finished.add((network.name, seed))
        write_table(self.path, self.rows)


def rows_of(job: Job, network: Network, seed: int, game: str) -> list[Row]:
    """Return one row for each evaluation of a finished run.

    Args:
        job: Finished run.
        network: Network that the run trained.
        seed: Seed of the run.
        game: Name of the game for the table.

    Raises:
        SettingError: If the run's folder lacks metrics or its last checkpoint.
    """
    scores = read_metrics(job.run_dir).get("val/score", [])
    if not scores:
        raise SettingError(f"run_dir: {str(job.run_dir)!r} contains no val/score; a bank needs evaluations.")
    card, _ = read_agent(job.run_dir / "checkpoints" / "last.ckpt")
    backbone = network.architecture.build(card.frame_shape)
    row = Row(
        game=game,
        name=network.name,
        seed=seed,
        env_steps=0,
        score=0.0,
        origin=network.origin,
        operators=" ".join(network.architecture.operators),
        plan=plan_text(network.architecture.plan),
        frame_shape="x".join(map(str, card.frame_shape)),
        macs=count_macs(backbone, torch.Size(card.frame_shape)),
        parameters=count_parameters(backbone),
    )
    return [replace(row, env_steps=int(env_steps), score=score) for env_steps, score in scores]


def plan_text(plan: Plan) -> str:
    """Format cells and channels of the groups as ``2-2-2/8-16-32``."""
    return f"{'-'.join(map(str, plan.cells_per_group))}/{'-'.join(map(str, plan.channels))}"


def _canonical(game: str) -> str:
    try:
        return without_module(canonical_game(game))
    except SettingError:  # the runs may import code that registers the game, and report an unknown one
        return without_module(game)


def _delete(job: Job, keep_runs: bool) -> None:
    if not keep_runs:
        shutil.rmtree(job.run_dir, ignore_errors=True)


def _flat(content: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    if isinstance(content, dict):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list) and any(isinstance(value, dict) for value in content):
        items = [(str(i), value) for i, value in enumerate(content)]
    else:
        return {name: content}
    return {key: leaf for part, value in items for key, leaf in _flat(value, f"{name}.{part}".lstrip(".")).items()}
