"""The network that alpha implies is scored beside the supernet, and training goes on as if it had not been."""

import copy
import csv
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from toy_game import CATCH, SIZE, register

from a2d_lightning.cli.main import main
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.models.macs import count_macs
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.derivation import Argmax, Derivation, MaxAlphaUnderMacs
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.sampling import Sampling, SinglePath, SoftSum, TopK
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.rl.algorithms import A2C, PPO, Algorithm
from a2d_lightning.rollouts.envs import FrameSettings
from a2d_lightning.rollouts.evaluation import play_games
from a2d_lightning.rollouts.policy import select_actions

pytestmark = pytest.mark.thorough

register()
CONFIGS = Path(__file__).parents[2] / "configs"
PLAN = Plan((1, 2), (4, 8))
ENVS, LENGTH, ROLLOUTS, GAMES = 8, 5, 12, 40
CHOSEN = ("ir_k3_e3", "conv_k5", "skip")
EVERY_KIND = ["batch", "running", "per_step", "group", "none"]


class Search(NamedTuple):
    module: SearchModule
    data: RolloutDataModule
    trainer: L.Trainer
    folder: Path


def prefer(module: SearchModule, operators: tuple[str, ...]) -> None:
    """Gives alpha an opinion, mild enough that the supernet still mixes."""
    with torch.no_grad():
        for cell, name in enumerate(operators):
            module.supernet.alpha_logits[cell, tuple(OPERATORS).index(name)] += 1.0


def run(folder: Path, games: int = 4, validates: bool = True, **settings: Any) -> Search:
    """A search of two epochs, each of which ends with an evaluation where asked."""
    L.seed_everything(0, verbose=False)
    data = RolloutDataModule(
        CATCH,
        num_envs=ENVS,
        rollout_length=LENGTH,
        total_env_steps=ROLLOUTS * ENVS * LENGTH,
        env_steps_per_epoch=ROLLOUTS * ENVS * LENGTH // 2,
        frames=FrameSettings(size=SIZE, stack=1, skip=1),
        evaluation_games=games,
        num_env_threads=1,
    )
    of_data = {name: getattr(data, name) for name in ("game", "frame_shape", "num_actions", "total_env_steps")}
    module = SearchModule(PLAN, **of_data, **settings)
    prefer(module, CHOSEN)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        limit_val_batches=1.0 if validates else 0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
    return Search(module, data, trainer, folder)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return run(tmp_path_factory.mktemp("search"), GAMES)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the network ------------------------------------------------------------------------------------------------------


def derived_by_hand(module: SearchModule, frames: list[Tensor]) -> nn.Sequential:
    """Frames to logits and value: the supernet's own layers, one operator a cell, and the statistics of ``frames``."""
    layers: list[nn.Module] = []
    cells = iter(CHOSEN)
    for layer in module.supernet.body:
        operators = getattr(layer, "operators", None)
        layers.append(layer if operators is None else operators[tuple(OPERATORS).index(next(cells))])
    heads = nn.Linear(256, 4)
    heads.weight.data = torch.cat([module.agent.actor.weight, module.agent.critic.weight]).detach()
    heads.bias.data = torch.cat([module.agent.actor.bias, module.agent.critic.bias]).detach()
    network = nn.Sequential(*copy.deepcopy(layers), heads).eval()
    seen: dict[Any, list[Tensor]] = {m: [] for m in network.modules() if isinstance(m, nn.BatchNorm2d)}

    def by_batch(norm: Any, given: tuple[Tensor], _: Tensor) -> Tensor:
        seen[norm].append(given[0].clone())
        return F.batch_norm(given[0], None, None, norm.weight, norm.bias, True)

    hooks = [norm.register_forward_hook(by_batch) for norm in seen]
    with torch.no_grad():
        for batch in frames:
            network(batch / 255)
    for hook in hooks:
        hook.remove()
    for norm, inputs in seen.items():
        norm.running_mean.copy_(torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
        norm.running_var.copy_(torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0))
    return network


@pytest.mark.parametrize("sampling", [SoftSum(), SinglePath()], ids=["SoftSum", "SinglePath"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_derived_network_has_the_supernets_weights_for_alphas_operators(
    kind: Any, sampling: Sampling, tmp_path: Path
) -> None:
    module = run(tmp_path, validates=False, normalization=kind, sampling=sampling).module
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randint(256, (n, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator) for n in (6, 9, 30)]
    module._recent_frames.extend(frames)
    assert module.derive().operators == CHOSEN
    derived = module.derived_agent()
    assert not any(layer.training for layer in derived.modules())
    pixels = torch.randint(256, (5, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        logits, value = derived(pixels)
        expected = derived_by_hand(module, list(module._recent_frames))(pixels / 255)
        supernets, _ = copy.deepcopy(module.agent).eval()(pixels)
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.cat([logits, value[:, None]], 1), expected, rtol=1e-4, atol=1e-5 * scale)
    # the supernet, which by a single path computes the same operators in evaluation, knows other statistics
    same = kind in ("group", "none") and sampling.skips_operators
    assert torch.allclose(logits, supernets, atol=1e-5 * scale) == same


def test_the_scored_network_is_that_of_the_chosen_derivation(tmp_path: Path) -> None:
    module = run(tmp_path, validates=False, derivation=MaxAlphaUnderMacs(10_000)).module
    agent = module.derived_agent()
    backbone: Any = agent.backbone
    architecture = module.derive()
    assert architecture.operators != CHOSEN
    assert count_macs(agent.backbone, torch.Size(module.agent_frame_shape)) == architecture.macs == module.macs()
    assert architecture.macs <= 10_000 < module.supernet.argmax_macs()
    for layer, source in zip(backbone, module.supernet.layers_of(architecture.operators), strict=True):
        for one, other in zip(layer.parameters(), source.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_derived_network_shares_no_weight_with_the_supernet(search: Search) -> None:
    derived = search.module.derived_agent()
    mine = {p.data_ptr() for p in [*derived.parameters(), *derived.buffers()]}
    assert not mine & {p.data_ptr() for p in [*search.module.parameters(), *search.module.buffers()]}


def test_it_is_recalibrated_on_the_last_eight_rollouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Tensor] = []
    real = SearchModule.learn

    def learn(self: SearchModule, rollout: Any) -> Any:
        seen.append(rollout["pixels"].flatten(0, 1).clone())
        return real(self, rollout)

    monkeypatch.setattr(SearchModule, "learn", learn)
    given: list[list[Tensor]] = []
    monkeypatch.setattr("a2d_lightning.modules.search.recalibrate", lambda network, frames: given.append(frames))
    run(tmp_path, sampling=SinglePath())
    assert len(seen) == ROLLOUTS
    for frames, expected in zip(given, (seen[:6], seen[4:12]), strict=True):
        assert len(frames) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(frames, expected, strict=True))


# --- its score --------------------------------------------------------------------------------------------------------


def test_the_derived_networks_score_is_logged_beside_the_supernets(search: Search) -> None:
    rows = [row for row in rows_of(search.folder) if row["val/score"]]
    assert len(rows) == 2
    for row in rows:
        assert float(row["val/derived_games"]) == float(row["val/games"]) == GAMES
        assert float(row["val/derived_score_low95"]) <= float(row["val/derived_score"])
        assert float(row["val/derived_score"]) <= float(row["val/derived_score_high95"])
        assert {float(row[f"val/derived_score_{end}"]) for end in ("min", "max")} <= {-1.0, 1.0}
    metrics = search.trainer.callback_metrics
    assert float(metrics["val/derived_score"]) == pytest.approx(float(rows[-1]["val/derived_score"]))
    assert int(float(rows[-1]["step"])) == ROLLOUTS * ENVS * LENGTH


def test_both_scores_are_those_of_the_same_games_played_by_hand(search: Search) -> None:
    agents = {"val/score": search.module.agent.eval(), "val/derived_score": search.module.derived_agent()}
    found = {}
    for name, agent in agents.items():
        scores = []
        for seeds in search.data.val_dataloader():
            env = search.data.make_env(len(seeds), seed=0)
            generator = torch.Generator().manual_seed(int(seeds[0]))

            def act(pixels: Tensor, a: nn.Module = agent, g: torch.Generator = generator) -> Tensor:
                return select_actions(a(pixels)[0], "sampled", g)

            scores.append(play_games(env, act, seeds))
            env.close()
        found[name] = torch.cat(scores).mean().item()
    logged = {name: float(search.trainer.callback_metrics[name]) for name in agents}
    assert logged == pytest.approx(found)
    assert found["val/score"] != found["val/derived_score"]


@pytest.mark.parametrize(
    ("sampling", "derivation", "plays"),
    [
        (SoftSum(), Argmax(), 2),
        (SinglePath(), Argmax(), 1),
        (TopK(2), Argmax(), 1),
        # another network than the supernet in evaluation, which takes the highest alphas
        (SinglePath(), MaxAlphaUnderMacs(10_000), 2),
    ],
    ids=["SoftSum", "SinglePath", "TopK", "SinglePath-MaxAlphaUnderMacs"],
)
def test_games_are_played_once_where_the_supernet_samples_single_operators(
    sampling: Sampling, derivation: Derivation, plays: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # there the supernet in evaluation and the derived network are one, but for running statistics
    played: list[int] = []
    real = SearchModule.play

    def play(self: SearchModule, game_seeds: Tensor, act: Any) -> Tensor:
        played.append(len(game_seeds))
        return real(self, game_seeds, act)

    monkeypatch.setattr(SearchModule, "play", play)
    metrics = run(tmp_path, sampling=sampling, derivation=derivation).trainer.callback_metrics
    assert played == [4] * plays * 2  # four games an evaluation, two evaluations
    assert metrics["val/games"] == metrics["val/derived_games"] == 4
    if plays == 1:
        assert metrics["val/score"] == metrics["val/derived_score"]


def test_a_search_can_leave_the_derived_network_out(tmp_path: Path) -> None:
    left_out = run(tmp_path, score_derived=False, sampling=SinglePath())
    assert "val/score" in left_out.trainer.callback_metrics
    assert not [name for name in left_out.trainer.callback_metrics if "derived" in name]
    assert not [name for name in rows_of(tmp_path)[0] if "derived" in name]


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [(A2C(), "batch"), (A2C(), "running"), (PPO(2, 2), "running")],
    ids=["A2C, batch", "A2C, running", "PPO, running"],
)
def test_a_search_goes_the_same_way_whether_the_derived_network_is_scored_or_not(
    algorithm: Algorithm, kind: Any, tmp_path: Path
) -> None:
    settings = {"algorithm": algorithm, "normalization": kind, "sampling": SinglePath()}
    scored, not_scored = (run(tmp_path / str(on), score_derived=on, **settings).module for on in (True, False))
    # evaluations draw nothing: one draw to begin with, and one after each rollout
    draws, noise = torch.Generator().manual_seed(0), Supernet(PLAN, (1, SIZE, SIZE))
    for _ in range(1 + ROLLOUTS):
        noise.draw(draws)
    for module in (scored, not_scored):
        assert torch.equal(module.gumbel_generator.get_state(), draws.get_state())
        assert torch.equal(module.supernet.gumbel, noise.gumbel)
    state, other = scored.state_dict(), not_scored.state_dict()
    assert {"agent.backbone.gumbel", "agent.backbone.ranking", "agent.backbone.alpha_logits"} <= state.keys()
    assert state.keys() == other.keys()  # the derived network is not part of checkpoints
    different = [name for name, x in state.items() if not torch.equal(x, other[name])]
    assert not different


# --- evaluation alone -------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_validated_and_tested_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    game = ["--data.game", CATCH, "--data.frames", "{size: 12, stack: 1, skip: 1}", "--model.distillation", "none"]
    files = ["--config", str(CONFIGS / "search.yaml"), "--config", str(CONFIGS / "scale" / "smoke.yaml")]
    args = [*files, *game, "--run_dir", str(tmp_path)]
    args += ["--data.total_env_steps", "100", "--data.env_steps_per_epoch", "100"]
    main(["fit", *args])
    (last,) = [row for row in rows_of(tmp_path) if row["val/score"]][-1:]
    assert last["val/derived_score"]
    architectures = {path: path.read_bytes() for path in (tmp_path / "architectures").iterdir()}
    before = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for command in ("validate", "test"):
        main([command, *args, "--ckpt_path", "last"])
    assert "error" not in capsys.readouterr().err
    assert (tmp_path / "test-sampled.json").is_file()
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(x, after["state_dict"][name]) for name, x in before["state_dict"].items())
    assert architectures == {path: path.read_bytes() for path in (tmp_path / "architectures").iterdir()}


@pytest.mark.parametrize("frames_kept", [True, False])
def test_a_checkpoint_scores_as_the_run_did_and_without_frames_the_supernet_alone(
    search: Search, tmp_path: Path, frames_kept: bool
) -> None:
    path = tmp_path / "search.ckpt"
    search.trainer.save_checkpoint(path)
    if not frames_kept:
        saved = torch.load(path, weights_only=True)
        saved["recent_frames"] = []
        torch.save(saved, path)
    of_data = {name: getattr(search.data, name) for name in ("game", "frame_shape", "num_actions", "total_env_steps")}
    module = SearchModule(PLAN, **of_data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
        (metrics,) = trainer.validate(module, search.data, str(path), verbose=False)
    expected = {"val/score", "val/derived_score"} if frames_kept else {"val/score"}
    assert {name for name in metrics if name.endswith("score")} == expected
    for name in expected:
        assert metrics[name] == pytest.approx(float(search.trainer.callback_metrics[name])), name
