"""What a game shows, as uint8 RGB frames (H, W, 3), whatever order, stack or colour it comes in."""

import sys
from collections.abc import Callable
from typing import Literal

import numpy as np
from gymnasium import spaces

from lwm_env.errors import InvalidInput, missing_extra

_SMALLEST_SIDE = 16  # below this a uint8 box is a grid of cell codes, not a picture
Converter = Callable[[np.ndarray], np.ndarray]
Shrink = Literal["mean", "brightest"]


def image_converter(space: spaces.Space, num_stacked: int = 1) -> Converter | None:
    """A function from a batch of observations of `space` to uint8 (R, H, W, 3), or None if they are no images.

    Handles HWC and CHW, grey (H, W) or one channel, four channels (the last is dropped), and stacks: of the
    `num_stacked` frames laid along the channels of a CHW observation, or along the first axis, the last is taken.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return None
    shape = space.shape
    if len(shape) == 2 and min(shape) >= _SMALLEST_SIDE:
        return lambda batch: _rgb(batch[..., None])
    if len(shape) == 4:  # a stack of (H, W, C)
        inner = image_converter(spaces.Box(0, 255, shape[1:], np.uint8))
        return None if inner is None else lambda batch: inner(batch[:, -1])
    if len(shape) != 3:
        return None
    if shape[-1] in (1, 3, 4) and min(shape[:2]) >= _SMALLEST_SIDE:
        return _rgb
    if min(shape[1:]) < _SMALLEST_SIDE:
        return None
    channels = shape[0] // num_stacked
    if channels not in (1, 3, 4):
        channels = 1  # a stack of grey frames that nobody announced
    return lambda batch: _rgb(np.moveaxis(batch[:, -channels:], 1, -1))


def _rgb(batch: np.ndarray) -> np.ndarray:
    """(R, H, W, 1 | 3 | 4) -> (R, H, W, 3)."""
    return np.repeat(batch, 3, axis=-1) if batch.shape[-1] == 1 else batch[..., :3]


def resize(frames: np.ndarray, size: tuple[int, int] | None, shrink: Shrink = "mean") -> np.ndarray:
    """uint8 frames (R, H, W, 3) at `size` (height, width); a pixel is the mean of the area that it covers, or the
    brightest pixel that it touches, so that what is small and bright, such as a ball, stays whole.

    Raises:
        MissingExtra: a mean is needed and OpenCV is not installed.
    """
    if size is None or frames.shape[1:3] == tuple(size):
        return np.ascontiguousarray(frames)
    if min(size) < 1:
        raise InvalidInput(f"A frame size must be positive, got {size}.")
    if shrink == "brightest":
        return _brightest(frames, size)
    try:
        import cv2
    except ImportError as error:
        raise missing_extra("opencv-python-headless", "data") from error
    resized = np.empty((len(frames), *size, 3), np.uint8)
    for row, frame in enumerate(frames):
        cv2.resize(np.ascontiguousarray(frame), (size[1], size[0]), dst=resized[row], interpolation=cv2.INTER_AREA)
    return resized


def _brightest(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    order = slice(None, None, -1) if sys.byteorder == "little" else slice(None)
    packed = np.empty((*frames.shape[:3], 4), np.uint8)[..., order]  # most significant first
    total = frames[..., 0].astype(np.uint16)
    for colour in (1, 2):
        total += frames[..., colour]
    packed[..., 0] = total // 3  # the brightness decides, then the colour, so it is one pixel
    packed[..., 1:] = frames
    values = packed[..., order].view(np.uint32)[..., 0]
    for axis, count in ((1, size[0]), (2, size[1])):
        length = values.shape[axis]
        first = np.arange(count) * length // count
        last = -(-np.arange(1, count + 1) * length // count) - 1
        brightest = values.take(first, axis)
        for step in range(1, (last - first).max() + 1):
            np.maximum(brightest, values.take(np.minimum(first + step, last), axis), out=brightest)
        values = brightest
    return np.ascontiguousarray(values[..., None].view(np.uint8)[..., order][..., 1:])
