"""Sizes that no memory holds are refused in a line, at once."""

from typing import Any

import pytest

from a2d_lightning.data import RolloutDataModule
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rollouts.games import FrameSettings
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.machine_memory import check_fits, total_memory

pytestmark = pytest.mark.timeout(20)


def test_the_memory_of_this_machine_is_known() -> None:
    assert 2**29 < total_memory() < 2**50
    check_fits(total_memory(), "everything")
    with pytest.raises(SettingError, match=r"too much: needs at least .* GiB of memory, but only .* are available"):
        check_fits(total_memory() + 1, "too much")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_envs": 10**9}, "data.num_envs 1000000000"),
        ({"rollout_length": 10**8}, "data.rollout_length 100000000"),
        ({"frames": FrameSettings(size=10**6)}, "frames of 4,000,000,000,000 bytes"),
    ],
)
def test_rollouts_that_cannot_fit_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        RolloutDataModule("Pong", **settings)


@pytest.mark.parametrize("plan", [((10**9, 1), (8, 16)), ((1, 10**8), (8, 16)), ((1, 1), (8, 10**6))])
def test_plans_that_cannot_fit_are_refused(plan: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(SettingError, match="plan: cells_per_group"):
        Plan(*plan)


def test_the_papers_plan_and_wide_ones_fit() -> None:
    Plan()
    Plan((50, 50, 50), (256, 512, 1024))
