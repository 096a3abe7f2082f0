"""Settings of listed callbacks by their class's name. Oracle: the list written out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from a2d_lightning.cli.callback_settings import changed_callbacks, from_arguments
from a2d_lightning.cli.overlays import expand_overlays
from a2d_lightning.runtime.errors import SettingError

LIST: list[dict[str, Any]] = [
    {"class_path": "a2d_lightning.callbacks.TemperatureAnnealing", "init_args": {"initial": 5.0, "decay": 0.98}},
    {"class_path": "a2d_lightning.callbacks.EnvStepsProgress"},
]


def with_callbacks(callbacks: Any) -> dict[str, Any]:
    return {"run_dir": "x", "trainer": {"log_every_n_steps": 5, "callbacks": callbacks}}


def test_a_mapping_changes_the_list_before_it() -> None:
    changes = {"TemperatureAnnealing": {"initial": 3.0, "num_decays": 7}, "EnvStepsProgress": {"log_every_seconds": 1}}
    given = [with_callbacks(LIST), {"data": {}}, with_callbacks(changes)]
    annealing = {"initial": 3.0, "decay": 0.98, "num_decays": 7}
    expected = [
        {"class_path": "a2d_lightning.callbacks.TemperatureAnnealing", "init_args": annealing},
        {"class_path": "a2d_lightning.callbacks.EnvStepsProgress", "init_args": {"log_every_seconds": 1}},
    ]
    assert changed_callbacks(given) == [*given[:2], with_callbacks(expected)]
    assert LIST[0]["init_args"] == {"initial": 5.0, "decay": 0.98}  # the argument is not modified


def test_changes_add_up_and_a_new_list_forgets_them() -> None:
    first, second = {"TemperatureAnnealing": {"initial": 3.0}}, {"TemperatureAnnealing": {"decay": 0.5}}
    *_, both, last = changed_callbacks([with_callbacks(c) for c in (LIST, first, second, LIST)])
    assert both["trainer"]["callbacks"][0]["init_args"] == {"initial": 3.0, "decay": 0.5}
    assert last["trainer"]["callbacks"] == LIST


def test_one_callback_in_place_of_a_list_is_left_alone() -> None:
    one = with_callbacks({"class_path": "a2d_lightning.callbacks.RankGuard", "init_args": {}})
    assert changed_callbacks([with_callbacks(LIST), one, {"trainer": None}]) == [
        with_callbacks(LIST),
        one,
        {"trainer": None},
    ]


def test_changes_apply_to_what_replaced_the_list() -> None:
    one = {"class_path": "a2d_lightning.callbacks.RunCheckpoint"}
    expected = [{"class_path": "a2d_lightning.callbacks.RunCheckpoint", "init_args": {"keep": 2}}]
    changes = with_callbacks({"RunCheckpoint": {"keep": 2}})
    for replacing in (one, [one], ["a2d_lightning.callbacks.RunCheckpoint"], "a2d_lightning.callbacks.RunCheckpoint"):
        given = [with_callbacks(LIST), with_callbacks(replacing), changes]
        assert changed_callbacks(given)[-1] == with_callbacks(expected)
    with pytest.raises(SettingError, match="they list none"):
        changed_callbacks([with_callbacks(LIST), with_callbacks(None), changes])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"RankGuard": {"timeout_seconds": 5}},
            r"callbacks\.RankGuard: there is no such callback in the configs; they list",
        ),
        ({"EnvStepsProgress": 3}, r"trainer\.callbacks\.EnvStepsProgress: "),
    ],
)
def test_what_is_not_listed_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError, match=line):
        changed_callbacks([with_callbacks(LIST), with_callbacks(changes)])


def test_options_are_taken_from_the_command_line() -> None:
    args = ["fit", "--trainer.callbacks.TemperatureAnnealing.initial", "3", "--run_dir", "x"]
    args += ["--trainer.callbacks.RunCheckpoint.keep=2", "--trainer.callbacks.initial", "4"]
    others, changes = from_arguments(args)
    assert others == ["fit", "--run_dir", "x", "--trainer.callbacks.initial", "4"]
    assert changes == {"TemperatureAnnealing": {"initial": 3}, "RunCheckpoint": {"keep": 2}}
    with pytest.raises(SettingError, match=r"--trainer\.callbacks\.RunCheckpoint\.keep: a value must follow"):
        from_arguments(["--trainer.callbacks.RunCheckpoint.keep"])


def test_an_option_comes_after_the_configs_and_before_the_rest() -> None:
    args = ["fit", "--config", "configs/search.yaml", "--config", "configs/scale/minatar.yaml"]
    args += ["--trainer.callbacks.TemperatureAnnealing.initial=3", "--run_dir", "x"]
    expanded = expand_overlays(args)
    assert expanded[-2:] == ["--run_dir", "x"]
    listed = json.loads(expanded[-3])["trainer"]["callbacks"]
    original = yaml.safe_load(Path("configs/search.yaml").read_text(encoding="utf-8"))["trainer"]["callbacks"]
    assert [each["class_path"] for each in listed] == [each["class_path"] for each in original]
    assert listed[0]["init_args"] == {"initial": 3, "decay": 0.98, "num_decays": 80}


def test_without_a_config_there_is_nothing_to_change() -> None:
    with pytest.raises(SettingError, match="they list none"):
        expand_overlays(["fit", "--trainer.callbacks.TemperatureAnnealing.initial=3"])


def test_it_reaches_the_callback(run: Callable[..., str]) -> None:
    error = run("search", "--trainer.callbacks.TemperatureAnnealing.initial", "-1")
    assert "TemperatureAnnealing: initial -1" in error
