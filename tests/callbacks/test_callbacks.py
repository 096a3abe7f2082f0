"""The callbacks: temperature, metrics of a search, architecture files, progress."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from toy_game import CATCH, SIZE, register

from a2d_lightning.callbacks import ArchitectureCheckpoint, EnvStepsProgress, FLOPsLogging, TemperatureAnnealing
from a2d_lightning.callbacks.flops_logging import search_metrics
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.models.networks import count_parameters
from a2d_lightning.modules import SearchModule, TeacherModule
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.runtime.errors import SettingError

register()
PLAN = Plan((1, 1, 1), (4, 4, 4))
FRAME = (1, SIZE, SIZE)
SETTINGS: dict[str, Any] = {"game": CATCH, "frame_shape": FRAME, "num_actions": 3, "total_env_steps": 60}


def make_search(**settings: Any) -> SearchModule:
    torch.manual_seed(0)
    return SearchModule(PLAN, **{**SETTINGS, **settings})


def choose(module: SearchModule, *operators: str) -> None:
    """Lets alpha imply ``operators``."""
    with torch.no_grad():
        module.supernet.alpha_logits.zero_()
        for cell, name in enumerate(operators):
            module.supernet.alpha_logits[cell, tuple(OPERATORS).index(name)] = 1.0


def fit(module: L.LightningModule, folder: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """Three epochs of one rollout of 20 steps each, four games played after each."""
    data = RolloutDataModule(
        CATCH,
        num_envs=4,
        rollout_length=5,
        total_env_steps=60,
        env_steps_per_epoch=20,
        frames=FrameSettings(size=SIZE, stack=1, skip=1),
        evaluation_games=4,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        logger=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(callback, EnvStepsProgress) for callback in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
    return trainer


# --- all callbacks of a search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", [TemperatureAnnealing(), FLOPsLogging(), ArchitectureCheckpoint()])
def test_a_callback_of_the_search_refuses_another_stage(callback: Any) -> None:
    callback.setup(None, make_search(), "fit")
    with pytest.raises(SettingError, match=f"{type(callback).__name__} belongs to a search, not to TeacherModule"):
        callback.setup(None, TeacherModule("resnet14", **SETTINGS), "fit")


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_steps", "decays"),
    [(0, 0), (99_999, 0), (100_000, 1), (199_999, 1), (1_000_000, 10), (19_999_999, 199), (20_000_000, 200)],
)
def test_the_temperature_decays_every_100_000_of_20_million_steps(env_steps: int, decays: int) -> None:
    assert TemperatureAnnealing().temperature(env_steps, 20_000_000) == pytest.approx(5 * 0.98**decays, rel=1e-12)


def test_the_temperature_ends_at_the_papers_value_and_stays() -> None:
    # 5 * 0.98^200 = 5 exp(200 ln 0.98) = 5 exp(-4.0405) = 0.0879
    annealing = TemperatureAnnealing()
    assert annealing.temperature(20_000_000, 20_000_000) == pytest.approx(0.0879, abs=5e-5)
    assert annealing.temperature(90_000_000, 20_000_000) == annealing.temperature(20_000_000, 20_000_000)


def test_a_shorter_search_shrinks_the_schedule() -> None:
    annealing = TemperatureAnnealing(initial=4.0, decay=0.5, num_decays=4)
    # decays at 25, 50, 75 and 100 of 100 steps
    values = [annealing.temperature(step, 100) for step in (0, 24, 25, 49, 50, 75, 99, 100, 101)]
    assert values == [4, 4, 2, 2, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    "settings",
    [
        {"initial": 0.0},
        {"initial": -1.0},
        {"decay": 0.0},
        {"decay": 1.1},
        {"decay": -0.5},
        {"num_decays": -1},
        {"decay": 0.5},
    ],
)
def test_impossible_temperatures_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="TemperatureAnnealing") as refusal:
        TemperatureAnnealing(**settings)
    ((name, value),) = settings.items()
    assert f"{name} {value}" in str(refusal.value)


def test_the_temperature_of_a_resumed_search_is_that_of_its_clock() -> None:
    module = make_search(total_env_steps=1000)
    module.env_steps = 500
    TemperatureAnnealing(decay=0.9, num_decays=10).on_train_start(None, module)
    assert module.supernet.tau.item() == pytest.approx(5 * 0.9**5)


# --- metrics of a search ----------------------------------------------------------------------------------------------


def test_an_undecided_search_has_the_entropy_of_nine_operators_and_no_margin() -> None:
    supernet = Supernet(PLAN, FRAME)
    metrics = search_metrics(supernet)
    for cell in range(3):
        assert float(metrics[f"search/entropy_cell{cell:02d}"]) == pytest.approx(math.log(9), rel=1e-6)
        assert float(metrics[f"search/margin_cell{cell:02d}"]) == 0
    assert float(metrics["search/margin_mean"]) == 0
    # the mean of the nine
    by_hand = supernet.macs_table.double().mean(-1).sum().item() + supernet.fixed_macs
    assert float(metrics["search/expected_macs"]) == pytest.approx(by_hand, rel=1e-6)


def test_search_metrics_by_hand() -> None:
    module = make_search()
    supernet = module.supernet
    choose(module, "skip", "conv_k3", "skip")
    with torch.no_grad():
        # cell 1: conv_k3 at log 4, ir_k3_e1 at log 3, seven others at 0: alpha = 4/14, 3/14, 1/14
        supernet.alpha_logits[1] = 0.0
        supernet.alpha_logits[1, 0], supernet.alpha_logits[1, 2] = math.log(4), math.log(3)
    supernet.tau.fill_(0.1)
    metrics = {name: float(value) for name, value in search_metrics(supernet).items()}
    entropy = -(4 / 14 * math.log(4 / 14) + 3 / 14 * math.log(3 / 14) + 7 / 14 * math.log(1 / 14))
    assert metrics["search/entropy_cell01"] == pytest.approx(entropy, rel=1e-6)
    assert metrics["search/margin_cell01"] == pytest.approx(math.log(4 / 3), rel=1e-5)
    assert metrics["search/margin_cell00"] == pytest.approx(1.0, rel=1e-6)
    assert metrics["search/margin_mean"] == pytest.approx((1 + math.log(4 / 3) + 1) / 3, rel=1e-6)
    assert metrics["search/skips"] == 2

    # 12x12 frames: stem 6x6, cells at 6x6, 3x3, 2x2. conv_k3 of cell 1: 3x3 maps of 4 from 4 channels;
    # skip of cell 2: a 1x1 projection at 2x2; stem 6x6 maps of 4 from 1 channel; FC 4 to 256
    stem_and_fc = 6 * 6 * 4 * 9 + 4 * 256
    assert metrics["search/derived_macs"] == stem_and_fc + 3 * 3 * 4 * 4 * 9 + 2 * 2 * 4 * 4
    # weights and two numbers a channel of each norm
    assert metrics["search/derived_parameters"] == (4 * 9 + 8) + (4 * 4 * 9 + 8) + (4 * 4 + 8) + (4 * 256 + 256)
    alpha = [[math.exp(x) for x in row] for row in supernet.alpha_logits.tolist()]
    macs = supernet.macs_table.tolist()
    expected = sum(
        a * m / sum(row) for row, costs in zip(alpha, macs, strict=True) for a, m in zip(row, costs, strict=True)
    )
    assert metrics["search/expected_macs"] == pytest.approx(expected + stem_and_fc, rel=1e-6)


# --- architecture files -----------------------------------------------------------------------------------------------


def stub_trainer(folder: Path, score: float = 0.0, fn: TrainerFn = TrainerFn.FITTING) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(fn=fn, stage=None),
        callback_metrics={"val/score": torch.tensor(score)},
        default_root_dir=str(folder),
        sanity_checking=False,
    )


def written(folder: Path, name: str) -> Architecture:
    return Architecture.load(folder / "architectures" / f"{name}.json")


def test_a_search_leaves_last_best_and_step_files(tmp_path: Path) -> None:
    module, callback = make_search(), ArchitectureCheckpoint()
    trainer = fit(module, tmp_path, callback)
    files = {path.name for path in (tmp_path / "architectures").iterdir()}
    assert files == {"last.json", "best.json", *(f"step-{step:012d}.json" for step in (20, 40, 60))}
    assert written(tmp_path, "last") == module.derive()
    last = written(tmp_path, "last")
    assert (last.env_steps, last.game, last.macs) == (60, CATCH, module.macs())
    assert last.parameters == count_parameters(last.build(FRAME))
    assert callback.best_score >= float(trainer.callback_metrics["val/score"])
    best = written(tmp_path, "best")
    assert best == written(tmp_path, f"step-{best.env_steps:012d}")
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    states = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
    assert states["ArchitectureCheckpoint"] == {"best_score": callback.best_score}


def test_the_best_changes_when_the_score_improves_and_only_then(tmp_path: Path) -> None:
    module, callback = make_search(), ArchitectureCheckpoint()
    bests = []
    for score, name in [(-20.0, "skip"), (-5.0, "conv_k3"), (-9.0, "conv_k5"), (-5.0, "ir_k3_e1"), (1.0, "ir_k5_e5")]:
        choose(module, name, name, name)
        module.env_steps += 10
        callback.on_validation_end(stub_trainer(tmp_path, score), module)
        bests.append(written(tmp_path, "best").operators[0])
        assert written(tmp_path, "last").operators == (name,) * 3
        assert written(tmp_path, f"step-{module.env_steps:012d}").operators == (name,) * 3
    assert bests == ["skip", "conv_k3", "conv_k3", "conv_k3", "ir_k5_e5"]


def test_a_resumed_search_keeps_its_best(tmp_path: Path) -> None:
    module, callback = make_search(), ArchitectureCheckpoint()
    choose(module, "skip", "skip", "skip")
    callback.on_validation_end(stub_trainer(tmp_path, 5.0), module)
    resumed = ArchitectureCheckpoint()
    resumed.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    choose(module, "conv_k3", "conv_k3", "conv_k3")
    resumed.on_validation_end(stub_trainer(tmp_path, 4.0), module)
    assert written(tmp_path, "best").operators == ("skip",) * 3
    assert written(tmp_path, "last").operators == ("conv_k3",) * 3


def test_scoring_outside_of_a_search_writes_nothing(tmp_path: Path) -> None:
    ArchitectureCheckpoint().on_validation_end(stub_trainer(tmp_path, 5.0, TrainerFn.VALIDATING), make_search())
    assert not (tmp_path / "architectures").exists()


class Interrupt(L.Callback):
    """Ctrl-C after the second rollout."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.env_steps == 40:
            raise KeyboardInterrupt


def test_an_interrupted_search_leaves_its_last_architecture(tmp_path: Path) -> None:
    module = make_search()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(module, tmp_path, ArchitectureCheckpoint(), Interrupt(), limit_val_batches=0)
    assert [path.name for path in (tmp_path / "architectures").iterdir()] == ["last.json"]
    assert written(tmp_path, "last") == module.derive()
    assert written(tmp_path, "last").env_steps == 40


def test_a_run_that_never_starts_leaves_an_earlier_searchs_files_alone(tmp_path: Path) -> None:
    module = make_search()
    choose(module, "skip", "conv_k5", "skip")
    module.env_steps = 12345
    earlier = module.derive()
    earlier.save(tmp_path / "architectures" / "last.json")
    with pytest.raises(SettingError, match="'nobody' is neither a file"):
        fit(make_search(distillation="actor", teacher="nobody"), tmp_path, ArchitectureCheckpoint())
    assert written(tmp_path, "last") == earlier


def test_an_interrupted_test_leaves_the_searchs_files_alone(tmp_path: Path) -> None:
    module = make_search()
    ArchitectureCheckpoint().on_exception(stub_trainer(tmp_path, fn=TrainerFn.TESTING), module, KeyboardInterrupt())
    assert not (tmp_path / "architectures").exists()


# --- progress ---------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the time module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("a2d_lightning.callbacks.progress.time", clock)
    return clock


def running(**metrics: float) -> Any:
    """A trainer with rollouts of 10 steps and a budget of 1,995: 2,000 in all."""
    data = SimpleNamespace(total_env_steps=1995, env_steps_per_rollout=10, evaluation_games=30)
    return SimpleNamespace(datamodule=data, callback_metrics={name: torch.tensor(x) for name, x in metrics.items()})


def test_the_progress_line_says_where_a_resumed_run_stands(clock: Clock) -> None:
    progress, trainer, module = EnvStepsProgress(), running(), SimpleNamespace(env_steps=300)
    progress.on_train_start(trainer, module)
    clock.now += 20
    progress.on_validation_start(trainer, module)
    clock.now += 10
    progress.on_validation_end(trainer, module)
    clock.now += 40
    module.env_steps = 1000
    # 700 steps in 70 s, 10 of them spent on games; 1,000 more at 700 in 70 s, games included: 100 s
    assert progress.line(trainer, module) == (
        "1,000 of 2,000 environment steps (50%) | 12 steps/s | 0:01:10 elapsed, 0:01:40 left"
    )


def test_the_progress_line_shows_the_metrics_that_there_are(clock: Clock) -> None:
    progress, module = EnvStepsProgress(), SimpleNamespace(env_steps=0)
    metrics = {
        "search/expected_macs": 1234567.0,
        "search/tau": 4.9,
        "loss/actor_distillation": 0.12345,
        "policy/entropy": 1.79,
        "loss/value": 0.5,
        "loss/policy": -0.0625,
        "val/score": -20.5,
        "train/recent_game_score": -19.75,
        "other": 1.0,
    }
    assert progress.line(running(**metrics), module).split(" | ")[3:] == [
        "recent score -19.8",
        "score -20.5",
        "policy -0.062",
        "value 0.500",
        "entropy 1.79",
        "KL to teacher 0.123",
        "tau 4.90",
        "expected MACs 1,234,567",
    ]


def test_a_log_file_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress, trainer, module = EnvStepsProgress(log_every_seconds=30), running(), SimpleNamespace(env_steps=0)
    progress.on_train_start(trainer, module)
    for _ in range(100):  # 100 s, a rollout a second
        clock.now += 1
        module.env_steps += 10
        progress.on_train_batch_end(trainer, module)
    lines = capsys.readouterr().err.splitlines()
    # after 1, 31, 61 and 91 s
    assert [line.split(" of ")[0] for line in lines] == ["10", "310", "610", "910"]


def test_the_score_of_an_evaluation_is_printed_with_its_interval(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"val/score": -20.25, "val/games": 30.0, "val/score_low95": -20.5, "val/score_high95": -20.0}
    progress, trainer, module = EnvStepsProgress(), running(**scores), SimpleNamespace(env_steps=5000)
    progress.on_validation_start(trainer, module)
    clock.now += 12
    progress.on_validation_end(trainer, module)
    assert capsys.readouterr().err.strip() == (
        "5,000 environment steps | playing 30 full games ...\n"
        "5,000 environment steps | score of 30 full games -20.25 (95 % interval -20.50 to -20.00) in 12 s"
    )


def test_other_ranks_print_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress, trainer, module = EnvStepsProgress(), running(), SimpleNamespace(env_steps=0)
    progress.disable()
    progress.on_train_start(trainer, module)
    clock.now += 100
    progress.on_train_batch_end(trainer, module)
    progress.on_validation_start(trainer, module)
    progress.on_validation_end(trainer, module)
    progress.on_train_end(trainer, module)
    assert capsys.readouterr().err == ""


def test_progress_follows_a_real_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_search(), tmp_path, TemperatureAnnealing(), FLOPsLogging(), EnvStepsProgress(), log_every_n_steps=1)
    lines = capsys.readouterr().err.splitlines()
    (last,) = [line for line in lines if line.startswith("60 of 60 environment steps (100%)")]
    assert "0:00:00 left" in last
    assert "tau 0.09" in last  # the budget is spent: 5 * 0.98^200
    assert "expected MACs" in last
    assert sum("score of 4 full games" in line for line in lines) == 3
