"""The nine operators, the plan, the table of MACs and the file of an architecture."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Cell, Plan, operator_macs
from a2d_lightning.runtime.errors import SettingError

INVERTED = ("ir_k3_e1", "ir_k3_e3", "ir_k3_e5", "ir_k5_e1", "ir_k5_e3", "ir_k5_e5")
SMALL = Plan(cells_per_group=(2, 1, 2), channels=(4, 6, 8))


# --- operators and plan -----------------------------------------------------------------------------------------------


def test_there_are_the_papers_nine_operators() -> None:
    assert set(OPERATORS) == {"conv_k3", "conv_k5", *INVERTED, "skip"}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("size", [1, 2, 11, 21, 42])
@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (6, 1), (4, 2), (6, 2)])
def test_every_operator_maps_shapes_alike(name: str, size: int, out_channels: int, stride: int) -> None:
    # a soft sum needs equal shapes; stride 2 takes 21 to 11 and 11 to 6
    x = torch.randn(2, 4, size, size + 1)
    out = OPERATORS[name](4, out_channels, stride).eval()(x)
    assert out.shape == (2, out_channels, -(-size // stride), -(-(size + 1) // stride))


def test_counting_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    for height in (20, 20, 22):  # counted, counted before, and another one
        operator_macs(SMALL, (2, height, 24))
        assert torch.equal(torch.get_rng_state(), before)


def silence_norms(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)
    return module


@pytest.mark.parametrize("name", [*INVERTED, "conv_k3", "conv_k5"])
@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (6, 1), (4, 2), (6, 2)])
def test_only_inverted_residuals_of_equal_shape_have_a_residual(name: str, out_channels: int, stride: int) -> None:
    # with its norms silenced an operator gives nothing but its residual
    x = torch.randn(2, 4, 7, 7)
    out = silence_norms(OPERATORS[name](4, out_channels, stride))(x)
    if name in INVERTED and (out_channels, stride) == (4, 1):
        assert torch.equal(out, x)
    else:
        assert not out.any()


def test_skip_is_the_identity_where_shapes_agree() -> None:
    x = torch.randn(2, 4, 7, 7)
    skip = OPERATORS["skip"](4, 4, 1)
    assert torch.equal(skip(x), x)
    assert not list(skip.parameters())


@pytest.mark.parametrize(("out_channels", "stride"), [(6, 1), (4, 2), (6, 2)])
def test_skip_projects_where_the_shape_changes_and_that_costs(out_channels: int, stride: int) -> None:
    # a 1x1 projection of the 4 input channels, after the pooling: 7 -> 4 at stride 2
    side = {1: 7, 2: 4}[stride]
    assert count_macs(OPERATORS["skip"](4, out_channels, stride), torch.Size((4, 7, 7))) == side**2 * 4 * out_channels


def test_the_papers_plan_is_fourteen_cells_in_groups_of_5_4_5() -> None:
    group_1 = [Cell(16, 16, 1)] * 5
    group_2 = [Cell(16, 32, 2)] + [Cell(32, 32, 1)] * 3
    group_3 = [Cell(32, 64, 2)] + [Cell(64, 64, 1)] * 4
    assert Plan().cells() == group_1 + group_2 + group_3


def test_a_small_plan_by_hand() -> None:
    assert Plan((1, 2), (8, 12)).cells() == [Cell(8, 8, 1), Cell(8, 12, 2), Cell(12, 12, 1)]


@pytest.mark.parametrize(
    ("cells_per_group", "channels"), [((), ()), ((1, 2), (8,)), ((1, 0), (8, 8)), ((1, -1), (8, 8)), ((1,), (0,))]
)
def test_an_impossible_plan_is_refused(cells_per_group: tuple[int, ...], channels: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"^plan: cells_per_group") as refusal:
        Plan(cells_per_group, channels)
    assert str(list(cells_per_group)) in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- MACs -------------------------------------------------------------------------------------------------------------


def by_hand(name: str, cell: Cell, size: int) -> int:
    """MACs of an operator on size x size maps. An inverted residual expands at its input's size and contracts at its
    output's; a depthwise kernel has one input channel a filter."""
    before, after = size**2, (-(-size // cell.stride)) ** 2
    dense = cell.in_channels * cell.out_channels
    if name == "skip":
        return 0 if cell.stride == 1 and cell.in_channels == cell.out_channels else after * dense
    if name.startswith("conv_k"):
        return after * int(name[-1]) ** 2 * dense
    kernel, hidden = int(name[4]), int(name[-1]) * cell.in_channels
    return before * cell.in_channels * hidden + after * kernel**2 * hidden + after * hidden * cell.out_channels


def test_the_tables_formulas_give_the_numbers_worked_out_on_paper() -> None:
    # stride 1, 16 -> 16 at 42: conv 1764 * 9 * 256; inverted residual 1764 * 16 e (16 + k^2 + 16)
    cell = Cell(16, 16, 1)
    assert by_hand("conv_k3", cell, 42) == 4_064_256
    assert by_hand("ir_k3_e1", cell, 42) == 1764 * 16 * 41 == 1_157_184
    assert by_hand("ir_k5_e5", cell, 42) == 1764 * 80 * 57 == 8_043_840
    # stride 2, 32 -> 64 at 21 -> 11: conv 121 * 25 * 2048; inverted residual 441 * 32 * 32 e + 121 * 32 e (k^2 + 64)
    cell = Cell(32, 64, 2)
    assert by_hand("conv_k5", cell, 21) == 6_195_200
    assert by_hand("ir_k3_e3", cell, 21) == 441 * 32 * 96 + 121 * 96 * 73 == 2_202_720
    assert by_hand("skip", cell, 21) == 121 * 2048


def test_the_table_of_the_papers_plan_is_the_formulas() -> None:
    table, fixed = operator_macs(Plan(), (4, 84, 84))
    # input sizes: the stem gives 42; cells 5 and 9 have stride 2
    sizes = [42] * 6 + [21] * 4 + [11] * 4
    expected = [
        [by_hand(name, cell, size) for name in OPERATORS] for cell, size in zip(Plan().cells(), sizes, strict=True)
    ]
    assert table.dtype == torch.float64  # whole numbers up to 2^53
    assert table.tolist() == expected
    assert fixed == 42 * 42 * 16 * 4 * 9 + 64 * 256


def random_architecture(plan: Plan, seed: int) -> tuple[str, ...]:
    return tuple(random.Random(seed).choices(tuple(OPERATORS), k=len(plan.cells())))


def build(plan: Plan, operators: tuple[str, ...], frame: tuple[int, int, int]) -> nn.Sequential:
    return Architecture(operators, plan, frame, macs=0, parameters=0).build(frame).eval()


@pytest.mark.parametrize(("plan", "frame"), [(SMALL, (2, 37, 50)), (Plan(), (4, 42, 42))], ids=["small", "paper"])
@pytest.mark.parametrize("seed", range(3))
def test_chosen_operators_add_up_to_the_built_network(plan: Plan, frame: tuple[int, int, int], seed: int) -> None:
    operators = random_architecture(plan, seed)
    table, fixed = operator_macs(plan, frame)
    total = fixed + sum(int(row[list(OPERATORS).index(name)]) for row, name in zip(table, operators, strict=True))
    backbone = build(plan, operators, frame)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert backbone(torch.zeros(1, *frame)).shape == (1, 256)
    assert counter.get_total_flops() == 2 * total  # PyTorch counts 2 for a multiply-accumulate
    assert count_macs(backbone, torch.Size(frame)) == total


def test_a_network_of_skips_is_stem_two_projections_and_fc() -> None:
    # 84x84: 1764 * 16 * 36 + 441 * 512 + 121 * 2048 + 64 * 256 = 1,016,064 + 225,792 + 247,808 + 16,384
    backbone = build(Plan(), ("skip",) * 14, (4, 84, 84))
    assert count_macs(backbone, torch.Size((4, 84, 84))) == 1_506_048


def test_a_built_network_has_its_operators_in_order() -> None:
    # parameters of conv_k3 4 -> 4: 144 + 8; skip: none; conv_k5 4 -> 6: 600 + 12; ir_k3_e1 6 -> 8, stride 2:
    # 36 + 12, 54 + 12, 48 + 16
    backbone: Any = build(SMALL, ("conv_k3", "skip", "conv_k5", "ir_k3_e1", "skip"), (2, 20, 20))
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in backbone[3:8]]
    assert sizes == [152, 0, 612, 178, 0]


# --- files ------------------------------------------------------------------------------------------------------------


def example() -> Architecture:
    return Architecture(
        operators=("conv_k3", "skip", "ir_k5_e3", "conv_k5", "ir_k3_e1"),
        plan=SMALL,
        frame_shape=(2, 20, 20),
        macs=50_348,
        parameters=4480,
        game="pong",
        teacher="teachers/pong.safetensors",
        env_steps=20_000_000,
    )


def test_an_architecture_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.json"
    example().save(path)
    assert Architecture.load(path) == example()
    assert Architecture.load(str(path)) == example()
    assert [p.name for p in path.parent.iterdir()] == ["last.json"]  # no temporary is left behind


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    path.write_text("x" * 10_000)
    example().save(path)
    assert Architecture.load(path) == example()


def test_the_file_is_plain_json_with_the_schema_version_first(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    example().save(path)
    content = json.loads(path.read_text())
    assert next(iter(content)) == "schema_version"
    assert content["schema_version"] == 1
    assert content["operators"] == list(example().operators)
    assert content["plan"] == {"cells_per_group": [2, 1, 2], "channels": [4, 6, 8]}
    assert content["frame_shape"] == [2, 20, 20]


def test_a_loaded_architecture_builds_the_same_network(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    example().save(path)
    ours, theirs = example().build((2, 20, 20)), Architecture.load(path).build((2, 20, 20))
    theirs.load_state_dict(ours.state_dict())
    frame: Tensor = torch.rand(1, 2, 20, 20)
    torch.testing.assert_close(ours.eval()(frame), theirs.eval()(frame))


def refusal_of(path: Path) -> str:
    with pytest.raises(SettingError) as refusal:
        Architecture.load(path)
    message = str(refusal.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal_of(tmp_path / "nowhere.json")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "directory" in refusal_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1,', b"operators: [skip]", b"\xff\xfe\x00"])
def test_broken_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    assert "not JSON" in refusal_of(path)


def test_lists_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000 + "]" * 200_000)
    assert "not JSON" in refusal_of(path)


@pytest.mark.parametrize("content", ["[1, 2]", "null", "3", '"skip"'])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    assert "object" in refusal_of(path)


GONE = "(gone)"
OPERATORS_THERE = list(example().operators)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema_version": 2}, ["schema_version 2", "reads 1"]),
        ({"schema_version": "1"}, ["schema_version '1'"]),
        ({"schema_version": GONE}, ["schema_version None"]),
        ({"operators": [*OPERATORS_THERE[:4], "conv_k7"]}, ["'conv_k7'", *OPERATORS]),
        ({"operators": [*OPERATORS_THERE[:4], 7]}, ["operator 7"]),
        ({"operators": [*OPERATORS_THERE[:4], ["skip"]]}, ["['skip']"]),
        ({"operators": OPERATORS_THERE[:4]}, ["4 operators for 5 cells"]),
        ({"operators": [*OPERATORS_THERE, "skip"]}, ["6 operators for 5 cells"]),
        ({"operators": "skip"}, ["'operators'", "'skip'"]),
        ({"operators": GONE}, ["'operators'"]),
        ({"macs": "many"}, ["'macs'", "'many'"]),
        ({"parameters": 1.5}, ["'parameters'", "1.5"]),
        ({"parameters": GONE}, ["'parameters'"]),
        ({"macs": 123}, ["'macs' is 123", "have 50348"]),
        ({"macs": -5}, ["'macs' is -5", "have 50348"]),
        ({"parameters": 4479}, ["'parameters' is 4479", "have 4480"]),
        ({"parameters": True}, ["'parameters'", "True"]),
        ({"game": None}, ["'game'", "None"]),
        ({"teacher": 3}, ["'teacher'", "3"]),
        ({"env_steps": "1e7"}, ["'env_steps'", "'1e7'"]),
        ({"plan": [5, 4, 5]}, ["'plan'", "[5, 4, 5]"]),
        ({"plan": {"channels": [4, 6, 8]}}, ["'cells_per_group'", "None"]),
        ({"plan": {"cells_per_group": ["2", 1, 2], "channels": [4, 6, 8]}}, ["'cells_per_group'", "['2', 1, 2]"]),
        ({"plan": {"cells_per_group": [2, 3], "channels": [4, 6, 8]}}, ["[2, 3]", "[4, 6, 8]"]),
        ({"frame_shape": "84"}, ["'frame_shape'", "'84'"]),
        ({"frame_shape": [4, 84]}, ["'frame_shape'", "[4, 84]"]),
        ({"frame_shape": [4, 84, 0]}, ["'frame_shape'", "[4, 84, 0]"]),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_a_file_with_a_wrong_value_is_refused_and_the_value_named(
    tmp_path: Path, changes: dict[str, Any], named: list[str]
) -> None:
    path = tmp_path / "wrong.json"
    example().save(path)
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value != GONE}))
    message = refusal_of(path)
    assert all(words in message for words in named), message
