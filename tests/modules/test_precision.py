"""bf16-mixed: the collector and the update ask the agent in the same precision."""

import csv
from pathlib import Path

import torch
from runs import fit


def test_with_bfloat16_the_policy_that_acts_is_the_one_that_is_updated(tmp_path: Path) -> None:
    fit("teacher", tmp_path, 200, "--model.normalization", "none", "--trainer.precision", "bf16-mixed")
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        kl = [float(row["policy/kl_acted_updated"]) for row in csv.DictReader(file)]
    assert len(kl) == 10
    # in float32 the logits would differ by some 1e-3 of their size, and so would the KL's root; alike, only by rounding
    assert max(kl) < 1e-7
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert {tensor.dtype for name, tensor in saved["state_dict"].items() if name.endswith("weight")} == {torch.float32}
