"""Images of any layout and type as bytes. Oracles: pixels placed by hand, and arithmetic written beside the test."""

from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from a2d_lightning.rollouts.games import FrameSettings
from a2d_lightning.rollouts.image_format import image_format
from a2d_lightning.runtime.errors import SettingError

AS_IT_IS = FrameSettings(size=None, stack=1, skip=1, gray=False)


def bytes_box(*shape: int) -> Box:
    return Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "pixel", "frame_shape"),
    [
        ((5, 7), (2, 3), (1, 5, 7)),
        ((5, 7, 3), (2, 3, 1), (3, 5, 7)),
        ((3, 5, 7), (1, 2, 3), (3, 5, 7)),
        ((10, 10, 12), (2, 3, 1), (12, 10, 10)),  # more channels than rows: the square decides
        ((12, 10, 10), (1, 2, 3), (12, 10, 10)),
        ((10, 10, 10), (2, 3, 1), (10, 10, 10)),  # nothing decides: channels last, as Gymnasium's wrappers have it
        ((6, 8, 1), (2, 3, 0), (1, 6, 8)),
    ],
)
def test_a_pixel_is_found_again_by_channel_row_and_column(
    shape: tuple[int, ...], pixel: tuple[int, ...], frame_shape: tuple[int, int, int]
) -> None:
    found = image_format("game", bytes_box(*shape), AS_IT_IS)
    assert found.frame_shape == frame_shape
    images = np.zeros((2, *shape), np.uint8)
    images[(1, *pixel)] = 9
    frames = found.frames(images)
    assert frames.shape == (2, *frame_shape)
    channel = pixel[0] if shape[0] == frame_shape[0] and len(shape) == 3 and shape != (10, 10, 10) else pixel[-1]
    assert [tuple(where) for where in np.argwhere(frames)] == [(1, channel if len(shape) == 3 else 0, 2, 3)]


def test_the_position_of_channels_can_be_given() -> None:
    first = image_format("game", bytes_box(10, 10, 10), FrameSettings(size=None, gray=False, channels="first"))
    images = np.zeros((1, 10, 10, 10), np.uint8)
    images[0, 1, 2, 3] = 9
    assert np.argwhere(first.frames(images)).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("box", "values", "expected"),
    [
        (Box(0, 1, (2, 2), cast(Any, bool)), [False, True], [0, 255]),
        (Box(0, 255, (2, 2), np.uint8), [7, 255], [7, 255]),
        (Box(0, 1, (2, 2), np.uint8), [0, 1], [0, 255]),
        (Box(155, 255, (2, 2), np.uint8), [155, 255], [0, 255]),
        (Box(-1.0, 1.0, (2, 2), np.float32), [-1.0, 1.0, 0.5], [0, 255, 191]),  # 0.75 * 255 = 191.25
        (Box(0.0, 255.0, (2, 2), np.float64), [3.4, 250.6], [3, 251]),
        (Box(0, 4, (2, 2), np.int64), [1, 4], [64, 255]),  # 63.75
        (Box(-1, 1, (2, 2), np.float32), [-5.0, 5.0], [0, 255]),  # beyond its own bounds
    ],
)
def test_values_are_scaled_from_their_bounds_to_bytes(box: Box, values: list[float], expected: list[int]) -> None:
    images = np.array(values).astype(box.dtype)[:, None, None] * np.ones((1, 2, 2), box.dtype)
    frames = image_format("game", box, FrameSettings(size=None)).frames(images)
    assert frames.dtype == np.uint8
    assert frames[:, 0, 1, 1].tolist() == expected


def test_bounds_of_each_pixel_count() -> None:
    high = np.array([[1.0, 2.0], [4.0, 8.0]], np.float32)
    found = image_format("game", Box(np.zeros_like(high), high), FrameSettings(size=None))
    assert found.frames(high[None] / 2).reshape(-1).tolist() == [128] * 4  # 127.5, rounded to even


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 7, 10])
def test_any_number_of_channels_is_resized_by_area(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, channels), np.uint8)
    frames = image_format("game", bytes_box(12, 12, channels), FrameSettings(size=6, gray=False)).frames(images)
    means = images.reshape(2, 6, 2, 6, 2, channels).mean((2, 4)).transpose(0, 3, 1, 2)
    assert np.abs(frames - means).max() <= 0.5


def test_an_image_that_is_no_square_becomes_one() -> None:
    found = image_format("game", bytes_box(6, 12), FrameSettings(size=6))
    assert found.frames(np.full((2, 6, 12), 7, np.uint8)).tolist() == np.full((2, 1, 6, 6), 7).tolist()


def test_floats_may_be_shown_in_a_space_of_floats() -> None:
    image_format("game", Box(0, 1, (2, 2), np.float32), AS_IT_IS).check("game", np.zeros((2, 2), np.float64))


def test_gray_is_the_luminance_and_one_channel_stays() -> None:
    colors = np.eye(3, dtype=np.uint8)[None] * 255  # [1, 3 columns, 3 channels], one row
    found = image_format("game", bytes_box(1, 3, 3), FrameSettings(size=None, channels="last"))
    assert found.frames(colors[None])[0, 0, 0].tolist() == [54, 182, 18]  # 255 x (0.2125, 0.7154, 0.0721)
    gray = image_format("game", bytes_box(5, 5, 1), FrameSettings(size=None))
    assert gray.frames(np.full((1, 5, 5, 1), 77, np.uint8)).tolist() == np.full((1, 1, 5, 5), 77).tolist()


def test_the_image_of_a_dict_is_found_by_itself_or_by_name() -> None:
    one = Dict(image=bytes_box(4, 5, 3), direction=gymnasium.spaces.Discrete(4))
    assert image_format("game", one, AS_IT_IS).key == "image"
    two = Dict(image=bytes_box(4, 5, 3), map=bytes_box(6, 7))
    named = image_format("game", two, FrameSettings(size=None, image_key="map"))
    assert named.frame_shape == (1, 6, 7)
    assert named.key == "map"
    with pytest.raises(SettingError, match=r"data\.frames\.image_key: game has several.*image, map"):
        image_format("game", two, AS_IT_IS)


@pytest.mark.parametrize(
    ("space", "settings", "error"),
    [
        (Box(0, 1, (4,)), AS_IT_IS, r"data\.game: game observes .* needs images"),
        (Box(-np.inf, np.inf, (4, 4)), AS_IT_IS, r"data\.game: .*\[-inf, inf\].*finite bounds"),
        (Box(0, np.inf, (4, 4), np.int32), AS_IT_IS, r"data\.game: .*\[0, 2147483647\].*finite bounds"),
        (Box(-3e38, 3e38, (4, 4)), AS_IT_IS, r"data\.game: .*finite bounds"),
        (bytes_box(6, 6, 4), FrameSettings(size=None), r"data\.frames\.gray: .* 4 channels"),
        (bytes_box(6, 6, 2), FrameSettings(size=None), r"data\.frames\.gray: .* 2 channels"),
        (bytes_box(6, 6, 3), FrameSettings(image_key="image"), r"data\.frames\.image_key: .*not a Dict"),
        (Dict(image=bytes_box(6, 6)), FrameSettings(image_key="picture"), r"data\.frames\.image_key: 'picture' is no"),
    ],
)
def test_what_cannot_be_an_image_is_refused(space: gymnasium.Space, settings: FrameSettings, error: str) -> None:
    with pytest.raises(SettingError, match=error):
        image_format("game", space, settings)
