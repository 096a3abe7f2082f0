"""Agents as ONNX files: equal to torch on played frames, complete by themselves, and played without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from runs import CATCH_ARGS, fit
from small_supernets import counted
from torch import nn

from a2d_lightning import onnx_player
from a2d_lightning.agent_files import AgentCard, load_network, read_agent
from a2d_lightning.cli.export import export
from a2d_lightning.deploy import onnx_export
from a2d_lightning.deploy.contract import frames_of, input_contract
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.modules import AgentModule, TeacherModule
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.errors import SettingError

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
FRAME = (4, 42, 42)
SETTINGS: dict[str, Any] = {"game": "pong", "frame_shape": FRAME, "num_actions": 6, "total_env_steps": 100}


@pytest.fixture(scope="module")
def pong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled teacher of Pong as an ONNX file."""
    path = tmp_path_factory.mktemp("onnx") / "pong.onnx"
    export(["--ckpt_path", "pong_four_conv_42", "--format", "onnx", "--output", str(path)])
    return path


def disturbed(agent: nn.Module) -> None:
    """Statistics and affine parameters of normalization that are not the initial ones."""
    torch.manual_seed(0)
    for name, tensor in [*agent.named_buffers(), *agent.named_parameters()]:
        if "running" in name or tensor.ndim == 1:
            tensor.data.uniform_(0.5, 1.5)


@pytest.mark.parametrize("normalization", ["batch", "running", "per_step", "group", "none"])
def test_every_operator_and_normalization_is_the_same_in_onnx(normalization: Any, tmp_path: Path) -> None:
    plan = Plan((9, 1), (8, 16))
    counted((*OPERATORS, "skip"), plan, FRAME).save(tmp_path / "a.json")
    module = AgentModule(str(tmp_path / "a.json"), **SETTINGS, normalization=normalization)
    disturbed(module.agent)
    onnx_export.export_onnx(module.card(), module.agent, tmp_path / "agent.onnx", {})
    session = onnxruntime.InferenceSession(str(tmp_path / "agent.onnx"))
    frames = torch.randint(256, (11, *FRAME), dtype=torch.uint8)
    module.agent.eval()
    with torch.no_grad():
        for part in frames.split(5):
            expected = module.agent(part)
            for found, torchs in zip(session.run(None, {"pixels": part.numpy()}), expected, strict=True):
                tolerance = 1e-4 * max(1.0, float(torchs.abs().max()))
                torch.testing.assert_close(torch.from_numpy(found), torchs, rtol=0, atol=tolerance)
    if normalization == "batch":
        kinds = {node.op_type for node in onnx.load(tmp_path / "agent.onnx").graph.node}
        assert "BatchNormalization" not in kinds


def test_a_file_whose_outputs_differ_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = TeacherModule("four_conv", **SETTINGS)
    real = onnx_export.folded

    def wrong(agent: ActorCritic) -> ActorCritic:
        copy = real(agent)
        copy.critic.bias.data += 0.01
        return copy

    monkeypatch.setattr(onnx_export, "folded", wrong)
    with pytest.raises(SettingError, match=r"differ from torch's by 1\.0e-02 on 256 frames of pong"):
        onnx_export.export_onnx(module.card(), module.agent, tmp_path / "agent.onnx", {})
    assert not list(tmp_path.iterdir())


def test_the_metadata_hold_the_whole_contract(pong: Path) -> None:
    metadata = onnx_player.OnnxAgent(pong).metadata
    assert metadata["opset"] == 20
    assert metadata["macs"] == 2_111_616
    contract = metadata["contract"]
    assert contract["actions"] == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert (contract["frames"]["skip"], contract["frames"]["stack"], contract["frames"]["size"]) == (4, 4, 42)
    assert contract["input"]["shape"] == ["batch", 4, 42, 42]
    assert contract["preprocessing"][0] == "maximum of the last two of 4 emulator frames"


def test_frames_are_those_of_the_run(tmp_path: Path) -> None:
    fit("teacher", tmp_path / "run", 20, *CATCH_ARGS)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    card, _ = read_agent(checkpoint)
    assert frames_of(card).skip == 1  # of CATCH_ARGS; 4 is the default
    export(["--ckpt_path", str(checkpoint), "--output", str(tmp_path / "agent")])
    exported, _ = read_agent(tmp_path / "agent.safetensors")
    assert exported.frames == card.frames
    older = AgentCard.from_dict({**card.to_dict(), "frames": None}, "card")
    assert frames_of(older).skip == 4
    assert input_contract(card)["actions"] == ["0", "1", "2"]


def test_torch_export_is_the_same_and_needs_no_package(tmp_path: Path) -> None:
    output = str(tmp_path / "agent")
    export(["--ckpt_path", "pong_four_conv_42", "--format", "torch_export", "--output", output])
    script = (
        "import sys, torch\n"
        "files = {'card.json': ''}\n"
        f"program = torch.export.load({output + '.pt2'!r}, extra_files=files).module()\n"
        "torch.manual_seed(0)\n"
        "frames = torch.randint(256, (5, 4, 42, 42), dtype=torch.uint8)\n"
        "torch.save([program(frames), files['card.json']], sys.argv[1])\n"
        "assert not [name for name in sys.modules if name.startswith('a2d_lightning')]"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out.pt")], check=True, cwd=tmp_path)
    (logits, value), card = torch.load(tmp_path / "out.pt")
    torch.manual_seed(0)
    frames = torch.randint(256, (5, 4, 42, 42), dtype=torch.uint8)
    agent = agent_of("pong_four_conv_42")
    torch.testing.assert_close((logits, value), agent(frames), rtol=1e-5, atol=1e-5)
    assert json.loads(card)["contract"]["game"] == "pong"


def agent_of(name: str) -> ActorCritic:
    return load_network(name, "name")[1].eval().requires_grad_(False)


def test_greedy_games_are_torchs_step_by_step(pong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    player, agent = onnx_player.OnnxAgent(pong), agent_of("pong_four_conv_42")
    steps = 0
    real = player.act

    def both(pixels: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        nonlocal steps
        steps += 1
        actions = real(pixels, generator)
        expected = agent(torch.from_numpy(pixels))[0].argmax(-1)
        assert actions.tolist() == expected.tolist()
        return actions

    monkeypatch.setattr(player, "act", both)
    scores = onnx_player.play(player, np.array([3, 4]))
    assert steps > 500
    assert (scores > 5).all()  # random play has -20


def test_the_player_needs_no_torch(pong: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from a2d_lightning import onnx_player\n"
        f"onnx_player.main([{str(pong)!r}, '--games', '1'])\n"
        f"sys.argv = ['play_onnx.py', {str(pong)!r}, '1']\n"
        f"exec(open({str(ROOT / 'examples' / 'play_onnx.py')!r}).read())\n"
        "assert not {'torch', 'lightning', 'tensordict'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pong: mean score of 1 full games" in done.stdout
    assert "pong, actions NOOP, FIRE, RIGHT" in done.stdout


def renamed(path: Path, target: Path, change: Any) -> Path:
    model = onnx.load(path)
    properties = {prop.key: prop.value for prop in model.metadata_props}
    change(model, properties)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, target)
    return target


def test_bad_files_are_one_line(pong: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(pong.read_bytes()[:5000])

    def other_actions(model: Any, properties: dict[str, str]) -> None:
        content = json.loads(properties[onnx_player.METADATA_KEY])
        content["contract"]["actions"] = ["NOOP"]
        properties[onnx_player.METADATA_KEY] = json.dumps(content)

    cases = {
        torn: "not a readable ONNX file",
        tmp_path / "absent.onnx": "there is no such file",
        renamed(pong, tmp_path / "foreign.onnx", lambda model, properties: properties.clear()): "no metadata of",
        renamed(pong, tmp_path / "other.onnx", other_actions): "but the graph has",
    }
    for path, line in cases.items():
        with pytest.raises(SystemExit) as error:
            onnx_player.main([str(path)])
        assert error.value.code == 2
        (printed,) = capsys.readouterr().err.splitlines()
        assert line in printed


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    args = ["--ckpt_path", "pong_four_conv_42", "--format", "onnx", "--output", str(tmp_path / "a")]
    with pytest.raises(SettingError, match=r"needs onnxscript; pip install a2d-lightning\[onnx\]"):
        export(args)
