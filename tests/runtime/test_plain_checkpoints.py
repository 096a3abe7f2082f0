"""What a checkpoint may hold: everything that is written is read again, and what is not read is named."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from runs import CATCH_ARGS, fit

from a2d_lightning.agent_files import newest_intact, read_agent
from a2d_lightning.modules import TeacherModule
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.plain_checkpoints import dump, load


class Thing:
    """A type that no reader of plain values knows."""


def write(path: Path, **parts: Any) -> Path:
    """Write a checkpoint of a small agent, as any Lightning run with a callback of the user's may."""
    module = TeacherModule("four_conv", game="pong", frame_shape=(4, 42, 42), num_actions=6, total_env_steps=100)
    state = {f"agent.{name}": tensor for name, tensor in module.agent.state_dict().items()}
    torch.save({"state_dict": state, "agent_card": module.card().to_dict(), **parts}, path)
    return path


def test_numbers_of_numpy_become_pythons(tmp_path: Path) -> None:
    content = {"callbacks": {"Mine": {"best": np.float64(1.5), "steps": [(np.int64(3), np.bool_(True))]}}, "epoch": 2}
    (tmp_path / "a.ckpt").write_bytes(dump(content))
    read = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert read == {"callbacks": {"Mine": {"best": 1.5, "steps": [(3, True)]}}, "epoch": 2}
    assert [type(x) for x in (read["callbacks"]["Mine"]["best"], *read["callbacks"]["Mine"]["steps"][0])] == [
        *(float, int, bool)
    ]


@pytest.mark.parametrize(
    ("value", "place", "kind"),
    [
        ({"best": Thing()}, r"callbacks\['Mine'\]\['best'\]", "Thing"),
        ({"seen": [1, (2, np.ones(3))]}, r"callbacks\['Mine'\]\['seen'\]\[1\]\[1\]", r"numpy\.ndarray"),
        (defaultdict(list), r"callbacks\['Mine'\]", r"collections\.defaultdict"),
        ({"path": Path("x")}, r"callbacks\['Mine'\]\['path'\]", "PosixPath"),
    ],
    ids=str,
)
def test_a_value_that_would_not_be_read_again_is_named_when_it_is_saved(value: Any, place: str, kind: str) -> None:
    with pytest.raises(RunFailedError, match=rf"cannot be saved: {place} is a \S*{kind}, which"):
        dump({"epoch": 1, "callbacks": {"Other": {"x": 1.0}, "Mine": value}})


@pytest.mark.parametrize("value", [np.float64(1.0), Thing(), {"x": [Path("x")]}], ids=str)
@pytest.mark.parametrize("part", ["callbacks", "hyper_parameters"])
def test_an_agent_is_whole_where_a_callbacks_state_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str, value: Any
) -> None:
    path = write(tmp_path / "last.ckpt", **{part: {"Mine": value, "Other": 3}})
    with caplog.at_level("INFO"):
        card, weights = read_agent(path)
        assert newest_intact(tmp_path) == path
    plain_card, plain_weights = read_agent(write(tmp_path / "plain.ckpt"))
    assert card == plain_card
    assert weights.keys() == plain_weights.keys()
    assert f"{part}['Mine'] contains a " in caplog.text
    assert "damaged" not in caplog.text
    assert load(path)[part] == {"Other": 3}


def test_an_unread_value_elsewhere_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", optimizer_states=[{"lr": np.float64(1e-3)}])
    with pytest.raises(SettingError, match=r"optimizer_states\[0\]\['lr'\] is a numpy\S+; .*plain values"):
        read_agent(path)


class NumpyState(L.Callback):
    """A callback as users write them: its state is a mean by NumPy."""

    def __init__(self) -> None:
        self.mean: Any = np.float64(0.5)

    def state_dict(self) -> dict[str, Any]:
        """See Lightning."""
        return {"mean": self.mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See Lightning."""
        self.mean = np.float64(state_dict["mean"])


class ThingState(NumpyState):
    """One whose state nobody reads."""

    def __init__(self) -> None:
        self.mean = Thing()


def test_a_run_with_a_callback_that_keeps_numbers_of_numpy_resumes(tmp_path: Path) -> None:
    args = [*CATCH_ARGS, f"--trainer.callbacks+={__name__}.NumpyState"]
    fit("teacher", tmp_path, 100, *args)
    fit("teacher", tmp_path, 200, *args, "--ckpt_path", "last")
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 200
    assert saved["callbacks"]["NumpyState"] == {"mean": 0.5}


def test_a_run_that_cannot_be_saved_ends_with_a_line_at_its_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fit("teacher", tmp_path, 400, *CATCH_ARGS, f"--trainer.callbacks+={__name__}.ThingState")
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "callbacks['ThingState']['mean'] is a test_plain_checkpoints.Thing" in line
    assert "400" not in line
    assert not list((tmp_path / "checkpoints").glob("last*.ckpt"))
