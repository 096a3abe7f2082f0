"""Export: a checkpoint becomes weights and a card that teach and play as the agent did."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CATCH_ARGS, fit
from small_supernets import counted
from torch import Tensor

from a2d_lightning.agent_files import AgentCard, FrozenTeacher, load_teacher
from a2d_lightning.cli.export import export
from a2d_lightning.cli.main import main
from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import count_parameters
from a2d_lightning.modules import AgentModule, SearchModule, TeacherModule
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.errors import SettingError

FRAME: FrameShape = (4, 42, 42)
CARD = AgentCard("pong", "four_conv", FRAME, 6, 1000)
SETTINGS: dict[str, Any] = {"game": "pong", "frame_shape": FRAME, "num_actions": 6, "total_env_steps": 1000}


def random_pixels() -> Tensor:
    return torch.randint(256, (3, *FRAME), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def load(path: Path) -> FrozenTeacher:
    return load_teacher(str(path), "pong", FRAME, 6)


def checkpoint_of(module: Any, path: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


def test_an_exported_checkpoint_teaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    module = TeacherModule("four_conv", **SETTINGS)
    module.env_steps = 77
    checkpoint_of(module, tmp_path / "run.ckpt")
    test = {"score": 3.5, "score_low95": 3.0, "score_high95": 4.0, "games": 30.0, "actions": "sampled", "macs": 1.0}
    (tmp_path / "test.json").write_text(json.dumps(test))
    args = f"--ckpt_path {tmp_path}/run.ckpt --output {tmp_path}/out/agent --test {tmp_path}/test.json".split()
    export([*args, "--trained_by", "fit --config teacher.yaml"])
    assert "agent.safetensors: four_conv for pong" in capsys.readouterr().out

    card = json.loads((tmp_path / "out" / "agent.json").read_text())
    assert {name: card[name] for name in CARD.to_dict()} == replace(CARD, env_steps=77).to_dict()
    assert card["macs"] == count_macs(module.agent.backbone, torch.Size(FRAME))
    assert card["parameters"] == count_parameters(module.agent.backbone)
    assert card["score"] == {name: test[name] for name in ("score", "score_low95", "score_high95", "games", "actions")}
    assert card["trained_by"] == "fit --config teacher.yaml"
    with torch.no_grad():
        expected = module.agent.eval()(random_pixels())
        # the checkpoint itself teaches as well
        for file in (tmp_path / "out" / "agent.safetensors", tmp_path / "run.ckpt"):
            for new, old in zip(load(file)(random_pixels()), expected, strict=True):
                assert torch.equal(new, old)


@pytest.mark.parametrize("kind", ["batch", "running", "per_step", "group", "none"])
def test_a_retrained_agent_is_exported_with_architecture_and_normalization(tmp_path: Path, kind: Any) -> None:
    counted(("skip", "conv_k3"), Plan((1, 1), (8, 16)), FRAME).save(tmp_path / "a.json")
    torch.manual_seed(0)
    module = AgentModule(str(tmp_path / "a.json"), **SETTINGS, normalization=kind)
    for name, statistics in module.agent.named_buffers():
        if "running" in name:
            statistics.uniform_(0.5, 1.5)
    checkpoint_of(module, tmp_path / "run.ckpt")
    export(["--ckpt_path", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / "agent")])
    assert json.loads((tmp_path / "agent.json").read_text())["normalization"] == kind
    exported = load(tmp_path / "agent.safetensors")
    with torch.no_grad():
        evaluated = module.agent.eval()(random_pixels())
        assert all(answer.std(0).max() > 0 for answer in evaluated)
        assert all(torch.equal(new, old) for new, old in zip(exported(random_pixels()), evaluated, strict=True))
        alone = [torch.cat(part) for part in zip(*(exported(frame[None]) for frame in random_pixels()), strict=True)]
        for mine, together in zip(alone, evaluated, strict=True):
            torch.testing.assert_close(mine, together, rtol=1e-5, atol=1e-5 * float(together.abs().max()))


def test_a_supernet_is_not_exported(tmp_path: Path) -> None:
    module = SearchModule(Plan((1, 1, 1), (4, 4, 4)), **SETTINGS)
    checkpoint_of(module, tmp_path / "run.ckpt")
    with pytest.raises(SettingError, match="supernet"):
        export(["--ckpt_path", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / "agent")])
    assert not list(tmp_path.glob("agent*"))


def test_names_that_differ_after_a_dot_are_two_files(tmp_path: Path) -> None:
    for seed, name in enumerate(("pong_lr0.1", "pong_lr0.5.safetensors")):
        torch.manual_seed(seed)
        checkpoint_of(TeacherModule("four_conv", **SETTINGS), tmp_path / "run.ckpt")
        export(["--ckpt_path", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / name)])
    files = ["pong_lr0.1.json", "pong_lr0.1.safetensors", "pong_lr0.5.json", "pong_lr0.5.safetensors"]
    assert sorted(path.name for path in tmp_path.glob("pong*")) == files
    assert (tmp_path / files[1]).read_bytes() != (tmp_path / files[3]).read_bytes()
    load(tmp_path / files[3])


def test_another_agent_is_not_replaced(tmp_path: Path) -> None:
    args = ["--ckpt_path", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / "agent")]
    checkpoint_of(TeacherModule("four_conv", **SETTINGS), tmp_path / "run.ckpt")
    for _ in range(2):  # the same agent again is no loss
        export([*args, "--trained_by", "me"])
    before = (tmp_path / "agent.safetensors").read_bytes(), (tmp_path / "agent.json").read_bytes()
    checkpoint_of(TeacherModule("four_conv", **SETTINGS), tmp_path / "run.ckpt")
    with pytest.raises(SettingError, match=r"--output: .*agent\.safetensors' already exists with other weights"):
        export(args)
    assert ((tmp_path / "agent.safetensors").read_bytes(), (tmp_path / "agent.json").read_bytes()) == before


@pytest.mark.parametrize("content", ["{", "{}", "[]", None])
def test_a_wrong_test_file_is_refused(tmp_path: Path, content: str | None) -> None:
    checkpoint_of(TeacherModule("four_conv", **SETTINGS), tmp_path / "run.ckpt")
    if content is not None:
        (tmp_path / "test.json").write_text(content)
    args = ["--ckpt_path", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / "agent")]
    with pytest.raises(SettingError, match="--test"):
        export([*args, "--test", str(tmp_path / "test.json")])


def test_a_missing_checkpoint_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--ckpt_path: there is no agent"):
        export(["--ckpt_path", str(tmp_path / "no.ckpt"), "--output", str(tmp_path / "agent")])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained agent of Catch, as ``export`` writes it; its checkpoint lies in ``run``."""
    folder = tmp_path_factory.mktemp("exported")
    fit("teacher", folder / "run", 100, *CATCH_ARGS)
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    export(["--ckpt_path", str(checkpoint), "--output", str(folder / "agent")])
    return folder


def played(command: str, run_dir: Path, ckpt_path: Path | str, *args: str) -> None:
    """Run ``test`` or ``validate`` of Catch's agent."""
    configs = ["--config", "configs/teacher.yaml", "--config", "configs/scale/smoke.yaml", *CATCH_ARGS]
    main(
        [
            command,
            *configs,
            "--data.evaluation_games",
            "8",
            "--run_dir",
            str(run_dir),
            *args,
            "--ckpt_path",
            str(ckpt_path),
        ]
    )


def test_an_exported_agent_is_tested_like_its_checkpoint(exported: Path, tmp_path: Path) -> None:
    for name, file in (("a", exported / "agent.safetensors"), ("b", exported / "run" / "checkpoints" / "last.ckpt")):
        played("test", tmp_path / name, file)
    results = [json.loads((tmp_path / name / "test-sampled.json").read_text(encoding="utf-8")) for name in "ab"]
    assert results[0] == results[1]
    assert (results[0]["games"], results[0]["env_steps"]) == (8, 100)
    played("validate", tmp_path / "c", exported / "agent.safetensors")


@pytest.mark.parametrize(
    ("command", "args", "named"),
    [
        ("test", ["--model.network", "vanilla"], "the checkpoint's network is"),
        ("fit", [], "an exported agent without training state"),
    ],
)
def test_an_exported_agent_that_does_not_fit_is_refused_in_a_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, args: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        played(command, tmp_path / "run", exported / "agent.safetensors", *args)
    assert refused.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert named in line


def test_a_bundled_agent_is_tested_by_its_name(tmp_path: Path) -> None:
    configs = [
        "--config",
        "configs/teacher.yaml",
        "--config",
        "configs/scale/laptop.yaml",
        "--model.network",
        "four_conv",
    ]
    args = ["--trainer.fast_dev_run", "1", "--data.evaluation_games", "1", "--data.max_env_steps_per_game", "50"]
    main(["validate", *configs, *args, "--ckpt_path", "pong_four_conv_42", "--run_dir", str(tmp_path)])
