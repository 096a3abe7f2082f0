"""Conversion of the images of any Gymnasium environment to frames ``uint8 [channels, h, w]``."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import gymnasium
import numpy as np

from a2d_lightning.rollouts.games import FrameSettings
from a2d_lightning.runtime.errors import SettingError

GRAY_WEIGHTS = np.array([[0.2125, 0.7154, 0.0721]], dtype=np.float32)
"""Luminance weights of red, green and blue, as in Gymnasium's GrayscaleObservation."""

IMAGE_RANKS = (2, 3)


@dataclass(frozen=True)
class ImageFormat:
    """The image in an environment's observations, and its conversion to a frame.

    Args:
        space: Space of the image, of rank 2 or 3.
        key: Key of the image in a Dict observation; None if the observation is the image.
        channels_first: Whether the image is ``[c, h, w]``; ignored for ``[h, w]``.
        gray: Whether to convert three channels to luminance.
        size: Height and width of the frame, pixels; None keeps those of the image.
    """

    space: gymnasium.spaces.Box
    key: str | None
    channels_first: bool
    gray: bool
    size: int | None

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width) of one frame."""
        height, width, channels = self._height_width_channels()
        if self.size is not None:
            height = width = self.size
        return (1 if self.gray else channels), height, width

    def _height_width_channels(self) -> tuple[int, int, int]:
        shape = self.space.shape
        if len(shape) == min(IMAGE_RANKS):
            return shape[0], shape[1], 1
        if self.channels_first:
            return shape[1], shape[2], shape[0]
        return shape[0], shape[1], shape[2]

    def check(self, game: str, image: np.ndarray) -> None:
        """Compare an image with its space: NumPy would broadcast a smaller image and truncate floats without an error.

        Args:
            game: Name of the environment, for error messages.
            image: Image from the environment.

        Raises:
            SettingError: If the shapes differ, or the image has floats and the space integers or booleans.
        """
        shown, space = np.asarray(image), self.space
        if shown.shape != space.shape or (shown.dtype.kind == "f" and np.dtype(space.dtype).kind != "f"):
            raise SettingError(
                f"data.game: {game} returns {shown.dtype} {list(shown.shape)}, but its observation space declares "
                f"{space.dtype} {list(space.shape)}; correct one of them, for example with a wrapper in data.wrappers."
            )

    def frames(self, images: np.ndarray) -> np.ndarray:
        """Convert ``n`` images.

        Args:
            images: ``[n, *space.shape]``, dtype of the space.

        Returns:
            Frames uint8 ``[n, channels, height, width]``; may share memory with ``images``.
        """
        pixels = self._to_bytes(images)
        if pixels.ndim == 1 + min(IMAGE_RANKS):
            pixels = pixels[..., None]
        elif self.channels_first:
            pixels = pixels.transpose(0, 2, 3, 1)
        if self.gray or self.size is not None:
            pixels = np.stack([self._gray_and_resized(image) for image in pixels])
        return pixels.transpose(0, 3, 1, 2)

    def _to_bytes(self, images: np.ndarray) -> np.ndarray:
        if images.dtype == np.bool_:
            return images.view(np.uint8) * np.uint8(255)
        low, high = self.space.low, self.space.high
        if images.dtype == np.uint8 and not low.any() and (high == 255).all():
            return images
        scaled = (images.astype(np.float32) - low) * (np.float32(255) / (high.astype(np.float32) - low))
        return np.rint(scaled).clip(0, 255).astype(np.uint8)

    def _gray_and_resized(self, image: np.ndarray) -> np.ndarray:
        """Convert one image uint8 ``[h, w, c]``."""
        if self.gray and image.shape[-1] > 1:
            image = cv2.transform(image, GRAY_WEIGHTS)[..., None]
        if self.size is None or image.shape[:2] == (self.size, self.size):
            return image
        # INTER_AREA supports at most four channels
        parts = [image[..., first : first + 4] for first in range(0, image.shape[-1], 4)]
        resized = [cv2.resize(part, (self.size, self.size), interpolation=cv2.INTER_AREA) for part in parts]
        return np.concatenate([part.reshape(self.size, self.size, -1) for part in resized], axis=-1)


def image_format(game: str, space: gymnasium.Space, settings: FrameSettings) -> ImageFormat:
    """Find the image in an environment's observations.

    Args:
        game: Name of the environment, for error messages.
        space: Observation space of the environment.
        settings: Preprocessing settings.

    Returns:
        The image and its conversion.

    Raises:
        SettingError: If there is no image, several images without a choice, or an image that does not fit the settings.
    """
    key, image = _find_image(game, space, settings.image_key)
    channels_first = _channels_first(image.shape, settings.channels)
    found = ImageFormat(image, key, channels_first, settings.gray, settings.size)
    _check_values(game, image)
    channels = found._height_width_channels()[2]
    if settings.gray and channels not in (1, 3):
        raise SettingError(
            f"data.frames.gray: images of {game} have {channels} channels, not red, green and blue; set it to false."
        )
    return found


def _find_image(game: str, space: gymnasium.Space, key: str | None) -> tuple[str | None, gymnasium.spaces.Box]:
    named: Mapping[str | None, gymnasium.Space] = {None: space}
    if isinstance(space, gymnasium.spaces.Dict):
        named = {name: part for name, part in space.spaces.items()}
    elif key is not None:
        raise SettingError(f"data.frames.image_key: {game} observes {space}, not a Dict; remove {key!r}.")
    images = {
        name: part
        for name, part in named.items()
        if isinstance(part, gymnasium.spaces.Box) and len(part.shape) in IMAGE_RANKS
    }
    if key is not None:
        if key not in images:
            raise SettingError(
                f"data.frames.image_key: {key!r} is not an image of {game}, whose observation space is {space}."
            )
        return key, images[key]
    if len(images) > 1:
        names = ", ".join(str(name) for name in images)
        raise SettingError(f"data.frames.image_key: {game} has several images; choose one of {names}.")
    if not images:
        raise SettingError(
            f"data.game: {game} observes {space}; a2d needs images [h, w], [h, w, c] or [c, h, w]. "
            "data.wrappers can convert observations."
        )
    ((name, image),) = images.items()
    return name, image


def _channels_first(shape: tuple[int, ...], channels: str | None) -> bool:
    if len(shape) == min(IMAGE_RANKS):
        return False
    if channels is not None:
        return channels == "first"
    # most images are square; if that is ambiguous, assume fewer channels than rows
    if (shape[0] == shape[1]) != (shape[1] == shape[2]):
        return shape[1] == shape[2]
    return shape[0] < shape[2]


def _check_values(game: str, image: gymnasium.spaces.Box) -> None:
    if image.dtype == np.bool_:
        return
    low, high = image.low, image.high
    with np.errstate(over="ignore"):
        width = high.astype(np.float32) - low
    # Gymnasium replaces infinite bounds of integers by the limits of the dtype
    if not (image.is_bounded("both") and np.isfinite(width).all() and (high > low).all()):
        raise SettingError(
            f"data.game: values of {game}'s images lie in [{low.min()}, {high.max()}], which cannot be scaled to "
            "bytes; give finite bounds with a wrapper in data.wrappers (gymnasium.wrappers.RescaleObservation)."
        )
