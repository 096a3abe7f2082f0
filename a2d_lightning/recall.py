"""What acting has computed is not computed again: an update finds the outputs of convolutions and dense layers kept.

An update on a whole rollout starts from the weights that acted on it, so that its forward repeats what acting did,
frame by frame, wherever a frame's activations do not depend on the batch it is in. Here each of these layers gives what
it gave then; activations between them are computed again, and autograd, which this lies below, keeps its own record:
the backward is torch's. Own code: libraries for reinforcement learning forward a rollout twice.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = (torch.ops.aten.convolution.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
"""What convolutions and dense layers call, once each."""


def can_be_recalled(network: nn.Module) -> bool:
    """Whether ``network`` computes the same of a frame in a time step's batch and in a rollout's, up to rounding.

    Conventional batch norm does not, and a compiled network shows nothing of its layers.
    """
    compiled = network._compiled_call_impl is not None
    return not compiled and not any(
        type(layer) is nn.BatchNorm2d or isinstance(layer, nn.modules.dropout._DropoutNd) for layer in network.modules()
    )


class Activations:
    """Outputs of a network's layers over the steps of a rollout, in memory that the next rollout uses again.

    Args:
        network: calls each of its convolutions and dense layers once a forward.
        num_steps: T.
    """

    def __init__(self, network: nn.Module, num_steps: int) -> None:
        self.num_steps = num_steps
        self._layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        self._kept: dict[nn.Module, Tensor] = {}  # each [T, n, ...], in the order of the forward

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, T forwards, each of a time step's n frames, are kept."""
        steps: Counter[nn.Module] = Counter()

        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            if layer not in self._kept:
                self._kept[layer] = _repeated(output, self.num_steps)
            self._kept[layer][steps[layer]].copy_(output)  # a copy, since a ReLU may work in place
            steps[layer] += 1

        # not by a dispatch mode: it takes 25 us of every operation
        hooks = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def rollout(self) -> TensorDict:
        """All of them, each ``[n, T, ...]`` and named by its place in the forward; memory is time-major."""
        by_layer = {str(place): outputs.transpose(0, 1) for place, outputs in enumerate(self._kept.values())}
        return TensorDict(by_layer, next(iter(by_layer.values())).shape[:2])


@contextmanager
def recalled(activations: TensorDict) -> Iterator[None]:
    """Inside, one forward of the rollout's ``T n`` frames, time-major, finds its layers computed.

    Args:
        activations: of :meth:`Activations.rollout`, under the weights of now. A ReLU that works in place works on them:
            they can be recalled once.

    Raises:
        RuntimeError: it was another network's forward.
    """
    layers = range(len(activations.keys()))
    kept = iter([activations[str(layer)].transpose(0, 1).flatten(0, 1) for layer in layers])
    with _Recalling(kept):
        yield
    if next(kept, None) is not None:
        raise RuntimeError("fewer layers were called than were kept")


class _Recalling(TorchDispatchMode):
    def __init__(self, kept: Iterator[Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in LAYERS:
            return func(*args, **(kwargs or {}))
        kept = next(self._kept, None)
        if kept is None:
            raise RuntimeError("more layers were called than were kept")
        return kept.detach()  # an alias, which autograd may mark as its own result


def _repeated(out: Tensor, times: int) -> Tensor:
    """Room for ``[times, *out.shape]``, each in the layout of ``out``."""
    last = out.dim() == 4 and out.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    room = torch.empty((times * len(out), *out.shape[1:]), dtype=out.dtype, device=out.device, memory_format=layout)
    return room.unflatten(0, (times, -1))
