"""Every stage on a GPU: each precision, CUDA graphs, and on from a checkpoint, of a CPU, too. Skipped where none is."""

import math
from pathlib import Path

import pytest
import torch
from runs import fit, metrics

from a2d_lightning.cli.main import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CONFIGS = Path(__file__).parent.parent / "configs"
PPO = ["--model.algorithm", "PPO", "--model.algorithm.num_minibatches", "2"]


def args_of(stage: str, architecture: Path) -> list[str]:
    return [f"--model.architecture={architecture}"] if stage == "retrain" else []


def learned(run_dir: Path, env_steps: int) -> None:
    """Check that the run ended with finite losses."""
    losses = [float(row["loss/total"]) for row in metrics(run_dir) if "loss/total" in row]
    assert losses
    assert all(map(math.isfinite, losses))
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == env_steps


@pytest.mark.parametrize("normalization", ["batch", "per_step"])
@pytest.mark.parametrize("algorithm", [[], PPO], ids=["A2C", "PPO"])
def test_cuda_graphs_learn_what_the_plain_agent_does(
    algorithm: list[str], normalization: str, tmp_path: Path, small_architecture: Path
) -> None:
    torch._dynamo.reset()
    args = [*args_of("retrain", small_architecture), *algorithm, "--model.normalization", normalization]
    graphs = [
        "--trainer.callbacks+=a2d_lightning.callbacks.CompiledAgent",
        "--trainer.callbacks.mode",
        "reduce-overhead",
    ]
    fit("retrain", tmp_path / "plain", 100, *args)
    fit("retrain", tmp_path / "graphs", 100, *args, *graphs)
    plain, compiled = (metrics(tmp_path / name)[0] for name in ("plain", "graphs"))
    assert plain.keys() == compiled.keys()
    # of the first update's minibatch; with rounding that differs, PPO's later ones go apart
    for name in ("policy/entropy", "value/explained_variance"):
        assert float(compiled[name]) == pytest.approx(float(plain[name]), rel=1e-2, abs=1e-3), name
    learned(tmp_path / "graphs", 100)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", [[], PPO], ids=["A2C", "PPO"])
@pytest.mark.parametrize("stage", ["teacher", "search", "retrain"])
def test_a_stage_runs_is_evaluated_and_resumes(
    stage: str, algorithm: list[str], precision: str, tmp_path: Path, small_architecture: Path
) -> None:
    args = [*args_of(stage, small_architecture), *algorithm, "--trainer.precision", precision]
    fit(stage, tmp_path, 200, *args, "--trainer.limit_val_batches", "1.0")
    torch.cuda.reset_peak_memory_stats()
    fit(stage, tmp_path, 400, *args, "--ckpt_path", "last")
    assert torch.cuda.max_memory_allocated() > 0
    learned(tmp_path, 400)


@pytest.mark.parametrize("first", ["cpu", "gpu"])
@pytest.mark.parametrize("stage", ["teacher", "search", "retrain"])
def test_a_run_goes_on_on_the_other_kind_of_device(
    stage: str, first: str, tmp_path: Path, small_architecture: Path
) -> None:
    args = args_of(stage, small_architecture)
    second = {"cpu": "gpu", "gpu": "cpu"}[first]
    fit(stage, tmp_path, 200, *args, "--trainer.accelerator", first)
    fit(stage, tmp_path, 400, *args, "--trainer.accelerator", second, "--ckpt_path", "last")
    learned(tmp_path, 400)


SEARCHES = [(scheme, sampling) for scheme in ("OneLevel", "BiLevel") for sampling in ("SoftSum", "TopK", "SinglePath")]


# OneLevelPerFrame refuses every sampling but the soft sum
@pytest.mark.parametrize(("scheme", "sampling"), [*SEARCHES, ("OneLevelPerFrame", "SoftSum")])
def test_a_search_learns_by_every_scheme_and_sampling(scheme: str, sampling: str, tmp_path: Path) -> None:
    fit("search", tmp_path, 200, "--model.scheme", scheme, "--model.sampling", sampling)
    learned(tmp_path, 200)


def test_games_are_scored_by_an_agent_of_the_other_kind_of_device(tmp_path: Path, small_architecture: Path) -> None:
    args = args_of("retrain", small_architecture)
    fit("retrain", tmp_path, 100, *args)
    config = ["--config", str(CONFIGS / "retrain.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    for accelerator in ("gpu", "cpu"):
        main(
            [
                *("test", *config, *args, "--run_dir", str(tmp_path), "--ckpt_path", "last"),
                *("--trainer.accelerator", accelerator, "--data.evaluation_games", "1"),
            ]
        )
