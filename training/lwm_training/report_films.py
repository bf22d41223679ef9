"""Long clips of an evaluation as MP4: a minute of real play beside a minute of dreaming, with the same actions."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from lwm_env.demo import write_video

FILM_BYTES = 1_600_000  # of all films together
QUALITIES = (28, 34, 40)  # of H.264, tried in turn until a film is small enough
SIDE, GAP = 128, 2


class RealFilm:
    """Keeps every real frame of the first clips from their context's end on."""

    def __init__(self, num_clips: int, context: int, horizon: int, frame_size: tuple[int, int]) -> None:
        self._context = context
        self.frames = np.zeros((num_clips, horizon, *frame_size, 3), np.uint8)

    def show(self, clips: np.ndarray, indices: np.ndarray, frames: np.ndarray, crossed: np.ndarray) -> None:
        """A `Watch` of played clips. What follows an episode's end is kept too: the next episode."""
        steps = indices - self._context
        kept = (clips < len(self.frames)) & (steps >= 0)
        self.frames[clips[kept], steps[kept]] = frames[kept]


def can_film() -> bool:
    return importlib.util.find_spec("moviepy") is not None


def films(real: np.ndarray, dreamed: np.ndarray, fps: int) -> list[bytes]:
    """One MP4 for each clip, real left and dreamed right, as many as `FILM_BYTES` hold.

    Args:
        real, dreamed: uint8 (B, T, H, W, 3).
        fps: frames per second of the game.

    Raises:
        StorageError: there is no room for a temporary file.
    """
    found: list[bytes] = []
    gap = np.full((*real.shape[1:3], GAP, 3), 255, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        for pair in zip(real, dreamed, strict=True):
            frames = list(np.concatenate([pair[0], gap, pair[1]], 2))
            for quality in QUALITIES:
                write_video(path, frames, fps, SIDE, quality)
                film = path.read_bytes()
                if sum(map(len, found)) + len(film) <= FILM_BYTES / len(real) * (len(found) + 1):
                    found.append(film)
                    break
    return found
