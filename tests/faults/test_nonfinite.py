"""A loss that is not finite: what is dropped, what is kept to be looked at, and who is named."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import fit
from tensordict import TensorDict

from a2d_lightning.data import RolloutDataModule
from faults.processes import start

pytestmark = pytest.mark.slow
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards of NaN in the rollouts that begin at 60 and 100 environment steps."""
    real = RolloutDataModule.for_learning

    def for_learning(self: Any, rollout: TensorDict) -> Any:
        batch = real(self, rollout)
        if self.trainer.lightning_module.env_steps in (60, 100):
            batch["next", "reward"].fill_(float("nan"))
        return batch

    monkeypatch.setattr(RolloutDataModule, "for_learning", for_learning)


@pytest.mark.parametrize(
    ("stage", "args"),
    [
        ("teacher", []),
        ("teacher", ["--model.algorithm", "PPO", "--model.algorithm.num_minibatches", "2"]),
        ("search", []),
        ("search", ["--model.scheme", "BiLevel"]),
    ],
    ids=["teacher", "ppo", "search", "bilevel"],
)
def test_an_update_that_is_skipped_is_counted(
    stage: str,
    args: list[str],
    poisoned: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    survived: Callable[..., None],
) -> None:
    with caplog.at_level("INFO"):
        fit(stage, tmp_path, 200, *args, "--model.on_nan", "skip")
    assert caplog.text.count("this update is skipped") == 2
    assert "value is nan (rank 0) before the update at environment step 60" in caplog.text
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 200
    assert saved["skipped_updates"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        counts = [row["skipped_updates"] for row in csv.DictReader(file)]
    assert counts[-1] == "2.0"
    for step in (60, 100):
        kept = torch.load(tmp_path / f"nonfinite-step{step}-rank0.pt", weights_only=True)
        assert kept["rollout"]["next"]["reward"].isnan().all()
        assert kept["rollout"]["pixels"].dtype == torch.uint8
        survived("NaN in a rollout: update skipped and counted, rollout kept", "nan" in kept["error"])


def test_a_skipped_update_leaves_the_weights_as_they_were(
    poisoned: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    real = RolloutDataModule.for_learning

    def for_learning(self: Any, rollout: TensorDict) -> Any:
        module = self.trainer.lightning_module
        seen[module.env_steps] = [parameter.detach().clone() for parameter in module.parameters()]
        return real(self, rollout)

    monkeypatch.setattr(RolloutDataModule, "for_learning", for_learning)
    fit("search", tmp_path, 200, "--model.on_nan", "skip")
    assert all(torch.equal(a, b) for a, b in zip(seen[60], seen[80], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[80], seen[100], strict=True))


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_the_rank_is_named_and_all_ranks_do_alike(on_nan: str, tmp_path: Path, survived: Callable[..., None]) -> None:
    callbacks = [{"class_path": "a2d_lightning.callbacks.RankGuard", "init_args": {"compare_every_rollouts": 1}}]
    callbacks += [
        {"class_path": "tests.rank_probe.PoisonRank"},
        {"class_path": "a2d_lightning.callbacks.RunCheckpoint"},
    ]
    process = start(
        tmp_path,
        *(*TWO, "--model.on_nan", on_nan, f"--trainer.callbacks={json.dumps(callbacks)}"),
        *("--data.total_env_steps", "400", "--data.env_steps_per_epoch", "400", "--data.evaluation_games", "2"),
    )
    _, said = process.communicate(timeout=120)
    # the third rollout of 2 x 4 x 5 steps, at rank 1 alone
    what = "policy is nan, value is nan (rank 1) before the update at environment step 80"
    if on_nan == "stop":
        assert process.returncode != 0
        assert f"error: {what}" in said, said[-3000:]
    else:
        assert process.returncode == 0, said[-3000:]
        assert f"warning: {what}" in said
    kept = sorted(path.name for path in Path(tmp_path).glob("nonfinite*"))
    survived("NaN at one rank: named, both do alike", kept == [f"nonfinite-step80-rank{rank}.pt" for rank in (0, 1)])
