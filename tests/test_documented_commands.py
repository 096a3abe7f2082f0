"""Every command in README and docs runs: at smoke scale, in the order of its page, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>[^\n]*) -->\n)?```bash\n(?P<text>.*?)```", re.DOTALL)
SMALL = ["--data.total_env_steps", "20", "--data.env_steps_per_epoch", "20", "--data.evaluation_games", "1"]
"""Settings that end a run after its first rollout."""


def commands(page: Path, marked: bool = False) -> list[str]:
    """Commands of a page's blocks: of those that are marked with what they need, or of the others."""
    found = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if (block["needs"] is not None) == marked:
            text = block["text"].replace("\\\n", " ")
            found += [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]
    return found


def smaller(command: str) -> list[str]:
    """The command's words, with settings that make it small."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "a2d_lightning"], f"{command!r}: mark it with what it needs"
    if words[3] in ("fit", "test", "validate"):
        small = list(SMALL) if words[3] == "fit" else SMALL[-2:]
        if "configs/random.yaml" not in words and words[3] == "fit":
            small += ["--data.num_envs", "4", "--data.rollout_length", "5", "--trainer.log_every_n_steps", "1"]
            small += ["--model.algorithm", "A2C"] if any("laptop" in word for word in words) else []
        words += [*small, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    return [sys.executable, *words[1:]]


def test_blocks_are_found_and_marked() -> None:
    assert len(commands(ROOT / "README.md")) >= 2
    assert len(commands(ROOT / "docs" / "getting-started.md")) >= 6


MARKED = [
    command for page in PAGES for command in commands(page, marked=True) if "a2d_lightning fit --config" in command
]


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in dict.fromkeys(MARKED) if "my_" not in each])
def test_settings_of_commands_that_need_more_are_known(command: str, tmp_path: Path) -> None:
    words = [*shlex.split(command.replace("$i", "0")), "--print_config"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = [sys.executable, *words[words.index("-m") :]]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in commands(page):
        words = smaller(command)
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_the_operator_of_the_documentation_is_searched_and_retrained(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for block in re.finditer(r"```(?:python|yaml)\n# (?P<path>\S+)\n(?P<text>.*?)```", text, re.DOTALL):
        path = tmp_path / block["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(block["text"], encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    operators = [each for each in commands(ROOT / "docs" / "extending.md", marked=True) if "my_operators" in each]
    assert len(operators) == 2
    for command in operators:
        words = [
            *smaller(command),
            "--model.teacher",
            "null",
            "--model.distillation",
            "none",
            "--data.frames.size",
            "42",
        ]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_the_search_of_the_python_page_runs(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "search_from_python.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, "160"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Architecture(operators=(" in done.stdout


@pytest.mark.slow
def test_the_game_of_the_python_page_is_played(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "play_from_python.py"), "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(";") == 30
