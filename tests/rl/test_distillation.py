"""Table 2's four modes: their terms, whose critic the student learns from, for every kind of student; schedules."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from small_supernets import counted
from tensordict import TensorDict
from torch import Tensor
from toy_game import CATCH, SIZE, register

from a2d_lightning.agent_files import AgentCard, write_agent
from a2d_lightning.cli.main import A2DCLI, main
from a2d_lightning.cli.overlays import expand_overlays
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.networks import ActorCritic, initialize
from a2d_lightning.modules import AgentModule, SearchModule, TeacherModule
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rl import losses
from a2d_lightning.rl.algorithms import Minibatch
from a2d_lightning.rl.distillation import distillation_terms, trains_critic
from a2d_lightning.rl.schedules import CoefficientSchedules, PiecewiseLinear
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.runtime.errors import SettingError

register()
CONFIGS = Path(__file__).parents[2] / "configs"
FRAME: FrameShape = (1, SIZE, SIZE)
PLAN = Plan((1, 1), (4, 8))
GAMMA, BUDGET = 0.9, 1000
SETTINGS: dict[str, Any] = {"game": CATCH, "frame_shape": FRAME, "num_actions": 3, "total_env_steps": BUDGET}
TERMS: dict[Any, set[str]] = {
    "none": {"policy", "entropy", "value"},
    "actor": {"policy", "entropy", "value", "actor_distillation"},
    "actor+teacher_critic": {"policy", "entropy", "actor_distillation"},
    "actor+critic": {"policy", "entropy", "value", "actor_distillation", "critic_distillation"},
}


def decided(agent: ActorCritic) -> ActorCritic:
    """The agent with an opinion on every frame: first policies are nearly uniform."""
    with torch.no_grad():
        agent.actor.weight.mul_(5000)
        agent.critic.weight.mul_(20)
    return agent


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a teacher whose answers differ from frame to frame."""
    card = AgentCard(CATCH, "four_conv", FRAME, 3, 0)
    torch.manual_seed(0)
    agent = decided(initialize(card.build()))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_agent(path, agent, card.to_dict())
    return str(path)


def hand_made(**settings: Any) -> TeacherModule:
    return TeacherModule("four_conv", **{**SETTINGS, **settings})


def make_batch(rows: int = 5) -> Minibatch:
    torch.manual_seed(0)
    return Minibatch(
        logits=torch.randn(rows, 6, requires_grad=True),
        value=torch.randn(rows, requires_grad=True),
        action=torch.arange(rows) % 6,
        log_prob_acted=torch.full((rows,), -1.8),
        advantage=torch.randn(rows),
        value_target=torch.randn(rows),
        rows=torch.arange(rows),
    )


def random_rollout() -> TensorDict:
    """Two games of three steps, one truncated inside, one lost."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 4, *FRAME), dtype=torch.uint8, generator=generator)
    following = frames[:, 1:].clone()
    following[0, 1] = 255 - following[0, 1]
    done = torch.tensor([[False, True, False], [True, False, False]])
    terminated = torch.tensor([[False, False, False], [True, False, False]])
    after = {"pixels": following, "done": done, "terminated": terminated}
    after["reward"] = torch.randn(2, 3, generator=generator)
    action = torch.randint(3, (2, 3), generator=generator)
    log_prob = torch.full((2, 3), -1.1)
    return TensorDict({"pixels": frames[:, :-1], "action": action, "log_prob": log_prob, "next": after}, [2, 3])


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", TERMS)
def test_each_mode_of_table_2_has_its_terms(mode: Any) -> None:
    batch, teacher_logits, teacher_value = make_batch(), torch.randn(5, 6), torch.randn(5)
    module = hand_made(distillation=mode, teacher="t")
    terms = module.loss_terms(batch)
    if mode != "none":
        terms |= distillation_terms(mode, batch, teacher_logits, teacher_value)
    assert set(terms) == TERMS[mode]
    assert trains_critic(mode) == ("value" in terms)
    # every term has a weight in Eq. 8, and the critic learns where the mode has one
    losses.total_loss(terms, module.coefficients).backward()
    assert batch.logits.grad is not None
    assert (batch.value.grad is not None) == ("value" in terms)


def test_distillation_terms_are_equations_6_and_7() -> None:
    batch, teacher_logits, teacher_value = make_batch(), torch.randn(5, 6), torch.randn(5)
    terms = distillation_terms("actor+critic", batch, teacher_logits, teacher_value)
    p, q = teacher_logits.double().softmax(-1), batch.logits.detach().double().softmax(-1)
    divergence = (p * (p / q).log()).sum() / 5
    error = 0.5 * ((batch.value - teacher_value) ** 2).sum() / 5
    assert terms["actor_distillation"].item() == pytest.approx(divergence.item(), rel=1e-5)
    assert terms["critic_distillation"].item() == pytest.approx(error.item(), rel=1e-5)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(SettingError, match=r"model\.teacher: distillation 'actor' needs a teacher"):
        hand_made(distillation="actor")


@pytest.mark.parametrize("mode", TERMS)
def test_the_loss_of_a_rollout_by_hand(mode: Any, teacher: str) -> None:
    torch.manual_seed(1)
    module = hand_made(gamma=GAMMA, distillation=mode, teacher=teacher, critic_distillation_coefficient=0.5)
    module.setup("fit")
    decided(module.agent)
    rollout = random_rollout()
    ((total, metrics),) = module.losses(rollout, module.agent)

    def ask(network: torch.nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, value = network(pixels.flatten(0, 1))
        return logits.double(), value.double()

    after, action = rollout["next"], rollout["action"].flatten()
    logits, value = ask(module.agent, rollout["pixels"])
    _, next_value = ask(module.agent, after["pixels"])
    log_pi = logits.log_softmax(-1)
    expected = {"entropy": 0.01 * (log_pi.exp() * log_pi).sum(-1).mean()}
    baseline = value
    if mode != "none":
        its_logits, its_value = ask(module._teacher[0], rollout["pixels"])
        _, its_next_value = ask(module._teacher[0], after["pixels"])
        its_log_pi = its_logits.log_softmax(-1)
        expected["actor_distillation"] = 0.1 * (its_log_pi.exp() * (its_log_pi - log_pi)).sum(-1).mean()
        if mode == "actor+critic":
            expected["critic_distillation"] = 0.5 * 0.5 * (value - its_value).square().mean()
        if mode == "actor+teacher_critic":
            baseline, next_value = its_value, its_next_value
    target = (after["reward"].flatten() + GAMMA * ~after["terminated"].flatten() * next_value).detach()
    expected["policy"] = -((target - baseline).detach() * log_pi[range(6), action]).mean()
    if mode != "actor+teacher_critic":
        expected["value"] = 0.5 * (target - value).square().mean()
    assert {name.removeprefix("loss/") for name in metrics if name.startswith("loss/")} == {*expected, "total"}
    by_hand = torch.stack(list(expected.values())).sum()
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-4)
    trained = [p for p in module.agent.parameters() if p.requires_grad]
    for mine, its in zip(torch.autograd.grad(total, trained), torch.autograd.grad(by_hand, trained), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5 * float(its.abs().max()))
    for name, term in expected.items():
        # no term is too small for the sum to tell
        assert abs(term) > 1e-3 * abs(total), name


# --- students ---------------------------------------------------------------------------------------------------------


def searched(**settings: Any) -> SearchModule:
    return SearchModule(PLAN, alpha_learning_rate=0.1, **settings)


def derived(folder: Path, **settings: Any) -> AgentModule:
    counted(("conv_k3", "ir_k3_e3"), PLAN, FRAME).save(folder / "a.json")
    return AgentModule(str(folder / "a.json"), **settings)


@pytest.mark.parametrize("mode", TERMS)
@pytest.mark.parametrize("stage", ["teacher", "search", "retrain"])
def test_every_mode_trains_every_kind_of_student(
    stage: str, mode: Any, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    L.seed_everything(0, verbose=False)
    frames = FrameSettings(size=SIZE, stack=1, skip=1)
    data = RolloutDataModule(CATCH, num_envs=4, total_env_steps=40, env_steps_per_epoch=40, frames=frames)
    settings = {**SETTINGS, "total_env_steps": 40, "distillation": mode, "teacher": teacher}
    students: dict[str, Callable[[], ActorCriticModule]] = {
        "teacher": lambda: hand_made(**settings),
        "search": lambda: searched(**settings),
        "retrain": lambda: derived(tmp_path, **settings),
    }
    module = students[stage]()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    step = module.apply_weights_gradient
    moving: list[set[str]] = []

    def watched(optimizer: Any) -> Any:
        moving.append({name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()})
        return step(optimizer)

    monkeypatch.setattr(module, "apply_weights_gradient", watched)
    quiet: dict[str, Any] = {
        name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    }
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)

    logged = {name.removeprefix("loss/") for name in trainer.callback_metrics if name.startswith("loss/")}
    assert logged - {"total", "cost"} == TERMS[mode]
    assert module.weight_updates == 2
    resting = {"agent.critic.weight", "agent.critic.bias"} if mode == "actor+teacher_critic" else set()
    assert before.keys() - moving[-1] == resting
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert not moved & resting
    # of norms, whose weights are 1, a step may be lost in rounding
    assert moved >= {name for name, weight in before.items() if weight.dim() > 1} - resting
    assert ("agent.backbone.alpha_logits" in moved) == (stage == "search")
    # what gets no gradient says so: DDP would wait for one
    assert {name for name, p in module.named_parameters() if not p.requires_grad} == resting
    for loaded in module._teacher:
        assert not any(p.requires_grad or p.grad is not None for p in loaded.parameters())
        weights = load_file(teacher)
        assert all(torch.equal(x, weights[name]) for name, x in loaded.agent.state_dict().items())


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_steps", "factor"),
    # constant over 200 of 1,000 steps, then down to a quarter: 1 - 0.75 (s - 200) / 800
    [(0, 1.0), (200, 1.0), (400, 1 - 0.75 / 4), (600, 1 - 0.75 / 2), (1000, 0.25), (1500, 0.25)],
)
def test_a_coefficient_follows_its_schedule_over_the_budget(env_steps: int, factor: float) -> None:
    module = hand_made(
        coefficient_schedules=CoefficientSchedules(
            actor_distillation=PiecewiseLinear(0.2, 0.25), entropy=PiecewiseLinear(0.0, 0.0)
        ),
        actor_distillation_coefficient=0.8,
        entropy_coefficient=0.02,
    )
    module.env_steps = env_steps
    assert module.current_coefficients() == pytest.approx(
        {
            "policy": 1.0,
            "value": 1.0,
            "entropy": 0.02 * max(0.0, 1 - env_steps / BUDGET),
            "actor_distillation": 0.8 * factor,
            "critic_distillation": 1e-3,
        }
    )


@pytest.mark.parametrize("env_steps", [0, 500, 1000])
def test_the_loss_is_weighted_by_the_coefficients_in_force(env_steps: int, teacher: str) -> None:
    torch.manual_seed(1)
    schedules = CoefficientSchedules(
        actor_distillation=PiecewiseLinear(0.0, 0.0), critic_distillation=PiecewiseLinear(0.0, 3.0)
    )
    module = hand_made(distillation="actor+critic", teacher=teacher, coefficient_schedules=schedules)
    module.setup("fit")
    decided(module.agent)
    module.env_steps = env_steps
    ((total, metrics),) = module.losses(random_rollout(), module.agent)
    part = env_steps / BUDGET
    weights = {"policy": 1, "value": 1, "entropy": 0.01, "actor_distillation": 0.1 * (1 - part)}
    weights["critic_distillation"] = 1e-3 * (1 + 2 * part)
    assert total.item() == pytest.approx(sum(w * float(metrics[f"loss/{name}"]) for name, w in weights.items()))


FLAT = {"constant_fraction": 0.25, "final_factor": 0.0}
NESTED = {"class_path": "a2d_lightning.rl.schedules.PiecewiseLinear", "init_args": FLAT}
SHORT = {"class_path": "PiecewiseLinear", "init_args": FLAT}


@pytest.mark.parametrize("schedule", [FLAT, NESTED, SHORT], ids=["flat", "class_path", "short class_path"])
@pytest.mark.parametrize("where", ["file", "option", "option of one term"])
def test_schedules_can_be_set_in_files_and_on_the_command_line(
    where: str, schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    args = ["fit", "--config", str(CONFIGS / "teacher.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    if where == "file":
        content = {"model": {"init_args": {"coefficient_schedules": {"actor_distillation": schedule}}}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        args += ["--config", str(tmp_path / "mine.yaml")]
    elif where == "option":
        args += ["--model.coefficient_schedules", yaml.safe_dump({"actor_distillation": schedule}, width=1000)]
    else:
        args += ["--model.coefficient_schedules.actor_distillation", yaml.safe_dump(schedule, width=1000)]
    model = A2DCLI(expand_overlays([*args, "--run_dir", str(tmp_path / "run")])).model
    model.env_steps = 250  # of 400: (250 - 100) / 300 of the way down
    assert model.current_coefficients()["actor_distillation"] == pytest.approx(0.1 * 0.5)


def test_the_command_line_changes_one_schedule_of_a_file_and_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    content = {"model": {"init_args": {"coefficient_schedules": {"entropy": FLAT, "value": FLAT}}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    files = [CONFIGS / "teacher.yaml", CONFIGS / "scale" / "smoke.yaml", tmp_path / "mine.yaml"]
    args = [part for file in files for part in ("--config", str(file))]
    change = ["--model.coefficient_schedules.entropy.final_factor", "0.5"]
    model = A2DCLI(expand_overlays(["fit", *args, *change, "--run_dir", str(tmp_path / "run")])).model
    assert model.coefficient_schedules.entropy.final_factor == 0.5
    assert model.coefficient_schedules.entropy.constant_fraction == 0.25
    assert model.coefficient_schedules.value.final_factor == 0.0
    assert model.coefficient_schedules.policy is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("entropy.final_factr", r"final_factr: there is no such setting"),
        ("surprise.final_factor", r"coefficient_schedules\.surprise\.final_factor: there is no such setting"),
    ],
)
def test_a_schedule_of_no_loss_term_or_of_no_setting_is_refused(
    setting: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = ["--config", str(CONFIGS / "teacher.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    arguments = ["fit", *files, f"--model.coefficient_schedules.{setting}", "0", "--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert re.search(said, capsys.readouterr().err)


def test_one_schedule_alone_can_be_set_by_an_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    files = ["--config", str(CONFIGS / "teacher.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    option = ["--model.coefficient_schedules.entropy.final_factor", "0.5"]
    model = A2DCLI(expand_overlays(["fit", *files, *option, "--run_dir", str(tmp_path / "run")])).model
    assert model.coefficient_schedules == CoefficientSchedules(entropy=model.coefficient_schedules.entropy)
    assert model.coefficient_schedules.entropy.final_factor == 0.5
