"""What a person sees who makes a mistake: one line on standard error, exit status 2, nothing trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from mistakes import MISTAKES
from tensordict import TensorDict

from a2d_lightning.cli.main import main
from a2d_lightning.data import RolloutDataModule

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("stage", "args", "named"),
    MISTAKES,
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistake_ends_in_one_line_that_names_it(
    run: Callable[..., str], stage: str, args: list[str], named: list[str]
) -> None:
    line = run(stage, *args)
    assert [word for word in named if word not in line] == [], line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 99}, "99"),
        ({"operators": ["conv_k3", "conv_k7", "skip"]}, "conv_k7"),
        ({"operators": ["conv_k3"]}, "1 operators for 3 cells"),
        ({"macs": "many"}, "'macs'"),
    ],
)
def test_a_broken_architecture_is_refused_in_one_line(
    run: Callable[..., str], small_architecture: Path, change: dict[str, Any], named: str
) -> None:
    content = json.loads(small_architecture.read_text(encoding="utf-8")) | change
    small_architecture.write_text(json.dumps(content), encoding="utf-8")
    assert named in run("retrain", "--model.architecture", str(small_architecture))


def test_a_folder_that_holds_a_run_is_not_written_over(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "checkpoints" / "last.ckpt").touch()
    line = run("teacher", "--run_dir", str(tmp_path / "old"))
    assert "--ckpt_path last" in line
    assert "--run_dir" in line


def test_a_checkpoint_that_would_run_code_is_refused(run: Callable[..., str], tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "attacked").touch, ())

    torch.save({"state_dict": {}, "x": Attack()}, tmp_path / "evil.ckpt")
    assert "evil.ckpt" in run("teacher", "--ckpt_path", str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "attacked").exists()


def test_a_test_without_weights_says_what_it_needs(run: Callable[..., str]) -> None:
    assert "--ckpt_path" in run("teacher", command="test")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_and_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # rewards of NaN reach L_value through the target and L_policy through the advantage, entropy stays finite
    real = RolloutDataModule.for_learning

    def poisoned(self: Any, rollout: TensorDict) -> Any:
        batch = real(self, rollout)
        if self.trainer.lightning_module.env_steps >= 200:
            batch["next", "reward"].fill_(float("nan"))
        return batch

    monkeypatch.setattr(RolloutDataModule, "for_learning", poisoned)
    config = ["--config", str(CONFIGS / "teacher.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *config, "--run_dir", str(tmp_path / "run"), "--data.evaluation_games", "1"])
    assert exit_.value.code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "policy is nan, value is nan" in line
    assert "environment step 200" in line
    assert not list((tmp_path / "run").glob("metrics-*.csv"))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 200
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())


@pytest.mark.thorough
def test_a_test_of_a_search_describes_the_supernet_that_it_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(CONFIGS / "search.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    args = [*config, "--run_dir", str(tmp_path), "--data.evaluation_games", "1"]
    main(["fit", *args, "--data.total_env_steps", "100", "--data.env_steps_per_epoch", "100"])
    derived = json.loads((tmp_path / "architectures" / "last.json").read_text())
    main(["test", *args, "--ckpt_path", "last"])
    tested = json.loads((tmp_path / "test-sampled.json").read_text())
    # the supernet computes nine operators in each cell, the derived network one
    assert tested["macs"] > 3 * derived["macs"]
    assert f"{tested['macs']:,} MACs a frame" in capsys.readouterr().out


def test_an_error_among_its_own_causes_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RuntimeError("first"), OSError("second")
    first.__cause__, second.__context__ = second, first

    def fail(*_: Any) -> NoReturn:
        raise first

    monkeypatch.setattr("a2d_lightning.cli.main.A2DCLI", fail)
    with pytest.raises(RuntimeError, match="first"):
        main(["fit"])


def test_help_says_what_ckpt_path_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "last: the newest intact one in run_dir; best: the one with the highest score; auto (fit): last" in text
    assert "hpc" not in text
    assert "registry" not in text.replace("model_registry", "")
