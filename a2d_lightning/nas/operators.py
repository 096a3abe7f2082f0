"""Operators of a cell by name: the paper's nine (App. D) and user-defined ones."""

import importlib
from collections.abc import Callable, Mapping

import torch
from torch import nn

from a2d_lightning.models.layers import InvertedResidual, conv, skip
from a2d_lightning.runtime.errors import SettingError

Builder = Callable[[int, int, int], nn.Module]
"""Builds an operator from (in channels, out channels, stride)."""


def _inverted_residual(kernel: int, expansion: int) -> Builder:
    return lambda i, o, s: InvertedResidual(i, o, s, kernel, expansion)


OPERATORS: dict[str, Builder] = {
    "conv_k3": lambda i, o, s: conv(i, o, s, 3),
    "conv_k5": lambda i, o, s: conv(i, o, s, 5),
    **{f"ir_k{k}_e{e}": _inverted_residual(k, e) for k in (3, 5) for e in (1, 3, 5)},
    "skip": skip,
}
"""O_i of the paper: builder of each operator, by name."""

_added: dict[str, Builder] = {}


def known_operators() -> dict[str, Builder]:
    """Return the paper's and all registered operators, by name."""
    return OPERATORS | _added


def register_operators(builders: Mapping[str, Builder]) -> None:
    """Add operators, so that architectures with their names can be built.

    Architecture files and agent cards hold names only: loading a file never imports code.

    Args:
        builders: By name. A builder may be registered again under the same name.

    Raises:
        SettingError: If a name is one of the paper's or belongs to another builder, or an operator maps
            ``[B, in, h, w]`` to another shape than ``[B, out, ceil(h / stride), ceil(w / stride)]``.
    """
    for name, builder in builders.items():
        if known_operators().get(name, builder) is not builder:
            raise SettingError(f"model.operators: {name!r} is the name of another operator; choose another name.")
        _check_shapes(name, builder)
        _added[name] = builder


def operators_of(setting: Mapping[str, str | None] | None) -> dict[str, Builder]:
    """Return the operators of each cell, in the order of the setting; the paper's nine if it is absent.

    Args:
        setting: Class paths of builders by name; null for an operator of the paper.

    Raises:
        SettingError: If it names no operator, an unknown one, or one that cannot be imported or does not fit.
    """
    if setting is None:
        return dict(OPERATORS)
    if not setting:
        raise SettingError("model.operators: {} contains no operator; list at least one, or remove the setting.")
    found = {}
    for name, class_path in setting.items():
        if class_path is not None:
            register_operators({name: _imported(name, class_path)})
        elif name not in OPERATORS:
            raise SettingError(
                f"model.operators: {name!r} is not one of {', '.join(OPERATORS)}; give the class path of its builder."
            )
        found[name] = known_operators()[name]
    return found


def _imported(name: str, class_path: str) -> Builder:
    module, _, attribute = class_path.rpartition(".")
    try:
        builder: Builder = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(
            f"model.operators: {class_path!r} of {name!r} cannot be imported ({error}); install its package, or run "
            "from its folder."
        ) from error
    return builder


def _check_shapes(name: str, builder: Builder) -> None:
    """Build the operator in the shapes that a search space has, and compare its outputs' shapes."""
    for stride, out_channels in ((1, 8), (2, 16)):
        expected = [2, out_channels, -(-7 // stride), -(-5 // stride)]
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                found = list(builder(8, out_channels, stride)(torch.zeros(2, 8, 7, 5)).shape)
        except Exception as error:
            raise SettingError(
                f"model.operators: {name!r} fails for 8 to {out_channels} channels and stride {stride} "
                f"({type(error).__name__}: {error}); it must map [B, in, h, w] to [B, out, h', w']."
            ) from error
        if found != expected:
            raise SettingError(
                f"model.operators: {name!r} maps [2, 8, 7, 5] to {found} for {out_channels} channels and stride "
                f"{stride}; it must be {expected}."
            )
