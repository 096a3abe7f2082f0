"""The supernet (Sec. 4.4): alpha, tau, the Gumbel draw, the mixed forward, expected cost, derive()."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.search_space import OPERATORS, Architecture, Cell, FrameShape, Plan, operator_macs

OPERATOR_NAMES = tuple(OPERATORS)


class MixedCell(nn.Module):
    """All nine operators of one cell."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.operators = nn.ModuleList(
            build(cell.in_channels, cell.out_channels, cell.stride) for build in OPERATORS.values()
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Eq. 10: A_l+1 = sum_i GS(alpha_i^l) O_i^l(A_l).

        Args:
            x: A_l, ``[B, in, h, w]``.
            weights: GS(alpha^l), ``[operators]``.
        """
        out = weights[0] * self.operators[0](x)
        for i in range(1, len(self.operators)):
            # addcmul spares the full-size product that a sum of products would write and read again
            out = torch.addcmul(out, weights[i], self.operators[i](x))
        return out


class Supernet(nn.Module):
    """A backbone whose every cell is a soft sum over its operators, weighted by Eq. 11.

    ``alpha_logits`` is float ``[cells, operators]``; the paper's alpha is its softmax, so that log alpha is its
    log_softmax. ``gumbel`` is the noise g of the current draw and ``tau`` the temperature; both are buffers, so that
    a checkpoint resumes with the draw it was made under. In evaluation mode there is no noise.

    Args:
        plan: groups, cells and channels.
        frame_shape: (stack, height, width).
    """

    gumbel: Tensor
    tau: Tensor
    macs_table: Tensor

    def __init__(self, plan: Plan, frame_shape: FrameShape) -> None:
        super().__init__()
        self.plan = plan
        self.frame_shape = frame_shape
        cells = [MixedCell(cell) for cell in plan.cells()]
        self.body = plan.assemble(frame_shape[0], cells)
        self.alpha_logits = nn.Parameter(torch.zeros(len(cells), len(OPERATOR_NAMES)))
        self.register_buffer("gumbel", torch.zeros_like(self.alpha_logits))
        self.register_buffer("tau", torch.tensor(5.0))
        table, self.fixed_macs = operator_macs(plan, frame_shape)
        self._exact_macs = table.long()
        self.register_buffer("macs_table", table.float(), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames float ``[B, stack, h, w]`` to features ``[B, 256]``."""
        mixture = iter(self.mixture())
        x = frames
        for layer in self.body:
            x = layer(x, next(mixture)) if isinstance(layer, MixedCell) else layer(x)
        return x

    @property
    def cells(self) -> list[MixedCell]:
        """The searchable cells from input to output."""
        return [layer for layer in self.body if isinstance(layer, MixedCell)]

    def mixture(self) -> Tensor:
        """Eq. 11: GS = softmax((log alpha + g) / tau), float ``[cells, operators]``, differentiable in alpha."""
        noise = self.gumbel if self.training else torch.zeros_like(self.gumbel)
        return F.softmax((self.log_alpha() + noise) / self.tau, dim=-1)

    def log_alpha(self) -> Tensor:
        """log alpha, float ``[cells, operators]``."""
        return F.log_softmax(self.alpha_logits, dim=-1)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draws g ~ Gumbel(0, 1) for the next rollout: acting and updating on it use this one draw.

        Args:
            generator: on the CPU and seeded alike on all ranks, so that they mix alike.
        """
        uniform = torch.rand(self.gumbel.shape, generator=generator, dtype=torch.float64)
        self.gumbel.copy_(-torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12))))

    def expected_macs(self) -> Tensor:
        """L_cost before scaling: sum_l sum_i alpha_i^l MACs_i^l plus what is not searched; scalar, differentiable."""
        return (self.log_alpha().exp() * self.macs_table).sum() + self.fixed_macs

    def argmax_macs(self) -> int:
        """MACs of the network that :meth:`derive` would give now."""
        chosen = self.alpha_logits.argmax(-1, keepdim=True).cpu()
        return int(self._exact_macs.gather(1, chosen).sum()) + self.fixed_macs

    def derive(self, game: str = "", teacher: str = "", env_steps: int = 0) -> Architecture:
        """In each cell the operator with the highest alpha."""
        operators = tuple(OPERATOR_NAMES[i] for i in self.alpha_logits.argmax(-1).tolist())
        parameters = sum(p.numel() for layer in self.layers_of(operators) for p in layer.parameters())
        return Architecture(
            operators=operators,
            plan=self.plan,
            frame_shape=self.frame_shape,
            macs=self.argmax_macs(),
            parameters=parameters,
            game=game,
            teacher=teacher,
            env_steps=env_steps,
        )

    def layers_of(self, operators: Sequence[str]) -> list[nn.Module]:
        """The supernet's own layers, with each cell replaced by one of its operators.

        Args:
            operators: a name for each cell.
        """
        names = iter(operators)
        return [
            layer.operators[OPERATOR_NAMES.index(next(names))] if isinstance(layer, MixedCell) else layer
            for layer in self.body
        ]


def inherit_weights(backbone: nn.Sequential, supernet: Supernet, operators: Sequence[str]) -> None:
    """Copies into a derived backbone the weights that its layers have in the supernet."""
    for layer, source in zip(backbone, supernet.layers_of(operators), strict=True):
        layer.load_state_dict(source.state_dict())
