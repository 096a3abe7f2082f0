"""Fixtures that several files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from a2d_lightning.cli.main import main
from a2d_lightning.models.networks import count_parameters
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan, operator_macs


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    # torch's threads would spin against the emulator's
    torch.set_num_threads(1)


@pytest.fixture
def small_architecture(tmp_path: Path) -> Path:
    """Path of a JSON with three cells for 42x42 frames."""
    plan, shape, operators = Plan((1, 1, 1), (8, 16, 32)), (4, 42, 42), ("conv_k3", "ir_k3_e1", "skip")
    table, fixed = operator_macs(plan, shape)
    names = list(OPERATORS)
    macs = int(sum(table[i, names.index(name)] for i, name in enumerate(operators))) + fixed
    draft = Architecture(operators, plan, shape, macs, 0)
    architecture = Architecture(
        operators, plan, shape, macs, count_parameters(draft.build(shape)), "pong", "pong_four_conv_42", 0
    )
    path = tmp_path / "architecture.json"
    architecture.save(path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``fit`` of a stage with the smoke overlay; returns the error line."""

    configs = Path(__file__).parent.parent / "configs"

    def stop(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("training started")

    def call(stage: str, *args: str, command: str = "fit") -> str:
        monkeypatch.setattr("a2d_lightning.data.RolloutDataModule.train_dataloader", stop)
        config = ["--config", str(configs / f"{stage}.yaml"), "--config", str(configs / "scale" / "smoke.yaml")]
        run_dir = [] if any(arg.startswith("--run_dir") for arg in args) else ["--run_dir", str(tmp_path / "run")]
        with pytest.raises(SystemExit) as exit_:
            main([command, *config, *run_dir, *args])
        assert exit_.value.code == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        return errors[0]

    return call
