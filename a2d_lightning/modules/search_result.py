"""What a search's checkpoint says of networks: log alpha, by plan and operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from a2d_lightning.agent_files import AgentCard, newest_intact, read_agent
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import OPERATOR_NAMES
from a2d_lightning.runtime.checkpoints import LAST
from a2d_lightning.runtime.errors import SettingError

ALPHA = "backbone.alpha_logits"
"""Name of alpha among the weights of a searched agent."""


@dataclass(frozen=True)
class SearchResult:
    """What a search has learned of architectures."""

    name: str
    """Folder of the run."""
    path: Path
    """Of the checkpoint."""
    card: AgentCard
    plan: Plan
    log_alpha: npt.NDArray[np.float64]
    """``[cells, operators]``."""

    @staticmethod
    def read(source: str, option: str) -> "SearchResult":
        """Read a run's newest intact checkpoint, or a checkpoint file.

        Args:
            source: a run folder or a file.
            option: named in errors.

        Raises:
            SettingError: there is none, it is damaged, or not a search's.
        """
        given = Path(source)
        path = newest_intact(given / "checkpoints") if given.is_dir() else given
        if path is None:
            raise SettingError(f"{option}: {source!r} holds no checkpoint; name the run folder of a search.")
        if not path.is_file():
            raise SettingError(f"{option}: there is no checkpoint {source!r}; name one of a search, or its run folder.")
        card, weights = read_agent(path)
        content = (card.architecture or {}).get("plan")
        if card.network != "supernet" or ALPHA not in weights or not isinstance(content, dict):
            raise SettingError(f"{option}: {path} is a checkpoint of network {card.network!r}; take one of a search.")
        plan = Plan(tuple(content.get("cells_per_group", ())), tuple(content.get("channels", ())))
        alpha, expected = weights[ALPHA], [len(plan.cells()), len(OPERATOR_NAMES)]
        if list(alpha.shape) != expected:
            raise SettingError(
                f"{option}: alpha of {path} is {list(alpha.shape)}, its plan and this release's operators need "
                f"{expected}; take another."
            )
        run_dir = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        name = run_dir.name if path.stem == LAST else f"{run_dir.name}/{path.stem}"
        return SearchResult(name, path, card, plan, torch.log_softmax(alpha.double(), dim=-1).numpy())

    def rate(self, operators: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
        """Return the sum over cells of log alpha for each network, float64 ``[networks]``.

        Args:
            operators: of each network, a name a cell.
        """
        choices = np.array(
            [[OPERATOR_NAMES.index(name) for name in network] for network in operators]
        )  # [networks, cells]
        rating: npt.NDArray[np.float64] = self.log_alpha[np.arange(len(self.log_alpha)), choices].sum(-1)
        return rating
