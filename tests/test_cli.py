"""What a person sees who makes a mistake: one line on standard error, exit status 2, nothing trained."""

import json
from pathlib import Path

import pytest
import torch

from a2d_lightning.cli.main import main
from a2d_lightning.data import RolloutDataModule

CONFIGS = Path(__file__).parent.parent / "configs"
MISTAKES: list[tuple[str, list[str], list[str]]] = [
    ("teacher", ["--data.game", "Pongg"], ["Pongg", "did you mean pong"]),
    ("teacher", ["--data.gamee", "Pong"], ["data.gamee", "did you mean data.game"]),
    ("teacher", ["--trainer.max_epoch", "3"], ["trainer.max_epoch", "max_epochs"]),
    ("search", ["--model.lambda_cots", "1"], ["model.lambda_cots", "model.lambda_cost"]),
    ("teacher", ["--model.network", "resnet21"], ["resnet21", "resnet20"]),
    ("search", ["--model.distillation", "critic"], ["model.distillation", "critic", "actor+critic"]),
    ("teacher", ["--model.algorithm", "PPPO"], ["model.algorithm", "PPPO"]),
    ("teacher", ["--data.num_envs", "0"], ["data.num_envs", "0"]),
    ("teacher", ["--data.rollout_length", "-5"], ["data.rollout_length", "-5"]),
    ("teacher", ["--data.total_env_steps", "many"], ["data.total_env_steps", "many"]),
    ("teacher", ["--data.frames.size", "0"], ["data.frames.size", "0"]),
    ("teacher", ["--model.network", "vanilla", "--data.frames.size", "30"], ["data.frames.size", "30x30"]),
    ("teacher", ["--model.distillation", "actor"], ["model.teacher", "needs a teacher"]),
    ("search", ["--model.teacher", "nobody"], ["model.teacher", "nobody", "configs/teacher.yaml"]),
    ("search", ["--data.game", "breakout"], ["plays pong", "--data.game breakout"]),
    ("search", ["--data.frames.size", "60"], ["42x42", "60x60"]),
    ("search", ["--model.plan.channels", "[8,16]"], ["cells_per_group", "[8, 16]"]),
    ("search", ["--model.sampling", "TopK", "--model.sampling.k", "10"], ["model.sampling.k", "10", "1 to 9"]),
    ("teacher", ["--model.normalization", "per_step", "--data.num_envs", "1"], ["per_step", "data.num_envs is 1"]),
    ("search", ["--model.target_macs", "1e6"], ["model.target_macs", "no such setting", "MaxAlphaUnderMacs"]),
    (
        "search",
        ["--model.derivation", "MaxAlphaUnderMacs", "--model.derivation.target_macs", "1000"],
        ["model.derivation.target_macs", "1,000", "cheapest"],
    ),
    (
        "search",
        ["--model.alpha_warmup_env_steps", "400"],
        ["model.alpha_warmup_env_steps", "data.total_env_steps 400"],
    ),
    (
        "search",
        ["--model.scheme", "BiLevel", "--data.env_steps_per_epoch", "20"],
        ["model.scheme", "BiLevel takes 2 rollouts", "data.env_steps_per_epoch to 40"],
    ),
    *(("search", [f"--model.seed{given}"], ["model.seed", "linked", "seed_everything"]) for given in ("=3", "=0")),
    ("search", ["--model.init_args.seed", "3"], ["model.seed", "linked", "seed_everything"]),
    ("search", ["--model", '{"class_path": "SearchModule", "init_args": {"seed": 3}}'], ["model.seed", "linked"]),
    ("search", ["--config", "tests/with_a_seed.yaml"], ["model.seed", "linked", "seed_everything"]),
    ("search", ["--model.game", "breakout"], ["model.game", "linked", "data.game"]),
    ("teacher", ["--model.total_env_steps", "7"], ["model.total_env_steps", "linked", "data.total_env_steps"]),
    ("teacher", ["--model.num_actions", "3"], ["model.num_actions", "linked", "data.game"]),
    ("teacher", ["--model.frame_shape", "[1,2,3]"], ["model.frame_shape", "linked", "data.frames"]),
    ("retrain", ["--model.architecture", "/nowhere.json"], ["model.architecture", "/nowhere.json"]),
    ("teacher", ["--ckpt_path", "last"], ["--ckpt_path", "holds no checkpoint", "auto"]),
    ("teacher", ["--ckpt_path", "/nowhere.ckpt"], ["--ckpt_path", "/nowhere.ckpt"]),
    ("teacher", ["--config", "/nowhere.yaml"], ["--config", "/nowhere.yaml"]),
    ("teacher", ["--run_dir", "/proc/run"], ["run_dir", "/proc/run"]),
    ("teacher", ["--trainer.default_root_dir", "x"], ["trainer.default_root_dir", "--run_dir"]),
    ("teacher", ["--trainer.precision", "64-true"], ["trainer.precision", "64-true", "bf16-mixed"]),
    ("teacher", ["--model.optimizer.lr", "-1"], ["model.optimizer", "-1"]),
    ("teacher", ["--data.noop_max", "0"], ["data.noop_max", "0"]),
    ("teacher", ["--data.evaluation_games", "none"], ["data.evaluation_games", "none"]),
    ("teacher", ["--data.env_timeout_seconds", "0"], ["data.env_timeout_seconds", "0"]),
    ("teacher", ["--data.frames.sticky_action_probability", "2"], ["sticky_action_probability", "2"]),
    ("teacher", ["--model.on_nan", "pray"], ["model.on_nan", "pray", "skip"]),
    ("teacher", ["--model.gamma", "1.5"], ["model.gamma", "1.5"]),
    ("teacher", ["--model.gradient_clip_norm", "0"], ["model.gradient_clip_norm", "0"]),
    ("teacher", ["--model.normalization", "layer"], ["model.normalization", "layer", "batch"]),
    ("teacher", ["--model.evaluation_actions", "best"], ["model.evaluation_actions", "best", "greedy"]),
    ("teacher", ["--model.agent_frame_size", "40"], ["agent_frame_size", "40"]),
    ("search", ["--model.scheme", "TriLevel"], ["model.scheme", "TriLevel"]),
    ("search", ["--model.plan.cells_per_group", "[0,1,1]"], ["cells_per_group", "0"]),
    ("search", ["--model.alpha_betas", "[0.9,1.0]"], ["model.alpha_betas", "1.0"]),
    ("teacher", ["--trainer.callbacks+=callbacks.TemperatureAnnealing"], ["TemperatureAnnealing", "search"]),
    (
        "teacher",
        ["--trainer.callbacks+=callbacks.RunCheckpoint", "--trainer.callbacks.keep", "0"],
        ["RunCheckpoint", "keep 0"],
    ),
    (
        "teacher",
        ["--trainer.callbacks+=callbacks.RankGuard", "--trainer.callbacks.timeout_seconds", "0"],
        ["RankGuard", "timeout_seconds 0"],
    ),
]
"""Stage, arguments, and what the line must hold."""


@pytest.mark.parametrize(
    ("stage", "args", "named"),
    MISTAKES,
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistake_ends_in_one_line_that_names_it(run, stage, args, named):
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
def test_a_broken_architecture_is_refused_in_one_line(run, small_architecture, change, named):
    content = json.loads(small_architecture.read_text()) | change
    small_architecture.write_text(json.dumps(content))
    assert named in run("retrain", "--model.architecture", str(small_architecture))


def test_a_folder_that_holds_a_run_is_not_written_over(run, tmp_path):
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "checkpoints" / "last.ckpt").touch()
    line = run("teacher", "--run_dir", str(tmp_path / "old"))
    assert "--ckpt_path last" in line
    assert "--run_dir" in line


def test_a_checkpoint_that_would_run_code_is_refused(run, tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path(tmp_path / "attacked").touch, ())

    torch.save({"state_dict": {}, "x": Attack()}, tmp_path / "evil.ckpt")
    assert "evil.ckpt" in run("teacher", "--ckpt_path", str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "attacked").exists()


def test_a_test_without_weights_says_what_it_needs(run):
    assert "--ckpt_path" in run("teacher", command="test")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_and_step(monkeypatch, tmp_path, capsys):
    # rewards of NaN reach L_value through the target and L_policy through the advantage, entropy stays finite
    real = RolloutDataModule.for_learning

    def poisoned(self, rollout):
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


def test_a_test_of_a_search_describes_the_supernet_that_it_plays(tmp_path, capsys):
    config = ["--config", str(CONFIGS / "search.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    args = [*config, "--run_dir", str(tmp_path), "--data.evaluation_games", "1"]
    main(["fit", *args, "--data.total_env_steps", "100", "--data.env_steps_per_epoch", "100"])
    derived = json.loads((tmp_path / "architectures" / "last.json").read_text())
    main(["test", *args, "--ckpt_path", "last"])
    tested = json.loads((tmp_path / "test-sampled.json").read_text())
    # the supernet computes nine operators in each cell, the derived network one
    assert tested["macs"] > 3 * derived["macs"]
    assert f"{tested['macs']:,} MACs a frame" in capsys.readouterr().out


def test_an_error_among_its_own_causes_ends_the_run(monkeypatch):
    first, second = RuntimeError("first"), OSError("second")
    first.__cause__, second.__context__ = second, first

    def fail(*_):
        raise first

    monkeypatch.setattr("a2d_lightning.cli.main.A2DCLI", fail)
    with pytest.raises(RuntimeError, match="first"):
        main(["fit"])


def test_help_says_what_ckpt_path_takes(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "last: the newest of run_dir that is whole; best: the one with the highest score; auto (fit): last" in text
    assert "hpc" not in text
    assert "registry" not in text.replace("model_registry", "")
