"""A picture or a short clip from a file as what a dream starts from."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from lwm_env.errors import InvalidInput, missing_extra
from lwm_env.spec import ContinuousActions, WorldSpec

VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi")
NUM_FRAMES = 16  # of a clip that are given to the world: its last ones
LONGEST = 60.0  # seconds of a clip


def read_prompt(path: Path, spec: WorldSpec) -> dict[str, Any]:
    """The options for a `reset` of a world that begin where the picture or clip ends.

    A picture of another shape is cropped at its edges. A clip is read at the world's own steps per second, and its
    last frames are taken. What was pressed in it is not known: every action counts as the first one (NOOP), or as the
    numbers nearest to 0.

    Returns:
        `{"frames": uint8 (T, H, W, 3), "actions": int64 (T - 1,) or float32 (T - 1, A)}`; for a world of P players
        (T - 1, P) or (T - 1, P, A), as `LwmParallelEnv` takes them.

    Raises:
        InvalidInput: no such file, not a picture or clip that can be read, or a clip of more than a minute.
        MissingExtra: a video, and the extra `video` is not installed.
    """
    if not path.is_file():
        raise InvalidInput(f"There is no picture or clip at {path}.")
    try:
        read = _video if path.suffix.lower() in VIDEOS else _pictures
        frames = np.stack(deque(read(path, spec), NUM_FRAMES))
    except (InvalidInput, ImportError):
        raise
    except Exception as error:  # decoders raise about anything on damaged files
        raise InvalidInput(
            f"{path} cannot be read as a picture or clip ({str(error)[-200:]}). Give a PNG, JPEG, WebP, GIF or MP4."
        ) from error
    players = (len(spec.players),) if len(spec.players) > 1 else ()
    lead = (len(frames) - 1, *players)
    if isinstance(spec.actions, ContinuousActions):
        nearest = np.clip(0, spec.actions.low, spec.actions.high).astype(np.float32)
        return {"frames": frames, "actions": np.broadcast_to(nearest, (*lead, len(nearest))).copy()}
    return {"frames": frames, "actions": np.zeros(lead, np.int64)}


def _pictures(path: Path, spec: WorldSpec) -> Iterator[np.ndarray]:
    """The one picture, or those of an animation at the world's rate."""
    with Image.open(path) as image:
        seconds = shown = 0.0
        for picture in ImageSequence.Iterator(image):
            frame = _fit(ImageOps.exif_transpose(picture), spec)
            seconds += max(picture.info.get("duration", 0), 10) / 1000
            if seconds > LONGEST:
                raise _too_long(path)
            while shown < seconds:
                yield frame
                shown += 1 / spec.render_fps
                if getattr(image, "n_frames", 1) == 1:
                    return


def _video(path: Path, spec: WorldSpec) -> Iterator[np.ndarray]:
    try:
        from moviepy import VideoFileClip
    except ImportError as error:
        raise missing_extra("moviepy", "video") from error
    with VideoFileClip(str(path), audio=False) as clip:
        if clip.duration > LONGEST:
            raise _too_long(path)
        for frame in clip.iter_frames(fps=spec.render_fps, dtype="uint8"):
            yield _fit(Image.fromarray(frame), spec)


def _fit(image: Image.Image, spec: WorldSpec) -> np.ndarray:
    height, width = spec.frame_size
    return np.asarray(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS))


def _too_long(path: Path) -> InvalidInput:
    return InvalidInput(f"{path} is longer than {LONGEST:g} s, and only its last frames are used. Cut it.")
