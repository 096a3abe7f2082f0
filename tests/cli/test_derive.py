"""The command that derives networks from a search's checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_game import CATCH, register

from a2d_lightning.cli.derive import derive
from a2d_lightning.cli.main import main
from a2d_lightning.models.macs import count_macs
from a2d_lightning.modules import SearchModule, TeacherModule
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.derivation import MaxAlphaUnderMacs
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.errors import SettingError

register()
CONFIGS = Path(__file__).parents[2] / "configs"
SHAPE = (2, 21, 21)


def make_search(seed: int = 0) -> SearchModule:
    torch.manual_seed(seed)
    module = SearchModule(
        Plan((1, 2), (4, 6)), game="Toy", frame_shape=SHAPE, num_actions=3, total_env_steps=1000, teacher="somebody"
    )
    module.env_steps = 77
    with torch.no_grad():
        module.supernet.alpha_logits.normal_()
    return module


def save(module: Any, path: Path) -> Path:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


def limits(module: SearchModule) -> list[int]:
    """The cheapest network's MACs, a limit that binds, and one that does not."""
    cheapest, most = module.supernet.macs_range()
    return [cheapest, (cheapest + module.supernet.argmax_macs()) // 2, most]


@pytest.mark.parametrize("form", ["{},{},{}", "[{},{},{}]", "[ {} , {}, {}, {}]"])
def test_an_architecture_is_written_for_each_limit(form: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = make_search()
    source, targets = save(module, tmp_path / "search.ckpt"), limits(module)
    given = form.format(*targets, float(targets[0]))
    derive(["--from", str(source), "--target_macs", given, "--output", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"macs-{target}.json" for target in targets}
    found = [Architecture.load(tmp_path / "out" / f"macs-{target}.json") for target in targets]
    for target, architecture in zip(targets, found, strict=True):
        module.supernet.derivation = MaxAlphaUnderMacs(target)
        assert architecture == module.derive()
        assert count_macs(architecture.build(SHAPE), torch.Size(SHAPE)) == architecture.macs <= target
        assert (architecture.game, architecture.teacher, architecture.env_steps) == ("Toy", "somebody", 77)
    assert len({architecture.operators for architecture in found}) == 3
    header, *rows = capsys.readouterr().out.splitlines()[1:]
    assert header.split() == ["limit", "MACs", "log", "alpha", "operators"]
    log_alpha = module.supernet.alpha_logits.log_softmax(-1)
    for target, architecture, row in zip(targets, found, rows, strict=True):
        limit, macs, total, *operators = row.split()
        assert (limit, macs) == (f"{target:,}", f"{architecture.macs:,}")
        assert tuple(operators) == architecture.operators
        by_hand = sum(log_alpha[cell, NAMES.index(name)].item() for cell, name in enumerate(operators))
        assert float(total) == pytest.approx(by_hand, abs=1e-4)


NAMES = ["conv_k3", "conv_k5", *(f"ir_k{k}_e{e}" for k in (3, 5) for e in (1, 3, 5)), "skip"]


def test_without_limits_the_papers_network_is_written(tmp_path: Path) -> None:
    module = make_search()
    source = save(module, tmp_path / "search.ckpt")
    derive(["--from", str(source), "--output", str(tmp_path / "out")])
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "argmax.json"
    highest = module.supernet.alpha_logits.argmax(-1).tolist()
    assert Architecture.load(path).operators == tuple(NAMES[i] for i in highest)


def test_of_a_run_folder_the_newest_intact_checkpoint_is_taken(tmp_path: Path) -> None:
    newest = save(make_search(seed=1), tmp_path / "run" / "checkpoints" / "last.ckpt")
    save(make_search(seed=2), tmp_path / "run" / "checkpoints" / "last-1.ckpt")
    for seed in (1, 2):
        derive(["--from", str(tmp_path / "run"), "--output", str(tmp_path / "out")])
        assert Architecture.load(tmp_path / "out" / "argmax.json") == make_search(seed).derive()
        newest.write_bytes(newest.read_bytes()[:-100])  # torn


def test_a_checkpoint_without_a_teachers_name_gives_an_empty_one(tmp_path: Path) -> None:
    source = save(make_search(), tmp_path / "search.ckpt")
    checkpoint = torch.load(source, weights_only=True)
    del checkpoint["agent_card"]["architecture"]["teacher"]
    torch.save(checkpoint, source)
    derive(["--from", str(source), "--output", str(tmp_path)])
    assert Architecture.load(tmp_path / "argmax.json").teacher == ""


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"--from": "nowhere"}, r"--from: there is no checkpoint 'nowhere'"),
        ({"--from": "{tmp}"}, r"--from: .* contains no checkpoint"),
        ({"--from": "{tmp}/teacher.ckpt"}, r"--from: .*teacher\.ckpt is a checkpoint of network 'vanilla'"),
        ({"--from": "{tmp}/other.ckpt"}, r"--from: alpha of .*other\.ckpt is \[3, 8\]"),
        ({"--target_macs": "1e9,many"}, r"--target_macs: '1e9,many' is not a list of numbers; write them as 5e5,1e6"),
        ({"--target_macs": "1e9,inf"}, r"--target_macs: '1e9,inf'"),
        ({"--target_macs": "1e9,100"}, r"--target_macs: 100 .*cheapest network of this search costs \([\d,]+\)"),
        ({"--output": "/proc/out"}, r"--output: '/proc/out' cannot be written"),
    ],
)
def test_a_mistake_names_the_option_and_writes_nothing(args: dict[str, str], named: str, tmp_path: Path) -> None:
    source = save(make_search(), tmp_path / "search.ckpt")
    checkpoint = torch.load(source, weights_only=True)
    alpha = "agent.backbone.alpha_logits"
    checkpoint["state_dict"][alpha] = checkpoint["state_dict"][alpha][:, :8]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    teacher = TeacherModule("vanilla", game="Toy", frame_shape=(4, 42, 42), num_actions=3, total_env_steps=10)
    save(teacher, tmp_path / "teacher.ckpt")
    given = {"--from": str(source), "--output": str(tmp_path / "out")}
    given |= {name: value.format(tmp=tmp_path) for name, value in args.items()}
    with pytest.raises(SettingError, match=named):
        derive([part for pair in given.items() for part in pair])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["network", "plan", "alpha"])
def test_a_checkpoint_that_lacks_what_a_search_has_is_refused(missing: str, tmp_path: Path) -> None:
    source = save(make_search(), tmp_path / "search.ckpt")
    checkpoint = torch.load(source, weights_only=True)
    if missing == "network":
        checkpoint["agent_card"]["network"] = "derived"
    elif missing == "plan":
        del checkpoint["agent_card"]["architecture"]["plan"]
    else:
        del checkpoint["state_dict"]["agent.backbone.alpha_logits"]
    torch.save(checkpoint, source)
    with pytest.raises(SettingError, match=r"--from: .*choose a checkpoint of a search"):
        derive(["--from", str(source), "--output", str(tmp_path / "out")])


def test_a_search_of_the_command_line_and_the_command_derive_the_same_network(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rule = ["--model.derivation", "MaxAlphaUnderMacs", "--model.derivation.target_macs"]
    config = ["--config", str(CONFIGS / "search.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    main(
        [
            *("fit", *config, *rule, "3e4", "--run_dir", str(run), "--data.game", CATCH, "--data.frames.skip", "1"),
            *("--model.distillation", "none", "--model.teacher", "null", "--data.total_env_steps", "100"),
            *("--data.frames.size", "12", "--trainer.limit_val_batches", "0"),
        ]
    )
    main(["derive", "--from", str(run), "--target_macs", "3e4", "--output", str(tmp_path / "out")])
    written = json.loads((run / "architectures" / "last.json").read_text())
    assert json.loads((tmp_path / "out" / "macs-30000.json").read_text()) == written
    assert written["macs"] <= 30_000
    main(["derive", "--from", str(run), "--output", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "argmax.json").read_text())["macs"] > 30_000
