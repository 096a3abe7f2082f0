"""Every config file and every stack of a stage with an overlay makes its data, model and trainer."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from a2d_lightning.agent_files import bundled_teachers
from a2d_lightning.cli.main import A2DCLI
from a2d_lightning.cli.overlays import expand_overlays
from a2d_lightning.rollouts.games import atari_rom

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("teacher", "search", "retrain")
OVERLAYS = sorted((CONFIGS / "scale").glob("*.yaml")) + sorted((CONFIGS / "games").glob("*.yaml"))
ON_THIS_MACHINE = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto")


def instantiated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *args: str) -> A2DCLI:
    """The command line's objects, training itself left out."""
    monkeypatch.setattr(Trainer, "fit", lambda self, *a, **k: None)
    monkeypatch.setattr(Trainer, "test", lambda self, *a, **k: None)
    monkeypatch.setattr(A2DCLI, "after_test", lambda self: None)
    return A2DCLI(expand_overlays([*args, f"--run_dir={tmp_path / 'run'}"]))


def stage_args(stage: str, architecture: Path) -> list[str]:
    extra = [f"--model.architecture={architecture}"] if stage == "retrain" else []
    return ["fit", "--config", str(CONFIGS / f"{stage}.yaml"), *extra]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_stacks_on_every_stage(
    stage: str, overlay: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_architecture: Path
) -> None:
    if overlay.stem == "minatar":
        pytest.importorskip("minatar", reason="GPL, an extra that is not installed by default")
    args = [*stage_args(stage, small_architecture), "--config", str(overlay), *ON_THIS_MACHINE]
    cli = instantiated(monkeypatch, tmp_path, *args)
    asked = yaml.safe_load(overlay.read_text(encoding="utf-8")).get("data", {})
    if "num_envs" in asked:
        assert cli.datamodule.num_envs == asked["num_envs"]
    assert type(cli.model).__name__ == {"teacher": "TeacherModule", "search": "SearchModule"}.get(stage, "AgentModule")


@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_configs_carry_the_papers_settings(
    stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_architecture: Path
) -> None:
    cli = instantiated(monkeypatch, tmp_path, *stage_args(stage, small_architecture))
    model, data = cli.model, cli.datamodule
    assert (data.game, data.frame_shape, data.frames.skip, data.rollout_length) == ("pong", (4, 84, 84), 4, 5)
    assert data.evaluation_games == 30
    assert data.total_env_steps == (20_000_000 if stage == "search" else 30_000_000)
    assert model.gamma == 0.99
    assert type(model.algorithm).__name__ == "A2C"
    assert type(model.advantage).__name__ == "TDError"
    assert model.coefficients == {
        "policy": 1.0,
        "value": 1.0,
        "entropy": 1e-2,
        "actor_distillation": 1e-1,
        "critic_distillation": 1e-3,
    }
    optimizer = model.configure_optimizers()[0]
    assert type(optimizer).__name__ == "RMSprop"
    assert optimizer.param_groups[0]["lr"] == 1e-3
    # constant for 1e7 of 3e7 steps, then linear from 1e-3 to 1e-4
    schedule = model.learning_rate_schedule
    assert [round(schedule(fraction), 4) for fraction in (0, 1 / 3, 2 / 3, 1)] == [1.0, 1.0, 0.55, 0.1]
    assert model.distillation == ("none" if stage == "teacher" else "actor+critic")
    if stage == "search":
        assert model.supernet.plan.cells_per_group == (5, 4, 5)
        assert model.supernet.plan.channels == (16, 32, 64)
        alpha = model.configure_optimizers()[1]
        assert type(alpha).__name__ == "Adam"
        assert (alpha.param_groups[0]["lr"], alpha.param_groups[0]["betas"][0]) == (1e-3, 0.9)


def test_random_play_needs_no_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cli = instantiated(monkeypatch, tmp_path, "test", "--config", str(CONFIGS / "random.yaml"))
    assert cli.datamodule.game == "pong"


def test_every_teacher_that_a_config_names_is_bundled() -> None:
    named = set()
    for path in CONFIGS.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        for part in (content, *content.get("per_model", {}).values()):
            named.add(part.get("model", {}).get("init_args", {}).get("teacher"))
    assert named - {None} <= set(bundled_teachers())


def test_any_value_can_be_overridden_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_architecture: Path
) -> None:
    args = [*stage_args("search", small_architecture), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    values = ["--model.lambda_cost", "0.5", "--data.num_envs", "3", "--data.game", "breakout"]
    cli = instantiated(monkeypatch, tmp_path, *args, *values)
    assert (cli.model.lambda_cost, cli.datamodule.num_envs, cli.model.game) == (0.5, 3, atari_rom("Breakout"))
    assert cli.model.num_actions == 4


def test_one_seed_sets_games_actions_and_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_architecture: Path
) -> None:
    args = [*stage_args("search", small_architecture), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    cli = instantiated(monkeypatch, tmp_path, *args, "--seed_everything", "7")
    assert cli.datamodule.seed == 7
    assert cli.model.gumbel_generator.initial_seed() == 7


def test_configs_of_the_package_are_found_by_name(tmp_path: Path) -> None:
    named = expand_overlays(["fit", "--config", "search", "--config=laptop"])
    paths = [str(CONFIGS / "search.yaml"), str(CONFIGS / "scale" / "laptop.yaml")]
    assert named == expand_overlays(["fit", "--config", paths[0], "--config", paths[1]])
    own = tmp_path / "search"
    own.write_text("data: {num_envs: 3}\n")
    assert expand_overlays(["fit", "--config", str(own)]) == ["fit", "--config", str(own)]


def test_a_file_of_the_users_comes_before_a_config_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search").write_text("data: {num_envs: 3}\n", encoding="utf-8")
    assert expand_overlays(["fit", "--config", "search"]) == ["fit", "--config", "search"]
