"""Episodes sealed into HDF5 files: written once, whole, and never changed."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env.errors import CorruptFile, missing_extra
from lwm_training.episode import CHUNK_FRAMES, Episode, Layout, decode_frames


def import_h5py() -> Any:
    """The `h5py` module, or MissingExtra."""
    try:
        import h5py
    except ImportError as error:
        raise missing_extra("h5py", "data") from error
    return h5py


def encode_shard(episodes: Sequence[Episode], layout: Layout) -> bytes:
    """An HDF5 file of these episodes.

    `observations` (frames, H, W, 3) is gzipped in chunks of 16 frames, and each episode begins at a chunk; `actions`,
    `rewards`, `terminations` and `truncations` hold the steps of all of them, one after the other. `episodes/...` has
    one entry per episode: first_frame, first_step, length, seed, complete, sha256. It is made in memory, since HDF5
    itself does not survive a full disk.
    """
    h5py = import_h5py()
    lengths = np.array([len(episode) for episode in episodes], np.int64)
    chunks = [len(episode.chunks) for episode in episodes]
    first_frames = np.cumsum([0, *chunks]) * CHUNK_FRAMES
    file = io.BytesIO()
    with h5py.File(file, "w") as shard:
        observations = shard.create_dataset(
            "observations",
            shape=(first_frames[-1], *layout.frame_shape),
            dtype="u1",
            chunks=(CHUNK_FRAMES, *layout.frame_shape),
            compression="gzip",
            compression_opts=1,
        )
        frame = 0
        for chunk in (chunk for episode in episodes for chunk in episode.chunks):
            observations.id.write_direct_chunk((frame, 0, 0, 0), chunk)
            frame += CHUNK_FRAMES
        for name in layout.step_arrays:
            data = np.concatenate([episode.steps[name] for episode in episodes])
            shard.create_dataset(name, data=data, compression="gzip", compression_opts=1)
        index = {
            "first_frame": first_frames[:-1].astype(np.int64),
            "first_step": np.cumsum([0, *lengths])[:-1].astype(np.int64),
            "length": lengths,
            "seed": np.array([episode.seed for episode in episodes], np.int64),
            "complete": np.array([episode.complete for episode in episodes], bool),
            "sha256": np.array([np.frombuffer(episode.digest, np.uint8) for episode in episodes]),
        }
        for name, data in index.items():
            shard.create_dataset(f"episodes/{name}", data=data)
    return file.getvalue()


class Shard:
    """Reads one sealed file; the steps of all its episodes are held in memory, the frames are not."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Raises CorruptFile if it is not such a file."""
        h5py = import_h5py()
        self.path, self._layout = path, layout
        try:
            self._file = h5py.File(path, "r")
            self._frames = self._file["observations"]
            self.steps = {name: self._file[name][()] for name in layout.step_arrays}
            self.index = {name: data[()] for name, data in self._file["episodes"].items()}
        except (OSError, KeyError, RuntimeError, AttributeError) as error:
            folder = path.parent.parent
            raise CorruptFile(f"{path} is damaged or missing: {error}. Run `lwm data verify {folder}`.") from error

    def __len__(self) -> int:
        return len(self.index["length"])

    def close(self) -> None:
        self._file.close()

    def frames(self, episode: int, start: int, stop: int) -> np.ndarray:
        """Frames start to stop of an episode, uint8 (stop - start, H, W, 3); raises CorruptFile."""
        try:
            return decode_frames(self._chunk_of(episode), self._layout.frame_shape, start, stop)
        except (CorruptFile, OSError) as error:
            raise CorruptFile(f"{self.path}, episode {episode}: {error}") from error

    def episode_steps(self, episode: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Steps start to stop of an episode, by name."""
        first = int(self.index["first_step"][episode])
        return {name: data[first + start : first + stop] for name, data in self.steps.items()}

    def episode(self, episode: int) -> Episode:
        """One whole episode, checked against its sha256; raises CorruptFile."""
        length = int(self.index["length"][episode])
        chunk = self._chunk_of(episode)
        found = Episode(
            self.episode_steps(episode, 0, length),
            [chunk(index) for index in range(length // CHUNK_FRAMES + 1)],
            int(self.index["seed"][episode]),
            bool(self.index["complete"][episode]),
        )
        if found.digest != self.index["sha256"][episode].tobytes():
            raise CorruptFile(f"{self.path}, episode {episode} is damaged. Run `lwm data verify` on its data set.")
        return found

    def _chunk_of(self, episode: int) -> Any:
        first, read = int(self.index["first_frame"][episode]), self._frames.id.read_direct_chunk
        return lambda index: read((first + index * CHUNK_FRAMES, 0, 0, 0))[1]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
