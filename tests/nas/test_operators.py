"""A search space of a user's own: operators from another package, strides of stem and groups."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import fit, metrics
from torch import nn

from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS, operators_of, register_operators
from a2d_lightning.nas.sampling import HardStraightThrough, TopK
from a2d_lightning.nas.search_space import Plan, operator_macs
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.runtime.errors import SettingError

MINE = {"conv_k3": None, "se_k3": "users_operators.SqueezeExcite", "skip": None}
ROOT = Path(__file__).parents[2]


def test_the_papers_nine_are_the_default() -> None:
    assert list(operators_of(None)) == list(OPERATORS)
    assert len(OPERATORS) == 9


def test_macs_of_an_operator_are_counted_in_its_cell() -> None:
    table, _ = operator_macs(Plan((1, 1), (8, 16)), (4, 20, 20), operators_of(MINE))
    # 3x3 of 8 to 8 channels at 10x10 and of 8 to 16 at 5x5, then two 1x1 of 4 channels at 1x1
    assert table[:, 1].tolist() == [9 * 8 * 8 * 100 + 2 * 4 * 8, 9 * 8 * 16 * 25 + 2 * 4 * 16]
    assert table.shape == (2, 3)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({}, "contains no operator"),
        ({"conv_k7": None}, "'conv_k7' is not one of conv_k3.*class path"),
        ({"mine": "users_operators.Missing"}, "'users_operators.Missing' of 'mine' cannot be imported"),
        ({"mine": "no_such_package.Thing"}, "cannot be imported"),
        ({"mine": "Thing"}, "cannot be imported"),
        ({"mine": "users_operators.ignores_stride"}, r"'mine' maps \[2, 8, 7, 5\] to \[2, 16, 7, 5\].*\[2, 16, 4, 3\]"),
        ({"mine": "users_operators.fails"}, "'mine' fails for 8 to 8 channels and stride 1"),
        ({"mine": "users_operators.NOTHING"}, "'mine' fails"),
        ({"skip": "users_operators.SqueezeExcite"}, "'skip' is the name of another operator"),
    ],
)
def test_what_is_no_operator_is_refused(setting: dict[str, str | None], line: str) -> None:
    with pytest.raises(SettingError, match=line):
        operators_of(setting)


def test_a_name_belongs_to_one_builder() -> None:
    operators_of(MINE)
    operators_of(MINE)
    with pytest.raises(SettingError, match="'se_k3' is the name of another operator"):
        register_operators({"se_k3": lambda i, o, s: nn.Conv2d(i, o, 3, s, 1)})


def test_sampling_fits_the_number_of_operators() -> None:
    shape, plan = (4, 12, 12), Plan((1,), (8,))
    with pytest.raises(SettingError, match="4 paths of 3 operators; choose 1 to 3"):
        Supernet(plan, shape, TopK(4), operators=operators_of(MINE))
    supernet = Supernet(plan, shape, HardStraightThrough(), operators=operators_of(MINE))
    supernet(torch.rand(2, *shape)).square().sum().backward()
    assert supernet.alpha_logits.grad is not None
    assert supernet.alpha_logits.grad.ne(0).all()


@pytest.mark.thorough
def test_a_search_and_its_agent_use_it(tmp_path: Path) -> None:
    operators = tmp_path / "operators.yaml"
    operators.write_text(json.dumps({"model": {"init_args": {"operators": MINE}}}))
    args = ["--config", str(operators)]
    fit("search", tmp_path / "search", 60, *args)
    saved = torch.load(tmp_path / "search" / "checkpoints" / "last.ckpt", weights_only=True)
    alpha = saved["state_dict"]["agent.backbone.alpha_logits"]
    assert alpha.shape[1] == 3
    assert saved["agent_card"]["architecture"]["operator_names"] == list(MINE)
    found = json.loads((tmp_path / "search" / "architectures" / "last.json").read_text())
    assert set(found["operators"]) <= set(MINE)
    assert "users_operators" not in json.dumps(found)
    fit("search", tmp_path / "search", 80, *args, "--ckpt_path", "last")

    plan = Plan(tuple(found["plan"]["cells_per_group"]), tuple(found["plan"]["channels"]))
    shape = tuple(found["frame_shape"])
    every = ["se_k3"] * len(plan.cells())
    table, fixed = operator_macs(plan, shape, operators_of(MINE))
    draft = Architecture(tuple(every), plan, shape, int(table[:, 1].sum()) + fixed, 0)
    network = draft.build(shape)
    assert count_macs(network, torch.Size(shape)) == draft.macs
    mine = tmp_path / "mine.json"
    parameters = sum(weights.numel() for weights in network.parameters())
    Architecture(draft.operators, plan, shape, draft.macs, parameters).save(mine)
    fit("retrain", tmp_path / "agent", 60, *args, "--model.architecture", str(mine))
    assert metrics(tmp_path / "agent")

    # exported and derived in a process that has not built it yet
    checkpoint, given = str(tmp_path / "agent" / "checkpoints" / "last.ckpt"), ["--operators", json.dumps(MINE)]
    for words in (
        ["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "exported"), *given],
        ["derive", "--from", str(tmp_path / "search"), "--output", str(tmp_path / "derived"), *given],
    ):
        command = [sys.executable, "-m", "a2d_lightning", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    assert (tmp_path / "exported.safetensors").is_file()
    assert (tmp_path / "derived" / "argmax.json").is_file()

    # in a process that does not know the operator, the file is refused and nothing is imported
    script = (
        "import sys; from a2d_lightning.nas.architecture import Architecture\n"
        f"try: Architecture.load({str(mine)!r})\n"
        "except Exception as error: print(error)\n"
        "assert 'users_operators' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT / "tests"
    )
    assert "unknown operator 'se_k3'" in done.stdout
    assert "model.operators" in done.stdout


def test_a_search_with_other_operators_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("search", tmp_path, 20)
    with pytest.raises(SystemExit):
        fit("search", tmp_path, 40, "--ckpt_path", "last", "--model.operators", json.dumps(MINE))
    assert "operator_names" in capsys.readouterr().err


def test_strides_of_stem_and_groups_are_settings(tmp_path: Path) -> None:
    plan, shape = Plan((2, 1), (8, 16), stem_stride=1, strides=(2, 3)), (4, 20, 14)
    assert [cell.stride for cell in plan.cells()] == [2, 1, 3]
    table, fixed = operator_macs(plan, shape)
    names = ("conv_k3", "ir_k5_e3", "skip")
    macs = int(sum(table[i, list(OPERATORS).index(name)] for i, name in enumerate(names))) + fixed
    draft = Architecture(names, plan, shape, macs, 0)
    network = draft.build(shape)
    # one count of the whole network against the sum of the table's entries, each counted by itself
    assert count_macs(network, torch.Size(shape)) == macs
    maps = network[:-4](torch.zeros(1, *shape))  # up to the global pool
    assert maps.shape == (1, 16, 4, 3)  # 20 to 10 to 4, 14 to 7 to 3
    parameters = sum(weights.numel() for weights in network.parameters())
    path = tmp_path / "strided.json"
    Architecture(names, plan, shape, macs, parameters).save(path)
    assert Architecture.load(path).plan == plan


def test_the_papers_plan_writes_what_it_always_wrote() -> None:
    assert Plan().to_dict() == {"cells_per_group": [5, 4, 5], "channels": [16, 32, 64]}
    assert Plan(strides=(1, 2, 2)).to_dict() == Plan().to_dict()


@pytest.mark.parametrize(
    "settings", [{"stem_stride": 0}, {"stem_stride": 5}, {"strides": (1, 2)}, {"strides": (1, 0, 2)}]
)
def test_strides_that_no_plan_has_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"strides .* must be 1 to 4"):
        Plan(**settings)
