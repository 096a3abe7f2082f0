"""The first page of help: complete, and there at once."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable

import pytest

from a2d_lightning import __version__
from a2d_lightning.cli.main import A2DCLI, COMMANDS
from a2d_lightning.cli.usage import USAGE


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*args: str) -> None:
        monkeypatch.setattr(sys, "argv", ["a2d_lightning", *args])
        runpy.run_module("a2d_lightning", run_name="__main__")

    return call


def test_every_command_is_named() -> None:
    named = re.findall(r"^  ([a-z_]+)(?= {2,}|$)", USAGE, re.MULTILINE)
    assert named == [*("fit", "validate", "test"), *COMMANDS]
    assert set(A2DCLI.subcommands()) <= set(named)


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_the_first_page_needs_no_torch(option: str) -> None:
    # modules that were imported for it, in a process of its own
    code = f"import runpy, sys; sys.argv[1:] = ['{option}']; runpy.run_module('a2d_lightning', run_name='__main__')"
    code += "; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.rstrip().rpartition("\n")
    assert text.rstrip() == (f"a2d_lightning {__version__}" if option == "--version" else USAGE.rstrip())
    assert not {"torch", "lightning", "jsonargparse", "numpy"} & set(modules.split())


def test_without_a_command_it_is_an_error(start: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        start()
    assert exit_.value.code == USAGE.rstrip()  # which the interpreter prints to stderr, with status 1


def test_the_rest_goes_to_the_command_line(start: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    monkeypatch.setattr("a2d_lightning.cli.main.main", got.append)
    start("fit", "--help")
    assert got == [["fit", "--help"]]
