"""Frames in one pass are the frames that torch makes of them, to the bit."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from a2d_lightning.cpu.frames import unit_frames
from a2d_lightning.cpu.kernels import kernels


def random_frames(*shape: int) -> Tensor:
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat = frames.view(-1)
    flat[: min(256, len(flat))] = torch.arange(256, dtype=torch.uint8)[: len(flat)]  # every value
    return frames


# a share is of whole images; vectors are of four frames; 17 images of 30 x 31 are more than one thread's share
@pytest.mark.parametrize("shape", [(1, 4, 5, 3), (17, 4, 30, 31), (3, 1, 7, 5), (16, 3, 9, 9), (2, 6, 1, 1)])
def test_values_and_layout_are_torchs(shape: tuple[int, ...]) -> None:
    pixels = random_frames(*shape)
    run = kernels()
    assert run is not None
    with patch.object(run, "unit_frames", wraps=run.unit_frames) as called:
        found = unit_frames(pixels, torch.float32)
    assert called.call_count == 1
    expected = pixels.to(torch.float32, memory_format=torch.channels_last) / 255.0
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("other", ["double", "layout", "floats", "kernels"])
def test_everything_else_is_torchs_own(other: str) -> None:
    pixels = random_frames(3, 4, 6, 5)
    if other == "layout":
        pixels = pixels.to(memory_format=torch.channels_last)
    elif other == "floats":
        pixels = pixels.float()
    dtype = torch.float64 if other == "double" else torch.float32
    run = kernels()
    assert run is not None
    with (
        patch.object(run, "unit_frames") as called,
        patch("a2d_lightning.cpu.frames.kernels", lambda: None if other == "kernels" else run),
    ):
        found = unit_frames(pixels, dtype)
    assert not called.called
    assert torch.equal(found, pixels.to(dtype) / 255.0)
    assert found.is_contiguous(memory_format=torch.channels_last)
