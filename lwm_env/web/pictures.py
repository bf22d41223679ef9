"""Frames to files and pictures of people to frames. Whatever a person sends is measured before it is decoded."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from lwm_env.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PICTURE_BYTES = 5_000_000
MAX_PIXELS = 4_000_000
SMALL_SIDE = 64  # up to here quality costs little
GIF_SIDE = 256  # pixels that the shorter side of a GIF has at least


def encode_jpeg(frame: np.ndarray) -> bytes:
    """A frame, uint8 (H, W, 3): quality 90 without chroma subsampling when it is small, else 80 and 4:2:0."""
    small = max(frame.shape[:2]) <= SMALL_SIDE
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90 if small else 80, subsampling=0 if small else 2)
    return file.getvalue()


def encode_png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG", compress_level=1)
    return file.getvalue()


def decode(picture: bytes) -> np.ndarray:
    """One of our own pictures as uint8 (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(picture), formats=FORMATS).convert("RGB"))


def decode_prompt(data: bytes, frame_size: tuple[int, int]) -> np.ndarray:
    """A picture that somebody sent, cropped to the shape of the world's frames and resized: uint8 (H, W, 3).

    Raises:
        InvalidInput: no PNG, JPEG or WebP, animated, damaged, or too large; nothing was decoded then.
    """
    if len(data) > MAX_PICTURE_BYTES:
        raise InvalidInput(f"a picture of {len(data)} bytes came, at most {MAX_PICTURE_BYTES} are taken. Shrink it.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise InvalidInput(
                    f"a picture of {image.width}x{image.height} came, at most {MAX_PIXELS} pixels are taken. Shrink it."
                )
            if getattr(image, "n_frames", 1) > 1:
                raise InvalidInput("an animated picture came, one frame is taken. Save a single frame of it.")
            height, width = frame_size
            image.draft("RGB", (2 * width, 2 * height))  # a JPEG is decoded at the size that is needed
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))
    except InvalidInput:
        raise
    except Exception as error:  # Pillow's decoders raise about anything on damaged files
        raise InvalidInput(f"the picture cannot be read ({error}). Send a PNG, JPEG or WebP.") from error


def encode_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """Frames, uint8 (H, W, 3), as an endless GIF, enlarged without smoothing."""
    height, width = frames[0].shape[:2]
    scale = max(1, GIF_SIDE // min(height, width))
    first, *rest = (
        Image.fromarray(f).resize((scale * width, scale * height), Image.Resampling.NEAREST) for f in frames
    )
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return file.getvalue()
