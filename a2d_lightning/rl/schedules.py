"""Schedules over a run's budget of environment steps: of the learning rate, and of loss coefficients."""

from dataclasses import dataclass

from a2d_lightning.runtime.errors import SettingError


class PiecewiseLinear:
    """The paper's learning rate (Sec. 4.1): constant, then linear down to ``final_factor`` of the start.

    The paper holds 1e-3 for 1e7 of 3e7 steps and ends at 1e-4. Lengths are fractions of the budget, so that a shorter
    run shrinks its schedule with it.

    Args:
        constant_fraction: part of the budget over which the factor stays 1 (paper: a third).
        final_factor: factor at the end of the budget (paper: 0.1); 0 takes a coefficient's term out of the loss.
    """

    def __init__(self, constant_fraction: float = 1 / 3, final_factor: float = 0.1) -> None:
        if not 0 <= constant_fraction < 1 or final_factor < 0:
            raise SettingError(
                f"PiecewiseLinear: constant_fraction {constant_fraction} must lie in [0, 1) and final_factor "
                f"{final_factor} not be negative."
            )
        self.constant_fraction = constant_fraction
        self.final_factor = final_factor

    def __call__(self, fraction: float) -> float:
        """The factor after ``fraction`` of the budget; it stays at its last value beyond."""
        progress = (fraction - self.constant_fraction) / (1 - self.constant_fraction)
        return 1.0 + min(max(progress, 0.0), 1.0) * (self.final_factor - 1.0)


@dataclass(frozen=True)
class CoefficientSchedules:
    """Factor of each loss term's coefficient over the budget; constant where there is none."""

    policy: PiecewiseLinear | None = None
    value: PiecewiseLinear | None = None
    entropy: PiecewiseLinear | None = None
    actor_distillation: PiecewiseLinear | None = None
    critic_distillation: PiecewiseLinear | None = None

    def factor(self, term: str, fraction: float) -> float:
        """Of a loss term after ``fraction`` of the budget."""
        schedule: PiecewiseLinear | None = getattr(self, term)
        return schedule(fraction) if schedule is not None else 1.0
