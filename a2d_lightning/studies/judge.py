"""``python -m a2d_lightning judge``: ranking quality of searches on a bank, and scores of the searched networks."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser

from a2d_lightning.cli.arguments import description
from a2d_lightning.modules.search_result import SearchResult
from a2d_lightning.rollouts.games import without_module
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.signals import INTERRUPTION
from a2d_lightning.studies.bank import plan_text
from a2d_lightning.studies.inherited_scores import InheritedScores
from a2d_lightning.studies.judge_report import plot, to_json, to_markdown
from a2d_lightning.studies.judgement import judge_game
from a2d_lightning.studies.scores import Networks, last_common_env_steps, networks_of, read_tables
from a2d_lightning.studies.statistics import Array

FEWEST_NETWORKS = 3


def judge(args: list[str]) -> None:
    """Judge searches against banks and write OUTPUT/judge.json, judge.md and judge.png.

    Raises:
        SettingError: If a table or checkpoint cannot be read, tables and searches do not match, a game has fewer than
            three networks, or the output cannot be written.
        Interrupted: If a signal stopped the command while networks played.
    """
    parser = ArgumentParser(prog="a2d_lightning judge", description=description(judge), exit_on_error=False)
    parser.add_argument("--bank", type=str, nargs="+", required=True, help="tables of random networks")
    parser.add_argument("--search", type=str, nargs="+", default=[], help="runs of searches, or their checkpoints")
    parser.add_argument("--searched", type=str, nargs="+", default=[], help="tables of searched networks")
    parser.add_argument(
        "--inherited_games", type=int, default=0, help="games that each network plays with each supernet's weights"
    )
    parser.add_argument("--target_macs", type=float | None, default=None, help="cost of the comparison")
    parser.add_argument(
        "--env_steps",
        type=int | None,
        default=None,
        help="environment steps of training; default: the last common value",
    )
    parser.add_argument(
        "--search_trainings",
        type=float | None,
        default=None,
        help="wall time of a search, in units of one network's training",
    )
    parser.add_argument("--output", type=str, required=True, help="folder")
    settings = parser.parse_args(args)
    bank_rows, searched_rows = read_tables(settings.bank), read_tables(settings.searched)
    # networks chosen by a search are not a random sample of the search space
    searched_rows += [row for row in bank_rows if row.origin == "searched" and not settings.searched]
    bank_rows = [row for row in bank_rows if row.origin not in ("searched", "hand-made")]
    env_steps = settings.env_steps or last_common_env_steps([*bank_rows, *searched_rows])
    searches = [SearchResult.read(source, "--search") for source in settings.search]
    _check_names(searches)
    judgements = []
    for game in sorted({row.game for row in bank_rows}):
        bank = networks_of(bank_rows, game, env_steps)
        if len(bank) < FEWEST_NETWORKS:
            raise SettingError(f"--bank: {len(bank)} networks of {game}; ranking needs at least {FEWEST_NETWORKS}.")
        own = [search for search in searches if without_module(search.card.game) == game]
        for search in own:
            _check_plan(search, bank)
        inherited = {search.name: _inherited(search, bank, settings.inherited_games) for search in own}
        searched = (
            networks_of(searched_rows, game, env_steps) if any(row.game == game for row in searched_rows) else None
        )
        known = {name: scores for name, scores in inherited.items() if scores is not None}
        judgements.append(judge_game(game, bank, own, known, searched, settings.target_macs))
        judgements[-1].search_trainings = settings.search_trainings
    strangers = sorted(
        {without_module(search.card.game) for search in searches} - {judgement.game for judgement in judgements}
    )
    if strangers:
        raise SettingError(
            f"--search: a search of {strangers[0]}, for which --bank has no networks; remove that search."
        )
    output = Path(settings.output)
    text = to_markdown(judgements, env_steps)
    try:
        write_atomically(output / "judge.json", (json.dumps(to_json(judgements, env_steps), indent=1) + "\n").encode())
        write_atomically(output / "judge.md", text.encode())
        plot(judgements, output / "judge.png")
    except OSError as error:
        raise SettingError(f"--output: {settings.output!r} cannot be written ({error.strerror}).") from error
    print(text, end="")
    print(f"{output / 'judge.json'}, judge.md, judge.png")


def _check_names(searches: Sequence[SearchResult]) -> None:
    names = [search.name for search in searches]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(f"--search: two searches are called {name}; rename one folder.")


def _check_plan(search: SearchResult, bank: Networks) -> None:
    plan = plan_text(search.plan)
    for name, other in zip(bank.names, bank.plans, strict=True):
        if other != plan:
            raise SettingError(
                f"--search: {search.name} has the plan {plan}, but {name} of --bank has {other}; use a bank with the "
                "same plan."
            )


def _inherited(search: SearchResult, bank: Networks, games: int) -> Array | None:
    if games == 0:
        return None
    scores = InheritedScores(search, games)
    if not scores.recent_frames:
        print(f"{search.name}: the checkpoint has no recent frames; batch norm keeps the supernet's statistics")
    found = []
    for operators in bank.operators:
        INTERRUPTION.check()
        found.append(scores.score(operators))
    return np.array(found)
