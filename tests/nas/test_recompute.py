"""Activations that are computed again in the backward: the same update, from less memory."""

from typing import Any

import pytest
import torch
from small_supernets import FRAME, make_supernet
from torch import Tensor

from a2d_lightning.models.normalization import Normalization, with_normalization
from a2d_lightning.modules import SearchModule
from a2d_lightning.nas.sampling import HardStraightThrough, Sampling, SinglePath, SoftSum, TopK
from a2d_lightning.nas.schemes import UnrolledBiLevel
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet
from a2d_lightning.runtime.errors import SettingError

X = torch.rand(6, *FRAME, generator=torch.Generator().manual_seed(1))


def supernet_of(sampling: Sampling, normalization: Normalization, recompute: bool) -> Supernet:
    supernet = with_normalization(make_supernet(sampling=sampling), normalization).train()
    supernet.recompute_activations = recompute
    return supernet


@pytest.mark.parametrize("normalization", ["batch", "running", "group", "none"])
@pytest.mark.parametrize(
    "sampling", [SoftSum(), HardStraightThrough(), TopK(2), SinglePath()], ids=lambda s: type(s).__name__
)
def test_an_update_is_the_same_to_the_last_bit(sampling: Sampling, normalization: Normalization) -> None:
    """Outputs, gradients, and what moves running statistics: the buffers, and what running layers have seen."""
    seen = []
    for recompute in (False, True):
        supernet = supernet_of(sampling, normalization, recompute)
        out = supernet(X)
        out.square().sum().backward()
        state: dict[str, Any] = {"out": out, **supernet.state_dict()}
        state |= {f"gradient of {name}": p.grad for name, p in supernet.named_parameters()}
        for name, layer in supernet.named_modules():
            state |= {f"{name} saw {i}": batch for i, batch in enumerate(getattr(layer, "seen", []))}
        seen.append(state)
    kept, recomputed = seen
    assert kept.keys() == recomputed.keys()
    assert any("gradient" in name and value is not None and value.abs().max() > 0 for name, value in kept.items())
    for name, value in kept.items():
        same = recomputed[name] is None if value is None else torch.equal(value, recomputed[name])
        assert same, name


def test_a_backward_keeps_the_cells_inputs_and_nothing_inside_of_them() -> None:
    plan, frame = Plan((2, 2), (8, 16)), (2, 32, 32)

    def kept_bytes(recompute: bool) -> int:
        supernet = Supernet(plan, frame, SoftSum(), recompute).train()
        kept: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            kept[x.data_ptr()] = x.numel() * x.element_size()
            return x

        def inside(*_: Any) -> None:
            kept.clear()

        # what is kept from the first cell on; the stem keeps the same either way
        supernet.body[2].register_forward_hook(inside)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            supernet(torch.rand(4, *frame)).sum()
        return sum(kept.values())

    # Floats of four frames: the inputs of the four cells (the second group's first one halves them), the average pool's
    # 16 and the last layer's 256. Then that layer's weight, and nine shares of the operators in each cell.
    frames = 3 * 8 * 16 * 16 + 16 * 8 * 8 + 16 + 256
    assert kept_bytes(True) == 4 * (4 * frames + 16 * 256 + 4 * 9)
    # without it the nine outputs of each cell are kept at least
    assert kept_bytes(False) > 4 * 4 * 9 * 2 * (8 * 16 * 16 + 16 * 8 * 8)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"scheme": UnrolledBiLevel()}, "UnrolledBiLevel"), ({"normalization": "per_step"}, "per_step")],
)
def test_what_a_backward_would_not_find_again_is_refused(settings: dict[str, Any], named: str) -> None:
    common: dict[str, Any] = {"game": "Toy", "frame_shape": (2, 21, 21), "num_actions": 3, "total_env_steps": 1000}
    with pytest.raises(SettingError, match=f"recompute_activations.*{named}"):
        SearchModule(Plan((1,), (4,)), recompute_activations=True, **common, **settings)
