"""judge on banks and searches whose answers are known."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from synthetic import NAMES, PLAN, SHAPE, save_bank, save_search
from torchmetrics.functional.regression import kendall_rank_corrcoef
from toy_game import CATCH

from a2d_lightning.modules.search_result import SearchResult
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.studies.inherited_scores import InheritedScores
from a2d_lightning.studies.judge import judge
from a2d_lightning.studies.judgement import agreement, equal_cost
from a2d_lightning.studies.scores import Networks, last_common_env_steps, networks_of, read_tables

RNG = np.random.default_rng(7)
ALPHA = RNG.normal(size=(2, 9))
EVERY = list(product(NAMES, repeat=2))
OPERATORS = [EVERY[i] for i in RNG.permutation(81)[:24]]
TRUE = np.array([sum(ALPHA[c, NAMES.index(name)] for c, name in enumerate(network)) for network in OPERATORS])


def judged(tmp_path: Path, *args: str) -> dict:
    judge([*args, "--output", str(tmp_path / "out")])
    return json.loads((tmp_path / "out" / "judge.json").read_text())


def test_a_search_that_knows_the_order_has_tau_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = save_bank(tmp_path / "a.csv", OPERATORS, np.stack([TRUE, TRUE + 1], 1))
    good, bad = save_search(tmp_path / "good", ALPHA), save_search(tmp_path / "bad", -ALPHA)
    found = judged(tmp_path, "--bank", str(bank), "--search", str(good), str(bad))
    game = found["games"][CATCH]
    assert found["env_steps"] == 200
    assert (game["networks"], game["seeds"]) == (24, 2)
    assert game["searches"]["good"]["tau"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert game["searches"]["bad"]["tau"]["value"] == -1.0
    assert game["mean_tau"]["value"] == 0.0
    assert game["ceiling"]["split_half"] == 1.0
    assert game["agreement"] == {"pearson": -1.0, "spearman": -1.0, "same_operator": 0.0, "cells": 2, "pairs": 1}
    assert game["searched"] is None
    assert f"| {CATCH} | 24 x 2 | 0.00 (0.00 to 0.00) |" in capsys.readouterr().out
    assert (tmp_path / "out" / "judge.png").read_bytes().startswith(b"\x89PNG")


def test_earlier_scores_can_be_judged(tmp_path: Path) -> None:
    bank = save_bank(tmp_path / "a.csv", OPERATORS, np.stack([TRUE, TRUE], 1))
    found = judged(tmp_path, "--bank", str(bank), "--env_steps", "100")
    assert found["games"][CATCH]["macs_tau"]["value"] is None  # all scores are 0 there


def test_searched_networks_are_compared_at_equal_cost(tmp_path: Path) -> None:
    # networks cost 1000 + 10 i; 90 % to 100 % of 1190 are those from 1071: i = 8 to 19
    macs = [1000 + 10 * i for i in range(24)]
    scores = np.stack([np.arange(24.0), np.arange(24.0)], 1)
    bank = save_bank(tmp_path / "a.csv", OPERATORS, scores, macs)
    searched = save_bank(tmp_path / "s.csv", OPERATORS[:1], np.array([[17.5, 9.5]]), [1190], "searched")
    args = ["--bank", str(bank), "--searched", str(searched), "--search_trainings", "30.5"]
    game = judged(tmp_path, *args)["games"][CATCH]
    assert (game["window"]["networks"], game["window"]["widened"]) == (12, False)
    assert game["window"]["mean_score"] == 13.5
    # mean score 13.5: six of twelve are below
    assert game["searched"]["searched_000"] == {"score": 13.5, "macs": 1190.0, "percentile": 50.0}
    # 17.5 beats 10 of 12, 9.5 beats 2
    assert game["improvement"]["value"] == 0.5
    assert game["best_of_k"][0] == 13.5
    assert game["best_of_k"][-1] == 19.0
    # 31 trainings would be affordable, and 12 networks exist
    assert game["random_search"] == {"trainings": 12, "score": 19.0}
    game = judged(tmp_path, *args[:-1], "2.9")["games"][CATCH]
    # the best of 3 of 8, ..., 19: 19 with probability 1 / 4, ...; on average 3 / 4 of 13 above 7
    assert game["random_search"] == {"trainings": 3, "score": pytest.approx(7 + 13 * 3 / 4)}


def test_tau_at_equal_cost_is_that_of_the_window_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The search has the order of the networks in the window, 1071 to 1190 MACs, and that of the others reversed."""
    macs = [1000 + 10 * i for i in range(24)]
    inside = (np.array(macs) >= 1071) & (np.array(macs) <= 1190)
    scores = np.where(inside, TRUE, -TRUE - 100)
    bank = save_bank(tmp_path / "a.csv", OPERATORS, np.stack([scores, scores], 1), macs)
    search = save_search(tmp_path / "s", ALPHA)
    found = judged(tmp_path, "--bank", str(bank), "--search", str(search), "--target_macs", "1190")
    game = found["games"][CATCH]
    correlation: Any = kendall_rank_corrcoef(torch.tensor(TRUE), torch.tensor(scores))
    whole = float(correlation)
    assert game["searches"]["s"]["tau"]["value"] == pytest.approx(whole, abs=1e-3)
    assert whole < 0.9
    assert game["searches"]["s"]["equal_cost_tau"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert game["mean_equal_cost_tau"]["value"] == found["over_games"]["equal_cost_tau"]["value"] == 1.0
    assert "at equal cost 1.00 (1.00 to 1.00)" in capsys.readouterr().out


def test_networks_that_somebody_chose_are_no_sample(tmp_path: Path) -> None:
    random = save_bank(tmp_path / "a.csv", OPERATORS, np.stack([TRUE, TRUE], 1))
    made = save_bank(tmp_path / "h.csv", OPERATORS[:1], np.array([[50.0, 50.0]]), origin="hand-made")
    found = save_bank(tmp_path / "s.csv", OPERATORS[:1], np.array([[60.0, 60.0]]), origin="searched")
    game = judged(tmp_path, "--bank", str(random), str(made), str(found))["games"][CATCH]
    assert game["networks"] == 24
    assert list(game["searched"]) == ["searched_000"]
    assert game["improvement"]["value"] == 1.0


def test_a_window_with_few_networks_is_widened_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    macs = [1000 + 100 * i for i in range(24)]
    bank = save_bank(tmp_path / "a.csv", OPERATORS, np.stack([TRUE, TRUE], 1), macs)
    game = judged(tmp_path, "--bank", str(bank), "--target_macs", "2000")["games"][CATCH]
    # 1800 to 2000 hold 3; 5 % of 2000 more at each end: 1700 to 2100 hold 5, 1600 to 2200 7, 1500 to 2300 9
    assert (game["window"]["low_macs"], game["window"]["high_macs"]) == (1500, 2300)
    assert (game["window"]["networks"], game["window"]["widened"]) == (9, True)
    assert "widened, as fewer lie in 90 % to 100 % of the target" in capsys.readouterr().out


def test_means_over_games(tmp_path: Path) -> None:
    first = save_bank(tmp_path / "a.csv", OPERATORS, np.stack([TRUE, TRUE], 1))
    second = save_bank(tmp_path / "b.csv", OPERATORS, -np.stack([TRUE, TRUE], 1), game="pong")
    searches = [save_search(tmp_path / "c", ALPHA), save_search(tmp_path / "p", ALPHA, game="pong")]
    found = judged(tmp_path, "--bank", str(first), str(second), "--search", *map(str, searches))
    assert found["over_games"]["tau"]["value"] == 0.0
    assert [found["games"][name]["mean_tau"]["value"] for name in (CATCH, "pong")] == [1.0, -1.0]


def test_inherited_scores_play_the_supernets_operators(tmp_path: Path) -> None:
    folder = save_search(tmp_path / "s", ALPHA)
    scores = InheritedScores(SearchResult.read(str(folder), "--search"), 3)
    agent = scores.derived(("conv_k3", "skip"))
    own = scores.supernet.layers_of(("conv_k3", "skip"))
    frames = torch.randint(256, (4, *SHAPE), dtype=torch.uint8)
    batch = torch.cat(scores.recent_frames)
    with torch.no_grad():
        logits, _ = agent(frames)
        # the same weights with the statistics of the recent frames
        layers = torch.nn.Sequential(*own).train()
        for layer in layers.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None
        layers(batch / 255.0)
        expected = scores.agent.actor(layers.eval()(frames / 255.0))
    torch.testing.assert_close(logits, expected)
    assert -1 <= scores.score(("conv_k3", "skip")) <= 1
    assert scores.score(("conv_k3", "skip")) == scores.score(("conv_k3", "skip"))


def test_inherited_weights_play_the_games_of_the_search(tmp_path: Path) -> None:
    folder = save_search(tmp_path / "s", ALPHA)
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["data"] |= {"wrappers": ["odd_games.TwiceAsBright"], "max_env_steps_per_game": 7, "seed": 3}
    content["data"]["collection"] = {"class_path": "a2d_lightning.rollouts.ray_collection.RayCollection"}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    data = InheritedScores(SearchResult.read(str(folder), "--search"), 3)._data()
    assert (data.wrappers, data.max_env_steps_per_game, data.seed) == (("odd_games.TwiceAsBright",), 7, 3)


def test_judging_by_inherited_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = save_bank(tmp_path / "a.csv", OPERATORS[:4], np.stack([TRUE, TRUE], 1)[:4])
    folder = save_search(tmp_path / "s", ALPHA, frames=False)
    found = judged(tmp_path, "--bank", str(bank), "--search", str(folder), "--inherited_games", "8")
    assert "inherited_tau" in found["over_games"]
    assert "s: the checkpoint has no recent frames" in capsys.readouterr().out


def test_agreement_by_hand() -> None:
    a = np.array([[0, 1, 2.0], [0, 0, 0], [3, 1, 2]])
    b = np.array([[0, 1, 4.0], [1, 0, 0], [1, 2, 3]])
    found = agreement([a, b])
    # the second cell of a prefers nothing; ranks: equal, and (3, 1, 2) against (1, 2, 3)
    assert found.spearman == pytest.approx((1 - 0.5) / 2, abs=1e-5)
    assert found.pearson == pytest.approx((np.corrcoef(a[0], b[0])[0, 1] - 0.5) / 2, abs=1e-5)
    assert (found.same_operator, found.cells, found.pairs) == (2, 3, 1)


def test_rating_is_the_sum_of_log_alpha(tmp_path: Path) -> None:
    search = SearchResult.read(str(save_search(tmp_path / "s", ALPHA) / "checkpoints" / "last.ckpt"), "--search")
    assert search.plan == PLAN
    expected = TRUE - np.log(np.exp(ALPHA).sum(1)).sum()
    np.testing.assert_allclose(search.rate(OPERATORS), expected, atol=1e-5)


def test_scores_of_seeds_that_are_missing_are_nan(tmp_path: Path) -> None:
    save_bank(tmp_path / "a.csv", OPERATORS[:2], np.array([[1.0, 2.0], [3.0, 4.0]]))
    rows = read_tables([str(tmp_path / "a.csv")])
    assert last_common_env_steps(rows) == 200
    rows = [row for row in rows if not (row.name == "random_001" and row.seed == 0)]
    np.testing.assert_array_equal(networks_of(rows, CATCH, 200).scores, [[1, 2], [np.nan, 4]])
    np.testing.assert_array_equal(networks_of(rows, CATCH, 200).means(), [1.5, 4])


def test_a_window_may_take_the_whole_bank() -> None:
    bank = Networks(
        ("a", "b"), ("random",) * 2, (("skip",),) * 2, ("1/4",) * 2, np.array([1.0, 900.0]), np.ones((2, 1))
    )
    assert len(equal_cost(bank, 10.0).networks) == 2


def test_what_does_not_fit_together_is_named(tmp_path: Path) -> None:
    bank = str(save_bank(tmp_path / "a.csv", OPERATORS, np.stack([TRUE, TRUE], 1)))
    few = str(save_bank(tmp_path / "few.csv", OPERATORS[:2], np.ones((2, 1))))
    other = str(save_search(tmp_path / "s", ALPHA, game="pong"))
    cases = [
        (["--bank", bank, "--search", other], "--search: a search of pong, for which --bank has no networks"),
        (["--bank", bank, "--search", str(tmp_path)], "contains no checkpoint"),
        (["--bank", few], f"--bank: 2 networks of {CATCH}; ranking needs at least 3"),
        (["--bank", bank, bank], "repeats random_000, seed 0"),
        (["--bank", bank, "--env_steps", "7"], "no run of .* has an evaluation after 7 steps"),
        (["--bank", str(tmp_path / "no.csv")], r"no\.csv' cannot be read"),
    ]
    for args, message in cases:
        with pytest.raises(SettingError, match=message):
            judge([*args, "--output", str(tmp_path / "out")])
