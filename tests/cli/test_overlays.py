"""Overlays: ``per_model`` merged over the rest of its file, for the model that the command line chooses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from a2d_lightning.cli.main import main
from a2d_lightning.cli.overlays import expand_overlays
from a2d_lightning.modules import SearchModule
from a2d_lightning.runtime.errors import SettingError

OVERLAY = {
    "data": {"num_envs": 4, "frames": {"size": 42}},
    "trainer": {"log_every_n_steps": 5, "callbacks": ["a", "b"]},
    "per_model": {
        "TeacherModule": {"data": {"num_envs": 8, "frames": {"skip": 2}}, "trainer": {"callbacks": ["c"]}},
        "SearchModule": {"model": {"init_args": {"lambda_cost": 0.5}}},
    },
}


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def overlay(tmp_path: Path) -> str:
    return write(tmp_path, "overlay.yaml", OVERLAY)


def expanded(*args: str) -> dict[str, Any]:
    """The content that replaced the last config."""
    return json.loads(expand_overlays(list(args))[-1])


@pytest.mark.parametrize("name", ["TeacherModule", "a2d_lightning.modules.TeacherModule"])
def test_the_models_part_is_merged_over_the_common_part(tmp_path: Path, overlay: str, name: str) -> None:
    stage = write(tmp_path, "stage.yaml", {"model": {"class_path": name}})
    assert expanded("fit", "--config", stage, "--config", overlay) == {
        "data": {"num_envs": 8, "frames": {"size": 42, "skip": 2}},  # mappings join, numbers are replaced
        "trainer": {"log_every_n_steps": 5, "callbacks": ["c"]},  # a list is replaced as a whole
    }


def test_another_model_gets_its_own_part_alone(tmp_path: Path, overlay: str) -> None:
    stage = write(tmp_path, "stage.yaml", {"model": {"class_path": "a2d_lightning.modules.SearchModule"}})
    assert expanded("fit", "--config", stage, "--config", overlay) == {
        "data": OVERLAY["data"],
        "trainer": OVERLAY["trainer"],
        "model": {"init_args": {"lambda_cost": 0.5}},
    }


def test_a_model_without_a_part_gets_the_common_part(tmp_path: Path, overlay: str) -> None:
    stage = write(tmp_path, "stage.yaml", {"model": {"class_path": "a2d_lightning.modules.AgentModule"}})
    assert expanded("fit", "--config", stage, "--config", overlay) == {k: OVERLAY[k] for k in ("data", "trainer")}


def test_an_overlay_before_the_stage_is_refused(tmp_path: Path, overlay: str) -> None:
    # jsonargparse takes the settings of a model for those of the class that a later file names only where it knows one
    stage = write(tmp_path, "stage.yaml", {"model": {"class_path": "SearchModule"}})
    with pytest.raises(SettingError, match=r"overlay\.yaml is an overlay and comes before .*stage\.yaml"):
        expand_overlays(["fit", "--config", overlay, "--config", stage])


@pytest.mark.parametrize("option", [["--model", "SearchModule"], ["--model=a2d_lightning.modules.SearchModule"]])
def test_the_command_line_chooses_the_model_over_the_files(tmp_path: Path, overlay: str, option: list[str]) -> None:
    stage = write(tmp_path, "stage.yaml", {"model": {"class_path": "TeacherModule"}})
    assert expanded("fit", *option, "--config", stage, "--config", overlay)["model"]["init_args"] == {
        "lambda_cost": 0.5
    }


def test_the_last_file_that_names_a_model_chooses(tmp_path: Path, overlay: str) -> None:
    one = write(tmp_path, "one.yaml", {"model": {"class_path": "TeacherModule"}})
    two = write(tmp_path, "two.yaml", {"model": {"class_path": "SearchModule"}})
    three = write(tmp_path, "three.yaml", {"model": {"init_args": {"gamma": 0.9}}})
    args = ["fit", "--config", one, "--config", two, "--config", three, "--config", overlay]
    assert expanded(*args)["model"] == {"init_args": {"lambda_cost": 0.5}}


def test_files_without_per_model_are_left_alone(tmp_path: Path) -> None:
    plain = write(tmp_path, "plain.yaml", {"model": {"class_path": "TeacherModule"}, "data": {"num_envs": 2}})
    args = ["fit", "--config", plain, "--data.num_envs", "3", "--config"]
    assert expand_overlays(args) == args


@pytest.mark.parametrize("form", ["--config={}", "--config {}", "-c {}"])
def test_every_form_of_naming_a_file_is_expanded(overlay: str, form: str) -> None:
    args = expand_overlays(["fit", "--model", "SearchModule", *form.format(overlay).split()])
    assert json.loads(args[-1])["model"] == {"init_args": {"lambda_cost": 0.5}}
    assert args[-2] in ("--config", "-c")


def test_arguments_of_the_caller_are_not_changed(overlay: str) -> None:
    args = ["fit", f"--config={overlay}"]
    expand_overlays(args)
    assert args == ["fit", f"--config={overlay}"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("data: [1, 2\n", "is not YAML"),
        ("a: 1\n b: 2\n", "is not YAML"),
        ("- 1\n- 2\n", "contains no settings"),
        ("", "contains no settings"),
        ("per_model: [1]\n", "per_model"),
        ("per_model: {SearchModule: [1]}\n", "SearchModule"),
        ("per_model: {SearchModule: text}\n", "SearchModule"),
    ],
)
def test_a_file_that_is_no_overlay_is_refused_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    path = write(tmp_path, "broken.yaml", content)
    with pytest.raises(SettingError, match=told) as refusal:
        expand_overlays(["fit", "--model", "SearchModule", "--config", path])
    assert path in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"PK\x03\x04\xff\xfe\x80")
    with pytest.raises(SettingError, match=r"model\.ckpt"):
        expand_overlays(["fit", "--config", str(path)])


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(SettingError, match="cannot be read") as refusal:
        expand_overlays(["fit", "--config", path])
    assert path in str(refusal.value)


def test_numbers_in_an_overlay_are_read_as_in_any_other_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # YAML 1.1 reads 1e-3 as a text, jsonargparse as a number
    settings = {"model": {"class_path": "TeacherModule", "init_args": {"gamma": 0.5, "optimizer": "OPTIMIZER"}}}
    text = yaml.safe_dump(settings).replace("0.5", "5e-1")
    text = text.replace("OPTIMIZER", "{class_path: torch.optim.RMSprop, init_args: {lr: 1e-3}}")
    plain = write(tmp_path, "plain.yaml", text)
    overlay = write(tmp_path, "overlay.yaml", text + "per_model: {}\n")
    printed = []
    for path in (plain, overlay):
        with pytest.raises(SystemExit):
            main(["fit", "--config", path, "--print_config"])
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0]["model"]["init_args"]["gamma"] == 0.5
    assert printed[0]["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.001
    assert printed[1] == printed[0]


def test_the_command_line_uses_the_overlay(tmp_path: Path, overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write(tmp_path, "mine.yaml", {"per_model": {"SearchModule": {"data": {"num_envs": 3}}}})
    with pytest.raises(SystemExit):
        main(["fit", "--model", "SearchModule", f"--config={mine}", "--data.rollout_length", "7", "--print_config"])
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert (data["num_envs"], data["rollout_length"]) == (3, 7)


class MySearch(SearchModule):
    """A user's own search."""


def test_a_subclass_gets_the_part_of_what_it_inherits_from(tmp_path: Path, overlay: str) -> None:
    stage = write(tmp_path, "stage.yaml", {"model": {"class_path": f"{__name__}.MySearch"}})
    assert expanded("fit", "--config", stage, "--config", overlay)["model"] == {"init_args": {"lambda_cost": 0.5}}
    own = write(tmp_path, "own.yaml", {"per_model": {"MySearch": {"data": {"num_envs": 3}}, "SearchModule": {}}})
    assert expanded("fit", "--config", stage, "--config", own) == {"data": {"num_envs": 3}}


def test_a_part_for_no_module_is_refused(tmp_path: Path) -> None:
    stage = write(tmp_path, "stage.yaml", {"model": {"class_path": "SearchModule"}})
    typo = write(tmp_path, "typo.yaml", {"per_model": {"SerachModule": {}}})
    with pytest.raises(SettingError, match=r"per_model\.SerachModule: there is no such module.*SearchModule"):
        expand_overlays(["fit", "--config", stage, "--config", typo])


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    twice = write(tmp_path, "twice.yaml", "data:\n  num_envs: 3\n  game: Pong\n  num_envs: 4\n")
    with pytest.raises(SettingError, match=r"twice\.yaml.*'num_envs' is given twice.*line 4"):
        expand_overlays(["fit", "--config", twice])
