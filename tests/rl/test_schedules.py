"""The paper's learning rate (Sec. 4.1): 1e-3 up to 1e7 steps, then linear to 1e-4 at 3e7; and other factors."""

import pytest

from a2d_lightning.rl.schedules import PiecewiseLinear
from a2d_lightning.runtime.errors import SettingError


@pytest.mark.parametrize(
    ("env_steps", "learning_rate"),
    [
        (0, 1e-3),
        (5_000_000, 1e-3),
        (10_000_000, 1e-3),
        (15_000_000, 7.75e-4),  # a quarter of the way down: 1e-3 - 9e-4 / 4
        (20_000_000, 5.5e-4),  # half of it
        (30_000_000, 1e-4),
        (40_000_000, 1e-4),
    ],
)
def test_the_default_is_the_papers_learning_rate(env_steps: int, learning_rate: float) -> None:
    assert 1e-3 * PiecewiseLinear()(env_steps / 3e7) == pytest.approx(learning_rate, rel=1e-12)


def test_the_constant_part_and_the_last_factor_can_be_chosen() -> None:
    schedule = PiecewiseLinear(constant_fraction=0.0, final_factor=0.5)
    assert [schedule(fraction) for fraction in (0.0, 0.25, 1.0, 2.0)] == [1.0, 0.875, 0.5, 0.5]


@pytest.mark.parametrize("constant_fraction", [1.0, 1.5, -0.1])
def test_a_constant_part_outside_the_budget_is_refused(constant_fraction: float) -> None:
    with pytest.raises(SettingError, match=f"constant_fraction {constant_fraction}"):
        PiecewiseLinear(constant_fraction=constant_fraction)


@pytest.mark.parametrize("final_factor", [-0.1, -1e-9])
def test_a_factor_that_falls_below_nothing_is_refused(final_factor: float) -> None:
    with pytest.raises(SettingError, match=f"final_factor {final_factor}"):
        PiecewiseLinear(final_factor=final_factor)


def test_a_factor_can_fall_to_nothing_and_stays_there() -> None:
    schedule = PiecewiseLinear(constant_fraction=0.5, final_factor=0.0)
    assert [schedule(fraction) for fraction in (0.5, 0.75, 1.0, 1.5)] == [1.0, 0.5, 0.0, 0.0]
