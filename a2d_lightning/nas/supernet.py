"""The supernet (Sec. 4.4): alpha, tau, the Gumbel draw, the mixed forward, MACs and derivation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.normalization import scratch_batch_norm_stats
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.derivation import Argmax, Derivation
from a2d_lightning.nas.operators import OPERATORS, Builder
from a2d_lightning.nas.sampling import Sampling, SoftSum
from a2d_lightning.nas.search_space import Cell, Plan, operator_macs


class MixedCell(nn.Module):
    """All operators of one cell."""

    def __init__(self, cell: Cell, builders: Iterable[Builder] = OPERATORS.values()) -> None:
        super().__init__()
        self.operators = nn.ModuleList(build(cell.in_channels, cell.out_channels, cell.stride) for build in builders)


@dataclass(frozen=True)
class Draw:
    """The Gumbel draw under which a rollout was collected; updates on the rollout use it, too."""

    gumbel: Tensor  # g, float [cells, operators], or [B, cells, operators] with one draw per frame
    tau: Tensor  # scalar
    ranking: Tensor  # int64 [cells, operators], operators by falling log alpha + g when drawn


@dataclass(frozen=True)
class DrawMacs:
    """Multiply-accumulates of the supernet's backbone for one frame."""

    acting: int
    forward: int
    """Forward of an update."""
    backward: int
    """Backward of an update: the gradients of weights and of inputs, each as much as the forward of the layers with
    a backward, and recomputed forwards."""


class Supernet(nn.Module):
    """A backbone whose cells mix their operators by a draw.

    ``alpha_logits`` is float ``[cells, operators]``. The paper's alpha is its softmax, log alpha its log_softmax.
    ``gumbel`` is the noise g of the current draw, ``ranking`` the operators by log alpha + g, the sampled one first,
    and ``tau`` the temperature. All three are buffers, so that a checkpoint holds the current draw. In evaluation mode
    there is no noise.

    Examples:
        >>> from a2d_lightning.nas.search_space import Plan
        >>> supernet = Supernet(Plan(cells_per_group=(1, 1), channels=(8, 16)), (4, 42, 42))
        >>> supernet.draw(torch.Generator().manual_seed(0))
        >>> supernet(torch.zeros(3, 4, 42, 42)).shape
        torch.Size([3, 256])
        >>> supernet.derive().operators  # alpha is uniform: the first operator
        ('conv_k3', 'conv_k3')

    Args:
        plan: groups, cells and channels.
        frame_shape: (stack, height, width).
        sampling: use of a draw in each cell; the paper's soft sum if absent.
        recompute_activations: store only the cells' inputs, and recompute each cell in the backward.
        derivation: rule by which :meth:`derive` chooses the operators; the highest alpha of each cell if absent.
        operators: builders of each cell's operators, by name (paper: nine).

    Raises:
        SettingError: If the sampling does not fit the number of operators.
    """

    gumbel: Tensor
    tau: Tensor
    ranking: Tensor
    macs_table: Tensor

    def __init__(
        self,
        plan: Plan,
        frame_shape: FrameShape,
        sampling: Sampling | None = None,
        recompute_activations: bool = False,
        derivation: Derivation | None = None,
        operators: Mapping[str, Builder] = OPERATORS,
    ) -> None:
        super().__init__()
        self.operator_names = tuple(operators)
        self.recompute_activations = recompute_activations
        self.plan = plan
        self.frame_shape = frame_shape
        self.sampling = sampling or SoftSum()
        self.sampling.check(len(operators))
        self.derivation = derivation or Argmax()
        cells = [MixedCell(cell, operators.values()) for cell in plan.cells()]
        self.body = plan.assemble(frame_shape[0], cells)
        self.alpha_logits = nn.Parameter(torch.zeros(len(cells), len(self.operator_names)))
        self.register_buffer("gumbel", torch.zeros_like(self.alpha_logits))
        self.register_buffer("tau", torch.tensor(5.0))
        self.register_buffer("ranking", torch.arange(len(self.operator_names)).repeat(len(cells), 1))
        table, self.fixed_macs = operator_macs(plan, frame_shape, operators)
        self.exact_macs = table.long()
        self.register_buffer("macs_table", table.float(), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Compute features ``[B, 256]`` from frames float ``[B, stack, h, w]``."""
        weights, ranking = self.weights(), self.current_ranking().tolist()
        first = next(position for position, layer in enumerate(self.body) if isinstance(layer, MixedCell))
        x = self.body[:first](frames)
        for cell, its_weights, its_ranking in zip(self.cells, weights.unbind(-2), ranking, strict=True):
            x = self._mixed(cell, x, its_weights, its_ranking)
        features: Tensor = self.body[first + len(ranking) :](x)
        return features

    def _mixed(self, cell: MixedCell, x: Tensor, weights: Tensor, ranking: list[int]) -> Tensor:
        if not (self.recompute_activations and torch.is_grad_enabled()):
            return self.sampling.mix(cell.operators, x, weights, ranking)
        return checkpoint(
            self.sampling.mix,
            cell.operators,
            x,
            weights,
            ranking,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), scratch_batch_norm_stats(cell)),  # recomputed batches count once
        )

    def weights(self) -> Tensor:
        """Return the weights of the operators' outputs under the current draw, of the shape of :meth:`mixture`."""
        return self.sampling.weights(self.mixture(), self.current_ranking())

    def mixture(self) -> Tensor:
        """Compute Eq. 11: y = GS(alpha) = softmax((log alpha + g) / tau), differentiable.

        Returns:
            float ``[cells, operators]``, or ``[B, cells, operators]`` with one draw per frame.
        """
        noise = self.gumbel if self.training else torch.zeros_like(self.gumbel)
        return F.softmax((self.log_alpha() + noise) / self.tau, dim=-1)

    def current_ranking(self) -> Tensor:
        """Return the operators of each cell, the sampled one first, int64 ``[cells, operators]``.

        The ranking is that of the draw, or by alpha in evaluation mode.
        """
        return self.ranking if self.training else self.alpha_logits.argsort(dim=-1, descending=True, stable=True)

    def log_alpha(self) -> Tensor:
        """Return log alpha, float ``[cells, operators]``."""
        return F.log_softmax(self.alpha_logits, dim=-1)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw g ~ Gumbel(0, 1) for the next rollout; acting and updating on it use this one draw.

        The ranking is kept, too, while updates change alpha: a policy that is updated several times on a rollout keeps
        its path.

        Args:
            generator: on the CPU and seeded the same on all ranks, so that all ranks use the same draw.
        """
        self.gumbel.copy_(self.new_gumbel(generator))
        self.ranking.copy_((self.alpha_logits + self.gumbel).argsort(dim=-1, descending=True, stable=True))

    def new_gumbel(self, generator: torch.Generator, *frames: int) -> Tensor:
        """Sample g ~ Gumbel(0, 1).

        Args:
            generator: source of random numbers, on the CPU.
            frames: leading dimensions of the result.

        Returns:
            ``[*frames, cells, operators]``, with the device and dtype of alpha.
        """
        uniform = torch.rand(*frames, *self.alpha_logits.shape, generator=generator, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
        return gumbel.to(self.alpha_logits.device, self.alpha_logits.dtype)

    def current_draw(self) -> Draw:
        """Return a copy of the current draw."""
        return Draw(self.gumbel.clone(), self.tau.clone(), self.ranking.clone())

    @contextmanager
    def using_draw(self, draw: Draw) -> Iterator[None]:
        """Make ``draw`` the current draw in this context."""
        kept = self.gumbel, self.tau, self.ranking
        self.gumbel, self.tau, self.ranking = draw.gumbel, draw.tau, draw.ranking
        try:
            yield
        finally:
            self.gumbel, self.tau, self.ranking = kept

    def draw_macs(self) -> DrawMacs:
        """Compute the MACs of the current draw."""
        ranked = self.exact_macs.gather(1, self.ranking.cpu())  # [cells, operators]
        computed = self.sampling.computed
        # the stem is the first layer, so it needs no gradient of its input
        stem = self.fixed_macs - self.plan.channels[-1] * 256
        forward = int(ranked[:, : computed.forward].sum())
        backward = 2 * (int(ranked[:, : computed.backward].sum()) + self.fixed_macs) - stem
        return DrawMacs(
            acting=int(ranked[:, : computed.acting].sum()) + self.fixed_macs,
            forward=forward + self.fixed_macs,
            backward=backward + (forward if self.recompute_activations else 0),
        )

    def evaluation_macs(self) -> int:
        """Compute the MACs of one observation in evaluation, where operators are ranked without noise."""
        ranked = self.exact_macs.gather(1, self.alpha_logits.argsort(dim=-1, descending=True, stable=True).cpu())
        return int(ranked[:, : self.sampling.computed.acting].sum()) + self.fixed_macs

    @property
    def cells(self) -> list[MixedCell]:
        """Return the searchable cells from input to output."""
        return [layer for layer in self.body if isinstance(layer, MixedCell)]

    def macs_range(self) -> tuple[int, int]:
        """Compute the MACs of the cheapest and of the most expensive network in the search space."""
        cheapest, most_expensive = self.exact_macs.amin(1).sum(), self.exact_macs.amax(1).sum()
        return int(cheapest) + self.fixed_macs, int(most_expensive) + self.fixed_macs

    def argmax_macs(self) -> int:
        """Compute the MACs of the network that has the operator with the highest alpha in each cell."""
        return self._network_macs(self.alpha_logits.argmax(-1).cpu())

    def derived_macs(self) -> int:
        """Compute the MACs of the network that :meth:`derive` returns now."""
        return self._network_macs(self.derived_operators())

    def _network_macs(self, operators: Tensor) -> int:
        return int(self.exact_macs.gather(1, operators[:, None]).sum()) + self.fixed_macs

    @torch.no_grad()
    def derived_operators(self) -> Tensor:
        """Choose an operator for each cell by the rule ``derivation``: int64 ``[cells]``, on the CPU.

        Raises:
            SettingError: If no network meets the limit of the rule.
        """
        log_alpha = F.log_softmax(self.alpha_logits.double().cpu(), dim=-1)
        return self.derivation.choose(log_alpha, self.exact_macs, self.fixed_macs)

    def derive(self, game: str = "", teacher: str = "", env_steps: int = 0) -> Architecture:
        """Return the network of :meth:`derived_operators`.

        Args:
            game: name of the game, for the record.
            teacher: name of the teacher, for the record.
            env_steps: environment steps of the search, for the record.

        Raises:
            SettingError: If no network meets the limit of the rule.
        """
        chosen = self.derived_operators()
        operators = tuple(self.operator_names[i] for i in chosen.tolist())
        parameters = sum(p.numel() for layer in self.layers_of(operators) for p in layer.parameters())
        return Architecture(
            operators=operators,
            plan=self.plan,
            frame_shape=self.frame_shape,
            macs=self._network_macs(chosen),
            parameters=parameters,
            game=game,
            teacher=teacher,
            env_steps=env_steps,
        )

    def layers_of(self, operators: Sequence[str]) -> list[nn.Module]:
        """Return the supernet's own layers, with each cell replaced by one of its operators.

        Args:
            operators: name of an operator for each cell.
        """
        names = iter(operators)
        return [
            layer.operators[self.operator_names.index(next(names))] if isinstance(layer, MixedCell) else layer
            for layer in self.body
        ]


def inherit_weights(backbone: nn.Sequential, supernet: Supernet, operators: Sequence[str]) -> None:
    """Copy the supernet's weights into a derived backbone.

    Args:
        backbone: network of ``operators``; changed in place.
        supernet: source of the weights.
        operators: name of each cell's operator.
    """
    for layer, source in zip(backbone, supernet.layers_of(operators), strict=True):
        layer.load_state_dict(source.state_dict())
