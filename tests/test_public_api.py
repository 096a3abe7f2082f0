"""The package from Python: lazy names, examples in docstrings, and an agent that plays."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import a2d_lightning
from a2d_lightning.agent_files import BUNDLED
from a2d_lightning.runtime.errors import SettingError


def test_the_package_imports_without_torch() -> None:
    script = "import sys, a2d_lightning; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", a2d_lightning.__all__)
def test_each_export_has_an_example_that_holds(name: str) -> None:
    exported = getattr(a2d_lightning, name)
    module = importlib.import_module(exported.__module__)
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(exported, name, module) if test.examples]
    assert tests, f"{name} has no example"
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.failures == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        importlib.import_module("a2d_lightning").__getattr__("Nothing")


def test_an_agent_acts_as_its_weights_say() -> None:
    agent = a2d_lightning.load_agent("pong_four_conv_42")
    frames = torch.randint(256, (5, 4, 42, 42), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    weights = load_file(BUNDLED / "pong_four_conv_42.safetensors")
    x = frames / 255.0
    for layer in range(0, 8, 2):  # four convolutions of stride 2, by hand
        weight, bias = (weights[f"backbone.{layer}.{part}"] for part in ("weight", "bias"))
        x = torch.nn.functional.conv2d(x, weight, bias, 2, 1).relu()
    x = torch.nn.functional.linear(x.flatten(1), weights["backbone.9.weight"], weights["backbone.9.bias"]).relu()
    logits = torch.nn.functional.linear(x, weights["actor.weight"], weights["actor.bias"])
    torch.testing.assert_close(agent.evaluate(frames)[0], logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(agent.act(frames, greedy=True), logits.argmax(-1))
    many = agent.act(frames[:1].expand(2000, -1, -1, -1))
    found = torch.bincount(many, minlength=logits.shape[1]) / 2000
    assert (found - logits[0].softmax(-1)).abs().max() < 0.05


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, 4, 42, 42), torch.zeros(1, 4, 84, 84, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)],
)
def test_other_frames_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs uint8 \[B"):
        a2d_lightning.load_agent("pong_four_conv_42").act(frames)


def test_an_agent_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no agent 'ponng'.*pong_four_conv_42"):
        a2d_lightning.load_agent("ponng")
