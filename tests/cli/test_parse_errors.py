"""One line for a user's mistake: the setting, what was given, and what would do. Messages are jsonargparse's own."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from a2d_lightning.cli.arguments import whole_numbers
from a2d_lightning.cli.main import main
from a2d_lightning.cli.parse_errors import one_line

KNOWN = ["data.game", "data.num_envs", "model.gamma", "model.distillation"]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command line answers: its only line, without 'error: '."""
    monkeypatch.delenv("A2D_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args: str, config: str | None = None) -> str:
        if config is not None:
            (tmp_path / "c.yaml").write_text(config)
            args = ("--config", "c.yaml", *args)
        with pytest.raises(SystemExit) as ended:
            main(["fit", *args])
        captured = capsys.readouterr()
        assert ended.value.code == 2
        assert captured.out == ""
        # Lightning says so before model and data are built
        lines = [line for line in captured.err.splitlines() if line != "Seed set to 0"]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("data.gaem", "data.game"),
        ("data.num_env", "data.num_envs"),
        ("model.distilation", "model.distillation"),
        ("trainer.max_epoch", "trainer.max_epochs"),
    ],
)
@pytest.mark.parametrize("joint", [" ", "="])
def test_an_unknown_option_names_its_neighbour(told: Callable[..., str], option: str, hint: str, joint: str) -> None:
    line = told("--model", "TeacherModule", *f"--{option}{joint}3".split())
    assert line.startswith(f"{option}: there is no such setting; did you mean {hint}")


@pytest.mark.parametrize(
    ("config", "key", "hint"),
    [
        ("data: {gaem: Pong}", "data.gaem", "data.game"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch", "trainer.max_epochs"),
        ("model: {class_path: SearchModule, init_args: {lamda_cost: 1.0}}", "model.lamda_cost", "model.lambda_cost"),
    ],
)
def test_an_unknown_key_in_a_file_names_its_neighbour(
    told: Callable[..., str], config: str, key: str, hint: str
) -> None:
    line = told(*([] if "class_path" in config else ["--model", "TeacherModule"]), config=config)
    assert line.startswith(f"{key}: there is no such setting; did you mean {hint}")


def test_a_setting_like_no_other_points_to_the_help(told: Callable[..., str]) -> None:
    assert told("--model", "TeacherModule", "--zzz", "1") == (
        "zzz: there is no such setting; `python -m a2d_lightning fit --help` lists the settings."
    )


@pytest.mark.parametrize("config", [None, "model: {class_path: TeacherModule, init_args: {distillation: foo}}"])
def test_a_wrong_choice_lists_the_choices(told: Callable[..., str], config: str | None) -> None:
    args = [] if config else ["--model", "TeacherModule", "--model.distillation", "foo"]
    line = told(*args, config=config)
    assert line.startswith("model.distillation: ")
    for choice in ("foo", "'none'", "'actor'", "'actor+teacher_critic'", "'actor+critic'"):
        assert choice in line


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("data.num_envs", "abc", "PositiveInt"),
        ("data.num_envs", "-1", "v>0"),
        ("data.clip_rewards", "7", "bool"),
        ("model.gamma", "2", "v<=1"),
        ("model.gamma", "x", "float"),
        ("seed_everything", "x", "int"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(
    told: Callable[..., str], option: str, value: str, hint: str
) -> None:
    line = told("--model", "TeacherModule", f"--{option}={value}")
    assert line.startswith(f"{option}: ")
    assert re.search(rf"(?<![\w.]){re.escape(value)}(?![\w.])", line.removeprefix(f"{option}: "))
    assert hint in line


def test_a_wrong_value_inside_a_setting_is_named_with_its_path(told: Callable[..., str]) -> None:
    line = told("--model", "SearchModule", "--model.plan.channels", "[1,a]")
    assert line.startswith("model.plan.channels")
    assert "Got value: a" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "NoModule"], ["model", "NoModule"]),
        ([], ["model", "required"]),
        (["--model", "AgentModule"], ["model", "architecture", "required"]),
        (["--model", "TeacherModule", "--data.game", "Pnog"], ["data.game", "'Pnog'", "pong"]),
        (["--model", "TeacherModule", "--model.network", "resnet19"], ["model.network", "'resnet19'", "resnet20"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Unable to serialize")
def test_other_mistakes_name_setting_and_value(told: Callable[..., str], args: list[str], words: list[str]) -> None:
    line = told(*args)
    assert all(word in line for word in words)
    assert "Namespace(" not in line
    assert "- -" not in line.replace("  ", " ")


@pytest.mark.parametrize("message", ["", "one line", "run_dir: 'a' cannot be written (No space); choose another."])
def test_a_message_that_is_one_line_stays(message: str) -> None:
    assert one_line(message, KNOWN) == message


def test_lines_of_an_unknown_message_are_joined() -> None:
    assert one_line("first\n   second\n\tthird", KNOWN) == "first second third"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], ["--config", "configs/teacher.yaml", "configs/search.yaml", "configs/retrain.yaml"]),
        (["--model", "SearchModule", "--model.tau", "0"], ["model.tau", "TemperatureAnnealing", "initial"]),
        (["--trainer.gradient_clip_val", "1"], ["trainer.gradient_clip_val", "model.gradient_clip_norm"]),
        (["--data.game", "CarRacing-v2"], ["CarRacing-v2", "did you mean CarRacing-v3"]),
        (["--data.game", "Breakot"], ["Breakot", "did you mean breakout"]),
        (["--data.num_envs", "1.5e0"], ["data.num_envs", "1.5e0"]),
    ],
    ids=str,
)
def test_what_is_elsewhere_is_named(told: Callable[..., str], args: list[str], named: list[str]) -> None:
    config = str(Path(__file__).parents[2] / "configs" / "teacher.yaml")
    stage = ["--config", config] if args and "--model" not in args else []
    line = told(*stage, *args)
    assert [word for word in named if word not in line] == [], line


def test_an_overlay_before_its_stage_is_refused(told: Callable[..., str]) -> None:
    configs = Path(__file__).parents[2] / "configs"
    overlay, stage = str(configs / "scale" / "smoke.yaml"), str(configs / "teacher.yaml")
    line = told("--config", overlay, "--config", stage)
    assert line == f"--config: {overlay} is an overlay and comes before {stage}; give it after the stage."


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["nonsense"], "there is no command 'nonsense'; choose one of fit, validate, test, export,"),
        (
            ["compare", "--run_dirs", "a", "b", "--output", "x"],
            "run_dirs: a is not a list; write [a,b], without spaces.",
        ),
    ],
)
def test_commands_are_explained(capsys: pytest.CaptureFixture[str], args: list[str], named: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert f"error: {named}" in capsys.readouterr().err


def test_counts_may_be_written_with_an_exponent() -> None:
    given = [
        "fit",
        "--data.total_env_steps",
        "1e6",
        "--data.num_envs=3.2e1",
        "--model.gamma",
        "1e-1",
        "--run_dir",
        "1e6",
    ]
    assert whole_numbers(given) == [
        *("fit", "--data.total_env_steps", "1000000", "--data.num_envs=32", "--model.gamma", "1e-1", "--run_dir", "1e6")
    ]
