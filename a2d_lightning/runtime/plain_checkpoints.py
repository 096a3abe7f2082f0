"""Checkpoints of tensors and plain values: loading never executes code, and saving refuses other values."""

import io
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from a2d_lightning.runtime.errors import RunFailedError, SettingError

NOT_OF_THE_AGENT = ("callbacks", "hyper_parameters")
"""Entries of a checkpoint that are not needed to restore the agent."""


class Unread:
    """Placeholder for a value of a type that is not loaded; the content in the file is ignored."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def dump(checkpoint: dict[str, Any]) -> memoryview:
    """Serialize a checkpoint with ``torch.save``; NumPy scalars become Python numbers.

    Args:
        checkpoint: Tensors, numbers and strings, and lists, tuples and dicts of them.

    Returns:
        The content of the file.

    Raises:
        RunFailedError: If the checkpoint holds a value that :func:`load` would not read.
    """
    content = _serialized(checkpoint)
    if _is_read(content):
        return content.getbuffer()
    checkpoint = _with_python_numbers(checkpoint)
    content = _serialized(checkpoint)
    if _is_read(content):
        return content.getbuffer()
    place, value = next(found for found in _leaves(checkpoint) if not _is_read(_serialized(found[1])))
    raise RunFailedError(
        f"the checkpoint cannot be saved: {place} is a {_type_name(value)}, which could not be loaded again; store "
        "only numbers, strings, tensors, and lists and dicts of them there."
    )


def load(path: Path | str, map_location: Any = "cpu") -> Any:
    """Load a checkpoint of tensors and plain values (``weights_only`` of ``torch.load``).

    In the entries :data:`NOT_OF_THE_AGENT`, items with values of other types are dropped with a warning.

    Args:
        path: The file.
        map_location: As in ``torch.load``.

    Returns:
        The content of the file.

    Raises:
        SettingError: If another entry holds a value of another type.
        pickle.UnpicklingError: If ``torch.save`` has not written the file.
    """
    unknown = _unknown_types(path)
    if not unknown:
        return torch.load(path, map_location=map_location, weights_only=True)
    stand_ins: list[Any] = [(type(name, (Unread,), {}), name) for name in unknown]
    with safe_globals(stand_ins):
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    for part in NOT_OF_THE_AGENT:
        entries = checkpoint.get(part) if isinstance(checkpoint, dict) else None
        if not isinstance(entries, dict):
            continue
        for name in list(entries):
            unread = next((value for _, value in _leaves(entries[name]) if isinstance(value, Unread)), None)
            if unread is not None:
                rank_zero_info(
                    f"warning: {path}: {part}[{name!r}] contains a {type(unread).__name__}, which cannot be loaded "
                    "and is skipped; everything else is loaded"
                )
                del entries[name]
    for place, value in _leaves(checkpoint):
        if isinstance(value, Unread):
            raise SettingError(
                f"{path}: {place or 'the content'} is a {type(value).__name__}; not a readable agent file, because "
                "only tensors and plain values are loaded. Choose another."
            )
    return checkpoint


def _unknown_types(path: Path | str) -> list[str]:
    try:
        return get_unsafe_globals_in_checkpoint(str(path))
    except ValueError:  # not a zip archive (torch before 1.6, or damaged): torch.load raises the error
        return []


def _serialized(checkpoint: Any) -> io.BytesIO:
    content = io.BytesIO()
    torch.save(checkpoint, content)
    return content


def _is_read(content: io.BytesIO) -> bool:
    content.seek(0)
    return not get_unsafe_globals_in_checkpoint(content)


def _with_python_numbers(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_with_python_numbers(key): _with_python_numbers(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_python_numbers(entry) for entry in value)
    return value


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the place of each leaf value, such as ``callbacks['MyCallback']['best']``, and the value."""
    if type(value) in (dict, OrderedDict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{place}[{key!r}]" if place else str(key))
    elif type(value) in (list, tuple, set):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{place}[{index}]")
    else:
        yield place, value


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
