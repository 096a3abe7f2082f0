"""One run at a time in a folder, and a killed one blocks nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from runs import CATCH_ARGS, fit

from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.run_folder import RunFolder

pytestmark = pytest.mark.thorough

HOLD = """
import sys, time
from pathlib import Path
from a2d_lightning.runtime.run_folder import RunFolder
folder = RunFolder()
folder.claim(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("teacher", tmp_path, 100, *CATCH_ARGS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SystemExit) as refused:
            fit("teacher", tmp_path, 200, *CATCH_ARGS, "--ckpt_path", "last")
        assert refused.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "another run is writing to" in line
        assert str(tmp_path) in line
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        other.kill()
    fit("teacher", tmp_path, 200, *CATCH_ARGS, "--ckpt_path", "last")


def test_a_folder_that_was_released_can_be_claimed_again(tmp_path: Path) -> None:
    first, second = RunFolder(), RunFolder()
    first.claim(tmp_path)
    with pytest.raises(SettingError, match="run_dir: another run"):
        second.claim(tmp_path)
    first.release()
    first.release()
    second.claim(tmp_path)
    second.release()


@pytest.mark.parametrize("stage", ["teacher", "search"])
def test_a_rehearsal_leaves_nothing_that_a_run_would_take_for_its_own(tmp_path: Path, stage: str) -> None:
    fit(stage, tmp_path, 100, "--trainer.fast_dev_run", "2", "--trainer.limit_val_batches", "1")
    assert [path.name for path in tmp_path.rglob("*") if path.name != ".lock"] == []
    fit(stage, tmp_path, 100)


def test_a_sanity_check_derives_no_architecture(tmp_path: Path) -> None:
    fit("search", tmp_path, 100, "--trainer.num_sanity_val_steps", "1", "--trainer.limit_val_batches", "1")
    names = sorted(path.name for path in (tmp_path / "architectures").iterdir())
    assert names == ["best.json", "last.json", "step-000000000100.json"]
