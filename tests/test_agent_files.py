"""Teachers: files in and out, what is refused, frozen answers, kinds of normalization."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_supernets import counted
from torch import Tensor, nn

from a2d_lightning.agent_files import (
    AgentCard,
    FrozenTeacher,
    bundled_teachers,
    check_teacher,
    load_teacher,
    load_weights,
    read_agent,
    write_agent,
)
from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.networks import ActorCritic, initialize
from a2d_lightning.models.normalization import ChannelAffine, PerStepBatchNorm2d, RunningBatchNorm2d
from a2d_lightning.modules import AgentModule, SearchModule, TeacherModule
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.errors import SettingError

FRAME: FrameShape = (4, 42, 42)
CARD = AgentCard("pong", "four_conv", FRAME, 6, 1000)
SETTINGS: dict[str, Any] = {"game": "pong", "frame_shape": FRAME, "num_actions": 6, "total_env_steps": 1000}

NORMALIZATIONS: dict[str, type[nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "running": RunningBatchNorm2d,
    "per_step": PerStepBatchNorm2d,
    "group": nn.GroupNorm,
    "none": ChannelAffine,
}


def random_pixels(batch: int = 3, frame: FrameShape = FRAME) -> Tensor:
    return torch.randint(256, (batch, *frame), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def agent() -> ActorCritic:
    torch.manual_seed(0)
    agent = initialize(CARD.build()).eval()
    with torch.no_grad():
        agent.actor.weight.mul_(100)  # a policy that differs from frame to frame
    return agent


@pytest.fixture
def path(tmp_path: Path, agent: ActorCritic) -> Path:
    """A teacher's file, its card beside it."""
    write_agent(tmp_path / "teacher.safetensors", agent, CARD.to_dict())
    return tmp_path / "teacher.safetensors"


def load(path: Path | str, **other: Any) -> FrozenTeacher:
    return load_teacher(str(path), **{"game": "pong", "frame_shape": FRAME, "num_actions": 6, **other})


def refusal(path: Path | str, **other: Any) -> str:
    """The line that refuses a teacher."""
    with pytest.raises(SettingError) as refused:
        load(path, **other)
    line = str(refused.value)
    assert "\n" not in line
    assert Path(path).name in line
    return line


def rewrite_card(path: Path, **fields: Any) -> None:
    card = path.with_suffix(".json")
    content = {**json.loads(card.read_text()), **fields}
    card.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def checkpoint_of(module: Any, path: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(path: Path, agent: ActorCritic) -> None:
    card, weights = read_agent(path)
    assert card == CARD
    again = card.build().eval()
    load_weights(again, weights, "again")
    with torch.no_grad():
        for old, new in zip(agent(random_pixels()), again(random_pixels()), strict=True):
            assert torch.equal(old, new)


def test_a_loaded_teacher_answers_as_the_agent_did(path: Path, agent: ActorCritic) -> None:
    with torch.no_grad():
        for old, new in zip(agent(random_pixels()), load(path)(random_pixels()), strict=True):
            assert old.std() > 0
            assert torch.equal(old, new)


def test_a_derived_agent_is_read_with_its_architecture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = Architecture(("skip", "ir_k5_e3"), Plan((1, 1), (4, 8)), FRAME, macs=0, parameters=0)
    card = AgentCard("pong", "derived", FRAME, 6, 5, architecture.to_dict())
    agent = card.build().eval()
    write_agent(tmp_path / "derived.safetensors", agent, card.to_dict())
    with torch.no_grad():
        answers = zip(agent(random_pixels()), load(tmp_path / "derived.safetensors")(random_pixels()), strict=True)
        assert all(torch.equal(old, new) for old, new in answers)


def test_a_teacher_that_cannot_be_written_is_refused(tmp_path: Path, agent: ActorCritic) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    for target in (tmp_path / "file" / "a.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(SettingError, match="cannot be written"):
            write_agent(target, agent, CARD.to_dict())


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_teacher_of_another_game_is_refused(path: Path) -> None:
    line = refusal(path, game="breakout")
    assert "plays pong, not breakout" in line
    assert "--data.game breakout" in line


def test_a_game_is_the_same_whichever_module_registers_it() -> None:
    check_teacher(replace(CARD, game="minatar:Users/Game-v0"), "teacher", "Users/Game-v0", CARD.frame_shape, 6)
    with pytest.raises(SettingError, match=r"plays .*Game-v1, not Users/Game-v0"):
        check_teacher(replace(CARD, game="a:Users/Game-v1"), "teacher", "Users/Game-v0", CARD.frame_shape, 6)


def test_a_teacher_with_other_actions_is_refused(path: Path) -> None:
    assert "6 actions, but data.game has 4" in refusal(path, num_actions=4)


@pytest.mark.parametrize("frame", [(4, 84, 42), (4, 42, 84), (4, 64, 64), (4, 21, 21), (3, 42, 42), (4, 43, 43)])
def test_frames_that_are_no_multiple_of_the_teachers_are_refused(path: Path, frame: FrameShape) -> None:
    assert "to a multiple of 42" in refusal(path, frame_shape=frame)


@pytest.mark.parametrize("name", ["nobody", "no/such/file.ckpt", ""])
def test_an_unknown_teacher_is_refused(name: str) -> None:
    assert f"{name!r} is neither a file nor a bundled teacher" in refusal(name)


def test_a_missing_card_is_refused(path: Path) -> None:
    path.with_suffix(".json").unlink()
    assert "teacher.json is missing" in refusal(path)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_truncated_weights_are_refused(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])
    assert "not a readable agent file" in refusal(path)


def test_corrupted_weights_are_refused(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:16] = b"\xff" * 16
    path.write_bytes(content)
    assert "not a readable agent file" in refusal(path)


@pytest.mark.parametrize("content", [b"{", b"", b"[1, 2]", b"\xff\xfe\x80", b"null"])
def test_a_broken_card_is_refused(path: Path, content: bytes) -> None:
    path.with_suffix(".json").write_bytes(content)
    refusal(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("game", 3),
        ("game", ...),
        ("network", None),
        ("network", "resnet19"),
        ("network", "derived"),
        ("num_actions", "6"),
        ("env_steps", 1.5),
        ("frame_shape", "4x42x42"),
        ("frame_shape", [4, 42]),
        ("frame_shape", [4, 42, "42"]),
        ("frame_shape", [4, 0, 42]),
        ("architecture", "skip"),
    ],
)
def test_a_card_of_wrong_fields_is_refused(path: Path, field: str, value: Any) -> None:
    rewrite_card(path, **{field: value})
    with pytest.raises(SettingError) as refused:
        load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_teacher_whose_weights_are_not_finite_is_refused(path: Path, broken: float) -> None:
    agent = CARD.build()
    with torch.no_grad():
        agent.critic.weight[0, 3] = broken
    write_agent(path, agent, CARD.to_dict())
    assert "non-finite weights (critic.weight)" in refusal(path)


def test_weights_of_other_shapes_are_refused(path: Path) -> None:
    other = ActorCritic(nn.Sequential(nn.Flatten(), nn.Linear(4 * 42 * 42, 8)), FRAME, 6)
    write_agent(path, other, CARD.to_dict())
    assert "do not fit" in refusal(path)
    write_agent(path, replace(CARD, num_actions=4).build(), CARD.to_dict())
    assert "do not fit" in refusal(path)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "pickle", "old torch"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, writer: str) -> None:
    path, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    content = {"agent_card": CARD.to_dict(), "state_dict": {"agent.x": Evil(marker)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    why = "not a readable agent file" if writer == "torch" else "truncated or not a checkpoint"  # which are archives
    assert why in refusal(path)
    assert not marker.exists()
    # the file does what it is made for
    with path.open("rb") as file:
        torch.load(path, weights_only=False) if writer != "pickle" else pickle.load(file)
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(100), bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.ckpt").write_bytes(content)
    refusal(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, {"agent_card": "pong"}, [1, 2], torch.zeros(3), {"agent_card": {}, "state_dict": 3}]
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    refusal(tmp_path / "other.ckpt")


# --- frozen answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 3])
def test_larger_frames_are_averaged_to_the_teachers_size(path: Path, agent: ActorCritic, times: int) -> None:
    big = (4, 42 * times, 42 * times)
    pixels = random_pixels(frame=big)
    # the mean of each square by slices, rounded half to even as cv2 and torch do
    parts = [pixels[:, :, i::times, j::times].double() for i in range(times) for j in range(times)]
    averaged = (torch.stack(parts).sum(0) / times**2).round().to(torch.uint8)
    with torch.no_grad():
        for expected, answer in zip(agent(averaged), load(path, frame_shape=big)(pixels), strict=True):
            assert torch.equal(answer, expected)


def test_frames_that_were_only_enlarged_lose_nothing(path: Path) -> None:
    pixels = random_pixels()
    enlarged = pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)
    for small, big in zip(load(path)(pixels), load(path, frame_shape=(4, 84, 84))(enlarged), strict=True):
        assert torch.equal(small, big)


def test_a_teacher_stays_frozen_whatever_its_owner_does(tmp_path: Path) -> None:
    card = replace(CARD, network="resnet14")  # with batch norm
    write_agent(tmp_path / "t.safetensors", card.build(), card.to_dict())
    teacher = load(tmp_path / "t.safetensors")
    owner = nn.ModuleList([teacher]).train()
    assert owner.training
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    logits, value = teacher(random_pixels())
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not logits.requires_grad
    assert not value.requires_grad
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


def test_the_teacher_is_loaded_for_training_alone_and_never_part_of_the_student(path: Path) -> None:
    module = TeacherModule("four_conv", **SETTINGS, distillation="actor", teacher=str(path))
    names, size = set(module.state_dict()), len(list(module.parameters()))
    module.setup("test")
    assert not module._teacher
    module.setup("fit")
    assert len(module._teacher) == 1
    assert set(module.state_dict()) == names
    assert len(list(module.parameters())) == size


# --- kinds of normalization -------------------------------------------------------------------------------------------


def test_a_card_without_normalization_means_conventional_batch_norm(path: Path) -> None:
    rewrite_card(path, normalization=...)
    assert "normalization" not in json.loads(path.with_suffix(".json").read_text())
    card, _ = read_agent(path)
    assert card.normalization == "batch"


@pytest.mark.parametrize("value", ["layer", "", None, 3, ["batch"], {"batch": True}])
def test_an_unknown_normalization_is_refused(path: Path, value: Any) -> None:
    rewrite_card(path, normalization=value)
    line = refusal(path)
    assert f"'normalization' is {value!r}" in line
    assert "batch, running, per_step, group, none" in line


@pytest.mark.parametrize(("kind", "layer"), NORMALIZATIONS.items())
def test_a_teacher_is_rebuilt_with_its_normalization_and_answers_as_it_did(
    tmp_path: Path, kind: Any, layer: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    card = replace(CARD, network="resnet14", normalization=kind)
    agent = card.build()
    assert sum(type(module) is layer for module in agent.modules()) == 15  # 13 convolutions, 2 projections
    assert (layer is nn.BatchNorm2d) == any(type(module) is nn.BatchNorm2d for module in agent.modules())
    for name, weight in agent.state_dict().items():
        if weight.is_floating_point():
            weight.uniform_(0.5, 1.5) if name.endswith("running_var") else weight.add_(0.1 * torch.randn_like(weight))
    write_agent(tmp_path / "t.safetensors", agent, card.to_dict())
    teacher = load(tmp_path / "t.safetensors")
    assert read_agent(tmp_path / "t.safetensors")[0] == card
    assert sum(type(module) is layer for module in teacher.modules()) == 15
    with torch.no_grad():
        for old, new in zip(agent.eval()(random_pixels()), teacher(random_pixels()), strict=True):
            assert old.std() > 0
            assert torch.equal(old, new)


@pytest.mark.parametrize(("trained", "named"), [("group", "batch"), ("batch", "none"), ("none", "running")])
def test_weights_that_another_normalization_lacks_are_refused(tmp_path: Path, trained: Any, named: Any) -> None:
    card = replace(CARD, network="resnet14", normalization=trained)
    write_agent(tmp_path / "t.safetensors", card.build(), replace(card, normalization=named).to_dict())
    assert "do not fit" in refusal(tmp_path / "t.safetensors")


@pytest.mark.parametrize("stage", ["teacher", "search", "retrain"])
def test_a_checkpoint_of_another_normalization_is_not_resumed(tmp_path: Path, stage: str) -> None:
    def module(normalization: Any) -> Any:
        if stage == "teacher":
            return TeacherModule("four_conv", **SETTINGS, normalization=normalization)
        if stage == "search":
            return SearchModule(Plan((1, 1), (4, 8)), **SETTINGS, normalization=normalization)
        counted(("skip", "conv_k3"), Plan((1, 1), (4, 8)), FRAME).save(tmp_path / "a.json")
        return AgentModule(str(tmp_path / "a.json"), **SETTINGS, normalization=normalization)

    checkpoint_of(module("running"), tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    module("running").on_load_checkpoint(checkpoint)
    for other in ("batch", "group"):
        with pytest.raises(
            SettingError, match=f"the checkpoint's normalization is running, but the settings give {other}"
        ):
            module(other).on_load_checkpoint(checkpoint)
    # one that was written before there were kinds
    del checkpoint["agent_card"]["normalization"]
    module("batch").on_load_checkpoint(checkpoint)
    with pytest.raises(SettingError, match="the checkpoint's normalization is batch, but the settings give running"):
        module("running").on_load_checkpoint(checkpoint)


# --- bundled teachers -------------------------------------------------------------------------------------------------


def test_every_bundled_teacher_loads_by_name_and_says_what_it_is_worth() -> None:
    for name, path in bundled_teachers().items():
        card = json.loads(path.with_suffix(".json").read_text())
        teacher = load_teacher(name, card["game"], tuple(card["frame_shape"]), card["num_actions"])
        logits, _ = teacher(random_pixels(2, tuple(card["frame_shape"])))
        assert logits.isfinite().all()
        assert card["score"]["games"] >= 1, name
        assert card["score"]["score_low95"] <= card["score"]["score"] <= card["score"]["score_high95"], name
        assert card["trained_by"], name


@pytest.mark.parametrize(
    ("network", "line"),
    [("supernet", "retrain the derived architecture"), ("my_backbone", "network 'my_backbone' is not one of")],
)
def test_a_network_that_cannot_be_built_again_is_named(network: str, line: str) -> None:
    with pytest.raises(SettingError) as refused:
        replace(CARD, network=network).build()
    assert line in str(refused.value)
    assert ("retrain" in str(refused.value)) == (network == "supernet")
