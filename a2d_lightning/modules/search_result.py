"""Result of a search in its checkpoint: the plan, and log alpha, by which networks are rated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from a2d_lightning.agent_files import AgentCard, newest_intact, read_agent
from a2d_lightning.nas.operators import OPERATORS, Builder, known_operators
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.checkpoints import LAST
from a2d_lightning.runtime.errors import SettingError

ALPHA = "backbone.alpha_logits"
"""Name of alpha among the weights of an agent with a supernet."""


@dataclass(frozen=True)
class SearchResult:
    """Plan and log alpha of a search."""

    name: str
    """Name of the run's folder, followed by the checkpoint's name unless it is the last one."""
    path: Path
    """Path of the checkpoint."""
    card: AgentCard
    plan: Plan
    operator_names: tuple[str, ...]
    log_alpha: npt.NDArray[np.float64]
    """log alpha, ``[cells, operators]``."""

    @staticmethod
    def read(source: str, option: str) -> "SearchResult":
        """Read a run's newest intact checkpoint, or a checkpoint file.

        Args:
            source: run folder or checkpoint file.
            option: name of the option in error messages.

        Raises:
            SettingError: If there is no checkpoint, it is damaged, or it is not a checkpoint of a search.
        """
        given = Path(source)
        path = newest_intact(given / "checkpoints") if given.is_dir() else given
        if path is None:
            raise SettingError(f"{option}: {source!r} contains no checkpoint; give the run folder of a search.")
        if not path.is_file():
            raise SettingError(
                f"{option}: there is no checkpoint {source!r}; give a checkpoint of a search, or its run folder."
            )
        card, weights = read_agent(path)
        content = (card.architecture or {}).get("plan")
        if card.network != "supernet" or ALPHA not in weights or not isinstance(content, dict):
            raise SettingError(
                f"{option}: {path} is a checkpoint of network {card.network!r}; choose a checkpoint of a search."
            )
        plan = Plan.from_dict(content, f"{option}: {path}")
        names = tuple((card.architecture or {}).get("operator_names", OPERATORS))
        alpha, expected = weights[ALPHA], [len(plan.cells()), len(names)]
        if list(alpha.shape) != expected:
            raise SettingError(
                f"{option}: alpha of {path} is {list(alpha.shape)}, but its plan and this release's operators need "
                f"{expected}; choose another."
            )
        run_dir = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        name = run_dir.name if path.stem == LAST else f"{run_dir.name}/{path.stem}"
        return SearchResult(name, path, card, plan, names, torch.log_softmax(alpha.double(), dim=-1).numpy())

    def builders(self) -> dict[str, Builder]:
        """Return the builders of the operators, in the order of the search.

        Raises:
            SettingError: If an operator is not known.
        """
        known = known_operators()
        if unknown := [name for name in self.operator_names if name not in known]:
            raise SettingError(
                f"{self.path}: operator {unknown[0]!r} is not one of the paper's; register its builder with "
                "a2d_lightning.nas.operators.register_operators and run this from Python."
            )
        return {name: known[name] for name in self.operator_names}

    def rate(self, operators: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
        """Compute the sum of log alpha over the cells of each network.

        Args:
            operators: for each network, the name of each cell's operator.

        Returns:
            float64 ``[networks]``.
        """
        choices = np.array(
            [[self.operator_names.index(name) for name in network] for network in operators]
        )  # [networks, cells]
        rating: npt.NDArray[np.float64] = self.log_alpha[np.arange(len(self.log_alpha)), choices].sum(-1)
        return rating
