"""Schedules of the learning rate and the loss coefficients over a run's budget of environment steps."""

from dataclasses import dataclass

from a2d_lightning.runtime.errors import SettingError


class PiecewiseLinear:
    """The paper's schedule (Sec. 4.1): a factor that is first 1, then falls linearly to ``final_factor``.

    The paper's learning rate stays 1e-3 for 1e7 of 3e7 steps and ends at 1e-4. Lengths are fractions of the budget, so
    the schedule scales with the length of the run.

    Args:
        constant_fraction: fraction of the budget during which the factor is 1 (paper: a third).
        final_factor: factor at the end of the budget (paper: 0.1); 0 removes a coefficient's term from the loss there.
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
        """Return the factor after ``fraction`` of the budget; above 1, it is the final factor."""
        progress = (fraction - self.constant_fraction) / (1 - self.constant_fraction)
        return 1.0 + min(max(progress, 0.0), 1.0) * (self.final_factor - 1.0)


@dataclass(frozen=True)
class CoefficientSchedules:
    """Schedule of the factor of each loss term's coefficient over the budget; constant if absent."""

    policy: PiecewiseLinear | None = None
    value: PiecewiseLinear | None = None
    entropy: PiecewiseLinear | None = None
    actor_distillation: PiecewiseLinear | None = None
    critic_distillation: PiecewiseLinear | None = None

    def factor(self, term: str, fraction: float) -> float:
        """Return the factor of the loss term ``term`` after ``fraction`` of the budget."""
        schedule: PiecewiseLinear | None = getattr(self, term)
        return schedule(fraction) if schedule is not None else 1.0
