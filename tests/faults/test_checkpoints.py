"""Checkpoints on a disk that fails: the old file stays, damage is seen, the one before is used."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from a2d_lightning.agent_files import newest_intact, read_agent
from a2d_lightning.modules import TeacherModule
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.checkpoints import kept
from a2d_lightning.runtime.errors import SettingError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of an agent."""
    module = TeacherModule("four_conv", game="pong", frame_shape=(4, 42, 42), num_actions=6, total_env_steps=100)
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    state = {f"agent.{name}": tensor for name, tensor in module.agent.state_dict().items()}
    torch.save({"state_dict": state, "agent_card": module.card().to_dict()}, path)
    return path


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_whole_checkpoint_passes(checkpoint: Path) -> None:
    read_agent(checkpoint)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_torn_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, part: float, survived: Callable[..., None]
) -> None:
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(checkpoint.read_bytes()[: int(part * checkpoint.stat().st_size)])
    with pytest.raises(SettingError) as refused:
        read_agent(torn)
    survived("checkpoint torn: refused", "torn.ckpt" in str(refused.value))


def test_a_flipped_bit_is_refused_wherever_it_matters(
    checkpoint: Path, tmp_path: Path, survived: Callable[..., None]
) -> None:
    content = checkpoint.read_bytes()
    whole = torch.load(checkpoint, weights_only=True)
    with zipfile.ZipFile(checkpoint) as archive:
        # of a record's bytes none may differ; around them are headers, names and padding
        records = [(entry.header_offset, entry.compress_size) for entry in archive.infolist() if entry.compress_size]
    largest = max(records, key=lambda record: record[1])
    places = torch.randint(len(content), (60,), generator=torch.Generator().manual_seed(0)).tolist()
    places += [largest[0] + 200 + largest[1] // 2]
    flipped = tmp_path / "flipped.ckpt"
    refusals = []
    for place in places:
        flipped.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            read_agent(flipped)
        except SettingError as error:
            refusals.append(str(error))
            ok = "flipped.ckpt" in refusals[-1]
        else:
            loaded = torch.load(flipped, weights_only=True)["state_dict"]
            ok = all(torch.equal(loaded[name], tensor) for name, tensor in whole["state_dict"].items())
        survived("bit of a checkpoint flipped: refused, or it held nothing", ok, f"byte {place}")
    assert len(refusals) > len(places) // 2


def test_what_is_damaged_is_named_and_the_one_before_is_used(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("last-1", "last-2", "last-10"):
        shutil.copy(checkpoint, tmp_path / f"{name}.ckpt")
    (tmp_path / "last-old.ckpt").touch()  # a user's own
    (tmp_path / "last.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    assert [path.stem for path in kept(tmp_path)] == ["last", "last-1", "last-2", "last-10"]
    with caplog.at_level("INFO"):
        assert newest_intact(tmp_path) == tmp_path / "last-1.ckpt"
    assert "last.ckpt: is truncated" in caplog.text
    assert "last-1.ckpt" in caplog.text


def test_only_damaged_checkpoints_are_an_error_and_none_at_all_is_not(checkpoint: Path, tmp_path: Path) -> None:
    assert newest_intact(tmp_path) is None
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(SettingError, match="every checkpoint"):
        newest_intact(tmp_path)


def limit_files_to(size: int) -> None:
    """As a full disk: writes beyond fail."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_training_goes_on_where_a_checkpoint_cannot_be_written_and_its_end_is_an_error(
    tmp_path: Path, survived: Callable[..., None]
) -> None:
    command = [
        *(sys.executable, "-m", "a2d_lightning", "fit", "--config", "configs/teacher.yaml"),
        *("--config", "configs/scale/smoke.yaml", "--run_dir", str(tmp_path), "--trainer.limit_val_batches", "0"),
        *("--trainer.log_every_n_steps", "1", "--data.total_env_steps", "4000", "--data.env_steps_per_epoch", "2000"),
    ]
    subprocess.run([*command, "--trainer.max_epochs", "1"], cwd=ROOT, check=True, capture_output=True)
    old = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    done = subprocess.run(
        [*command, "--ckpt_path", "last"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: limit_files_to(10_000),
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "next.ckpt could not be written (File too large); training continues" in done.stderr
    assert "TensorBoard's file could not be written (File too large); later values are not written" in done.stderr
    assert "unwritten rows are kept in memory" in done.stderr
    assert "4,000 of 4,000 environment steps" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the end of the run could not be saved" in line
    survived(
        "disk full: training goes on, the old file remains",
        (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == old,
    )
