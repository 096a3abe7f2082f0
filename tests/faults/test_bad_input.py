"""Settings and files that cannot work: one line each, exit status 2, nothing run, nothing trained."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mistakes import MISTAKES
from safetensors.torch import load_file, save_file

from a2d_lightning.agent_files import BUNDLED
from a2d_lightning.modules import TeacherModule

pytestmark = pytest.mark.thorough

TEACHER = BUNDLED / "pong_four_conv_42.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "args", "named"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_bad_configuration_is_one_line(
    run: Callable[..., str], survived: Callable[..., None], stage: str, args: list[str], named: list[str]
) -> None:
    line = run(stage, *args)
    survived("bad configuration", not [word for word in named if word not in line], line)


class Attack:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def good_checkpoint() -> dict:
    module = TeacherModule("four_conv", game="pong", frame_shape=(4, 42, 42), num_actions=6, total_env_steps=100)
    state = {f"agent.{name}": tensor for name, tensor in module.agent.state_dict().items()}
    ours = {"agent_card": module.card().to_dict(), "env_steps": 0, "weight_updates": 0}
    lightnings = {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0, "loops": {}}
    return {"state_dict": state, **ours, **lightnings, "optimizer_states": [], "lr_schedulers": [], "callbacks": {}}


def checkpoint(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = good_checkpoint()
        change(content)
        torch.save(content, folder / "bad.ckpt")
        return folder / "bad.ckpt"

    return make


def altered(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(good_checkpoint(), folder / "bad.ckpt")
        (folder / "bad.ckpt").write_bytes(change((folder / "bad.ckpt").read_bytes()))
        return folder / "bad.ckpt"

    return make


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.ckpt", "w") as archive:
        archive.writestr("holiday.txt", "not a checkpoint")
    return folder / "bad.ckpt"


def attacking(folder: Path) -> Path:
    return checkpoint(lambda content: content.update(loops=Attack(folder / "attacked")))(folder)


def teacher(change: Callable[[Path, dict], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "bad.safetensors"
        shutil.copy(TEACHER, path)
        card = json.loads(TEACHER.with_suffix(".json").read_text())
        change(path, card)
        if card:
            path.with_suffix(".json").write_text(json.dumps(card))
        return path

    return make


def reshaped(path: Path, card: dict) -> None:
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: torch.zeros(7)}, path)
    card.pop("weights_sha256")


def flipped(path: Path, _: dict) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


def architecture(content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "bad.json").write_text(content)
        return folder / "bad.json"

    return make


longer = {"agent.actor.bias": torch.zeros(700)}
CKPT, TEACH, ARCH = "--ckpt_path", "--model.teacher", "--model.architecture"
BAD_FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "empty checkpoint": (CKPT, altered(lambda content: b"")),
    "torn checkpoint": (CKPT, altered(lambda content: content[: len(content) // 2])),
    "bit flipped": (CKPT, altered(lambda c: c[: len(c) // 2] + bytes([c[len(c) // 2] ^ 1]) + c[len(c) // 2 + 1 :])),
    "text": (CKPT, altered(lambda content: b"weights: none\n" * 100)),
    "another archive": (CKPT, zipped),
    "pickle with code": (CKPT, attacking),
    "no card": (CKPT, checkpoint(lambda content: content.pop("agent_card"))),
    "card of another type": (CKPT, checkpoint(lambda content: content.update(agent_card=[1, 2]))),
    "card without a game": (CKPT, checkpoint(lambda content: content["agent_card"].pop("game"))),
    "weights are no tensors": (CKPT, checkpoint(lambda content: content.update(state_dict="none"))),
    "another game": (CKPT, checkpoint(lambda content: content["agent_card"].update(game="breakout"))),
    "weights of another shape": (CKPT, checkpoint(lambda content: content["state_dict"].update(longer))),
    "not of a run": (CKPT, checkpoint(lambda content: content.pop("loops"))),
    "torn teacher": (TEACH, teacher(lambda path, _: path.write_bytes(path.read_bytes()[:3000]))),
    "teacher without a card": (TEACH, teacher(lambda _, card: card.clear())),
    "teacher's bit flipped": (TEACH, teacher(flipped)),
    "teacher's card lies": (TEACH, teacher(lambda _, card: card.update(network="resnet20"))),
    "teacher's weights reshaped": (TEACH, teacher(reshaped)),
    "teacher for no frames": (TEACH, teacher(lambda _, card: card.update(frame_shape=[4, -42, 42]))),
    "architecture no JSON": (ARCH, architecture("operators: [conv_k3]")),
    "architecture a list": (ARCH, architecture("[]")),
    "architecture without a plan": (ARCH, architecture('{"schema_version": 1, "operators": ["conv_k3"]}')),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_line_and_runs_nothing(
    run: Callable[..., str], survived: Callable[..., None], kind: str, tmp_path: Path
) -> None:
    option, make = BAD_FILES[kind]
    path = make(tmp_path)
    stage = {CKPT: "teacher", TEACH: "search", ARCH: "retrain"}[option]
    line = run(stage, option, str(path))
    named = {
        "another game": "checkpoint's game is breakout",
        "weights of another shape": "agent.actor.bias is [700] and not [6]",
    }.get(kind, path.stem)
    survived("bad file", named in line and not (tmp_path / "attacked").exists(), line)
