"""A student of 42x42 frames learns from a teacher that needs 84x84 ones, from the command line to its test."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from a2d_lightning.agent_files import load_teacher, read_agent
from a2d_lightning.cli.main import main
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.modules import TeacherModule

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = ("--config", str(CONFIGS / "teacher.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml"))
SETTINGS = ("--data.frames.size", "84", "--data.total_env_steps", "100", "--data.env_steps_per_epoch", "100")
STUDENT = ("--model.network", "resnet14", "--model.agent_frame_size", "42")


def run(command: str, folder: Path, *args: str) -> None:
    main([command, *FILES, *SETTINGS, "--data.evaluation_games", "1", "--run_dir", str(folder), *args])


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of five updates of a student, with the frames that it and its teacher were shown."""
    folder = tmp_path_factory.mktemp("student")
    shown: dict[str, set[tuple[int, ...]]] = {"agent": set(), "backbone": set()}
    real = ActorCritic.forward

    def forward(self: ActorCritic, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            shown["agent"].add(tuple(pixels.shape[1:]))
            hook = self.backbone.register_forward_pre_hook(
                lambda _, inputs: shown["backbone"].add(tuple(inputs[0].shape[1:]))
            )
            answer = real(self, pixels)
            hook.remove()
            return answer
        return real(self, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActorCritic, "forward", forward)
        teacher = ("--model.teacher", "pong_resnet20_84", "--model.distillation", "actor+critic")
        run("fit", folder, *STUDENT, *teacher, "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1")
    assert shown == {"agent": {(4, 84, 84)}, "backbone": {(4, 42, 42)}}
    return folder


def test_it_learns_from_its_teacher(student: Path) -> None:
    with open(student / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    # a teacher that plays well is far from a first policy, which is uniform
    assert all(float(row["loss/actor_distillation"]) > 0.1 for row in rows)
    assert all(float(row["loss/critic_distillation"]) > 0 for row in rows)


def test_it_is_kept_as_an_agent_of_its_own_frames(student: Path) -> None:
    card, weights = read_agent(student / "checkpoints" / "last.ckpt")
    assert (card.frame_shape, card.network, card.game) == ((4, 42, 42), "resnet14", "pong")
    agent = card.build()
    agent.load_state_dict(weights)
    agent.eval()
    pixels = torch.randint(256, (2, 4, 42, 42), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # it teaches on small frames and on large ones
    with torch.no_grad():
        for times in (1, 2):
            teacher = load_teacher(str(student / "checkpoints" / "last.ckpt"), "pong", (4, 42 * times, 42 * times), 6)
            shown = pixels.repeat_interleave(times, -1).repeat_interleave(times, -2)
            for mine, its in zip(agent(pixels), teacher(shown), strict=True):
                assert torch.equal(mine, its)


def test_it_is_tested_and_counts_its_own_macs(student: Path) -> None:
    run("test", student, *STUDENT, "--ckpt_path", "last")
    result = json.loads((student / "test-sampled.json").read_text())
    assert result["games"] == 1
    assert -21 <= result["score"] <= 21
    settings = {"game": "pong", "num_actions": 6, "total_env_steps": 100}
    small = TeacherModule("resnet14", frame_shape=(4, 42, 42), **settings)
    assert result["macs"] == small.macs()
    assert result["env_steps"] == 100


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            ("--model.network", "resnet14"),
            "the checkpoint's frame_shape is (4, 42, 42), but the settings give (4, 84, 84)",
        ),
        (
            (*STUDENT, "--model.normalization", "running"),
            "the checkpoint's normalization is batch, but the settings give running",
        ),
    ],
    ids=["frames", "normalization"],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_it_is_not_gone_on_with_as_another_agent(
    student: Path, command: str, change: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(command, student.parent / f"{command}", *change, "--ckpt_path", str(student / "checkpoints" / "last.ckpt"))
    assert exit_.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert named in line
