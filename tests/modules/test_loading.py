"""``load_from_checkpoint`` builds a run's module again from its folder. Oracle: the module that ran."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CATCH_ARGS, fit, same

from a2d_lightning.modules import AgentModule, SearchModule, TeacherModule
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.runtime.errors import SettingError

MODULES: dict[str, type[ActorCriticModule]] = {"teacher": TeacherModule, "search": SearchModule, "retrain": AgentModule}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modules that trained, when their training ended."""
    found: list[Any] = []
    real = ActorCriticModule.on_train_end

    def on_train_end(self: ActorCriticModule) -> None:
        found.append(self)
        real(self)

    monkeypatch.setattr(ActorCriticModule, "on_train_end", on_train_end)
    return found


@pytest.mark.parametrize("stage", MODULES)
def test_it_is_the_module_that_ran(stage: str, ran: list[Any], tmp_path: Path, small_architecture: Path) -> None:
    args = [f"--model.architecture={small_architecture}"] if stage == "retrain" else []
    args += ["--model.entropy_coefficient", "0.037", "--seed_everything", "3"]
    fit(stage, tmp_path, 40, *CATCH_ARGS, "--model.distillation", "none", "--model.teacher", "null", *args)
    module: Any
    for cls in (MODULES[stage], ActorCriticModule):
        module = cls.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
        assert type(module) is MODULES[stage]
        assert same(dict(module.state_dict()), dict(ran[0].state_dict()))
        assert module.env_steps == 40
        assert module.coefficients == ran[0].coefficients
        assert module.total_env_steps == 40
    if stage == "search":
        assert module.derive() == ran[0].derive()
        assert torch.equal(module.gumbel_generator.get_state(), ran[0].gumbel_generator.get_state())


def test_arguments_of_the_run_can_be_replaced(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 20, *CATCH_ARGS)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert TeacherModule.load_from_checkpoint(str(path), gamma=0.5).gamma == 0.5
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(TypeError, match="total_env_steps"):
        TeacherModule.load_from_checkpoint(path, network="four_conv")
    assert TeacherModule.load_from_checkpoint(path, network="four_conv", total_env_steps=1).env_steps == 20


def test_another_stages_checkpoint_is_refused(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 20, *CATCH_ARGS)
    with pytest.raises(SettingError, match="is a checkpoint of TeacherModule, not of SearchModule"):
        SearchModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(SettingError, match=r"a\.ckpt was not written by a2d_lightning"):
        TeacherModule.load_from_checkpoint(tmp_path / "a.ckpt")


def test_a_students_own_frames_are_smaller(tmp_path: Path, ran: list[Any]) -> None:
    args = ["--data.game", "Pong", "--data.frames.size", "84", "--model.agent_frame_size", "42", "--model.network"]
    fit("teacher", tmp_path, 20, *args, "four_conv")
    module = TeacherModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert module.frame_shape == ran[0].frame_shape
    assert module.agent_frame_shape == ran[0].agent_frame_shape == (4, 42, 42)
