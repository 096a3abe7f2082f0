"""A compiled agent learns what the plain one does, and says where it cannot be compiled."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from runs import CATCH_ARGS, fit, metrics
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config
from torch._inductor.utils import fresh_cache

from a2d_lightning.models.networks import ActorCritic, initialize
from a2d_lightning.models.normalization import Normalization, time_steps, with_normalization
from a2d_lightning.nas.architecture import Architecture

COMPILED = "--trainer.callbacks+=a2d_lightning.callbacks.CompiledAgent"


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.slow
def test_it_learns_what_the_plain_agent_does_and_is_evaluated_as_it_is(
    tmp_path: Path, small_architecture: Path
) -> None:
    args = [*CATCH_ARGS, f"--model.architecture={small_architecture}", "--data.evaluation_games", "5"]
    args += ["--model.distillation", "none", "--model.teacher", "null", "--model.normalization", "none"]
    fit("retrain", tmp_path / "plain", 100, *args)
    assert not counters["stats"]
    fit("retrain", tmp_path / "compiled", 100, *args, COMPILED)
    # acting and learning; five games that end one after another would need a graph for each number of games
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    # losses, norms of gradients, entropy; RMSProp then makes much of gradients that are rounding alone
    plain, compiled = (metrics(tmp_path / name)[0] for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    assert len(plain) > 10
    for name, value in plain.items():
        assert float(compiled[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("algorithm", ["A2C", "PPO"])
def test_no_output_is_used_after_the_next_forward(
    algorithm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_architecture: Path
) -> None:
    # a CUDA graph writes the outputs of each forward to the same memory; here NaN stands for what it would write
    args = [f"--model.architecture={small_architecture}", "--model.algorithm", algorithm]
    args += ["--model.algorithm.num_minibatches", "2"] if algorithm == "PPO" else []
    fit("retrain", tmp_path / "plain", 100, *args)
    forward = ActorCritic.forward
    outputs: dict[Any, Any] = {}

    def overwritten(self: Any, pixels: Tensor) -> Any:
        for before in outputs.get(self, ()):
            before.data.fill_(float("nan"))
        outputs[self] = forward(self, pixels)
        return outputs[self]

    monkeypatch.setattr(ActorCritic, "forward", overwritten)
    fit("retrain", tmp_path / "overwritten", 100, *args)
    assert len(outputs) > 1  # the teacher's too
    assert metrics(tmp_path / "overwritten") == metrics(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["batch", "per_step", "group"])
def test_its_gradients_are_the_plain_agents(normalization: Normalization, small_architecture: Path) -> None:
    # float64, since batch norm makes much of the rounding of channels that hardly vary
    shape = (4, 42, 42)
    backbone = Architecture.load(str(small_architecture)).build(shape)
    agent: Any = initialize(with_normalization(ActorCritic(backbone, shape, 6), normalization)).double()
    pixels = torch.randint(256, (12, *shape), dtype=torch.uint8)
    gradients = []
    for _ in range(2):
        agent.zero_grad()
        with time_steps(agent, 4, 3):
            logits, values = agent(pixels)
        (logits.softmax(-1)[:, 0].sum() + values.square().sum()).backward()
        gradients.append([p.grad.clone() for p in agent.parameters()])
        agent.compile(dynamic=False)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for plain, compiled in zip(*gradients, strict=True):
        assert torch.allclose(plain, compiled, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("stage", "args", "line"),
    [
        ("search", [], "the network of a search changes with each draw"),
        ("teacher", ["--model.network", "resnet14", "--model.normalization", "running"], "normalization running keeps"),
    ],
)
def test_networks_that_do_not_stay_as_they_are_are_refused(
    stage: str, args: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        fit(stage, tmp_path, 100, *args, COMPILED)
    assert refused.value.code == 2
    assert f"error: CompiledAgent: {line}" in capsys.readouterr().err


def test_a_machine_without_a_compiler_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config.cpp, "cxx", (None, "/nonexistent"))
    with fresh_cache(), pytest.raises(SystemExit) as refused:
        fit("teacher", tmp_path, 100, *CATCH_ARGS, COMPILED)
    assert refused.value.code == 2
    assert "error: CompiledAgent: torch.compile failed" in capsys.readouterr().err
