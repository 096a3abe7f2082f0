"""The guards speak of constructed collapses, once, and are silent on a healthy search."""

import logging
from typing import Any

import pytest
import torch

from a2d_lightning.callbacks import SearchGuards
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.operators import OPERATORS
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.errors import SettingError

SKIP = list(OPERATORS).index("skip")


def search(env_steps: int, alpha: torch.Tensor | None = None, **settings: Any) -> SearchModule:
    module = SearchModule(
        plan=Plan((2, 2), (4, 8)),
        game="pong",
        frame_shape=(4, 16, 16),
        num_actions=6,
        total_env_steps=1000,
        **settings,
    )
    module.env_steps = env_steps
    if alpha is not None:
        module.supernet.alpha_logits.data.copy_(alpha)
    return module


def logits(*best: tuple[int, float]) -> torch.Tensor:
    """Zeros but for one operator a cell."""
    alpha = torch.zeros(len(best), len(OPERATORS))
    for cell, (operator, value) in enumerate(best):
        alpha[cell, operator] = value
    return alpha


def kinds(module: SearchModule) -> list[str]:
    return [kind for kind, _ in SearchGuards().findings(module)]


def test_a_healthy_search_is_left_alone_from_its_start_to_its_end() -> None:
    # margins grow to 4 logits, as on Pong; one cell of four is a skip
    for env_steps in range(0, 1001, 50):
        margin = 4 * env_steps / 1000
        alpha = logits((0, margin), (SKIP, margin), (3, margin), (1, margin / 2))
        assert kinds(search(env_steps, alpha)) == []


def test_most_cells_settled_on_skip_are_a_collapse() -> None:
    # softmax of 4 against eight zeros: e^4 / (e^4 + 8) = 0.87 > 0.5; of 2: e^2 / (e^2 + 8) = 0.48
    assert kinds(search(300, logits((SKIP, 4), (SKIP, 4), (SKIP, 4), (0, 1)))) == ["skips"]
    assert kinds(search(300, logits((SKIP, 4), (SKIP, 4), (0, 1), (0, 1)))) == []
    assert kinds(search(300, logits((SKIP, 2), (SKIP, 2), (SKIP, 2), (0, 1)))) == []


def test_an_alpha_that_stands_still_is_noticed_at_half_of_the_search() -> None:
    barely = logits((0, 0.1), (1, 0.1), (2, 0.1), (3, 0.1))
    assert kinds(search(499, barely)) == []
    assert kinds(search(500, barely)) == ["still"]
    assert kinds(search(500, logits((0, 0.1), (1, 0.3), (2, 0.1), (3, 0.1)))) == []


def test_a_shift_of_all_logits_is_no_movement() -> None:
    assert kinds(search(600, torch.full((4, 9), 7.0))) == ["still"]


def test_an_alpha_that_froze_before_half_of_the_search_is_noticed() -> None:
    # e^7 / (e^7 + 8) = 0.993 > 0.98; one undecided cell still learns
    frozen = logits((0, 7), (1, 7), (2, 7), (3, 7))
    assert kinds(search(200, frozen)) == ["frozen"]
    assert kinds(search(500, frozen)) == []
    assert kinds(search(200, logits((0, 7), (1, 7), (2, 7), (3, 1)))) == []


def test_the_search_is_counted_from_the_end_of_the_warm_up() -> None:
    still = torch.zeros(4, 9)
    # 400 steps of warm-up: half of the remaining 600 is over at 700
    assert search(700, still, alpha_warmup_env_steps=400).search_progress == 0.5
    assert kinds(search(399, still, alpha_warmup_env_steps=400)) == []
    assert kinds(search(699, still, alpha_warmup_env_steps=400)) == []
    assert kinds(search(700, still, alpha_warmup_env_steps=400)) == ["still"]


def test_an_alpha_frozen_on_purpose_is_left_alone() -> None:
    assert kinds(search(900, torch.zeros(4, 9), alpha_learning_rate=0.0)) == []


class Trainer:
    """As much of a trainer as the callback asks for, always at its interval."""

    log_every_n_steps = 1

    class fit_loop:
        class epoch_loop:
            total_batch_idx = 0


def test_each_finding_is_one_line_said_once_even_after_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    module = search(600, torch.zeros(4, 9))
    guards = SearchGuards()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            guards.on_train_batch_end(Trainer(), module, None, None, 0)
        resumed = SearchGuards()
        resumed.load_state_dict(guards.state_dict())
        resumed.on_train_batch_end(Trainer(), module, None, None, 0)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("warning:")]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert "alpha has hardly moved at environment step 600" in lines[0]
    assert "raise model.alpha_learning_rate" in lines[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"skip_fraction": 0.0}, "skip_fraction"),
        ({"frozen_probability": 1.0}, "frozen_probability"),
        ({"still_logits": 0.0}, "still_logits"),
    ],
)
def test_thresholds_without_meaning_are_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        SearchGuards(**settings)
