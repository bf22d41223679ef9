"""A data set of recorded episodes on disk: append-only, safe against kills, checked bit by bit.

DIR/dataset.json    what it is, and size and sha256 of each sealed file (see manifest.py)
DIR/shards/*.h5     sealed episodes, never changed again (see shards.py)
DIR/journal.bin     episodes finished since; sealed when there are enough, at close, or at the next opening
DIR/writer.lock     held while someone records
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env.errors import CorruptFile, InvalidInput, StorageError
from lwm_training import journal, manifest
from lwm_training.clips import Clips
from lwm_training.episode import Episode
from lwm_training.episode_writer import EpisodeWriter
from lwm_training.manifest import read_manifest
from lwm_training.shards import Shard, sha256_of

_OPEN_SHARDS = 256
_LOG = logging.getLogger(__name__)


class EpisodeStore:
    """Reads a data set. Episodes are numbered in the order they were committed; all of them are open at random."""

    def __init__(self, folder: Path | str, num_threads: int = 1) -> None:
        """Open a data set; if a killed writer left episodes in the journal, they are sealed first.

        Raises:
            ConfigMismatch: there is no data set. CorruptFile: it is damaged. MissingExtra: h5py is not installed.
        """
        self.folder = Path(folder)
        _recover(self.folder)
        found = read_manifest(self.folder)
        self.layout, self.facts, self.sessions = found.layout, found.facts, found.sessions
        self._records = found.shards
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        indices = [self._shard(number).index for number in range(len(found.shards))]
        counts = [len(index["length"]) for index in indices]
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._within = np.concatenate([np.arange(count) for count in counts] or [np.zeros(0, np.int64)])
        self.lengths = _joined(indices, "length", np.int64)  # int64 (E,): steps of each episode
        self.seeds = _joined(indices, "seed", np.int64)  # int64 (E,): the level or seed it began from
        self.complete = _joined(indices, "complete", bool)  # bool (E,): False where recording stopped before its end

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def frames(self) -> int:
        """Steps in all episodes."""
        return int(self.lengths.sum())

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(record.size for record in self._records)

    def steps(self, episode: int) -> dict[str, np.ndarray]:
        """actions (T, P) int32 or (T, P, A) float32, rewards (T, P), terminations (T,), truncations (T,)."""
        shard, within = self._place(episode)
        return shard.episode_steps(within, 0, int(self.lengths[episode]))

    def frames_of(self, episode: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 (stop - start, H, W, 3), by default all T + 1 frames."""
        shard, within = self._place(episode)
        stop = int(self.lengths[episode]) + 1 if stop is None else stop
        if not 0 <= start < stop <= self.lengths[episode] + 1:
            raise InvalidInput(f"Episode {episode} has frames 0 to {self.lengths[episode]}, got {start} to {stop}.")
        return shard.frames(within, start, stop)

    def episode(self, episode: int) -> Episode:
        """One episode, checked against its sha256."""
        shard, within = self._place(episode)
        return shard.episode(within)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(number) for number in range(len(self)))

    def clips(self, rng: np.random.Generator, batch: int, length: int, min_steps: int = 1) -> Clips:
        """A batch of random stretches of `length` steps.

        Every step with at least `min_steps` steps left in its episode, itself included, is equally likely to be the
        first. Where the episode ends early the rest is padding: valid False, the last frame repeated, actions and
        rewards 0.

        Raises:
            InvalidInput: a number below 1, or no episode of `min_steps` steps.
            CorruptFile: a frame is damaged.
        """
        if min(batch, length, min_steps) < 1:
            raise InvalidInput(f"batch, length, min_steps must be at least 1, got {batch}, {length}, {min_steps}.")
        starts = np.cumsum(np.maximum(self.lengths - (min(min_steps, length) - 1), 0))
        if not len(starts) or not starts[-1]:
            raise InvalidInput(f"{self.folder} has no episode of {min_steps} steps; it has {len(self)} episodes.")
        drawn = rng.integers(starts[-1], size=batch)
        episodes = np.searchsorted(starts, drawn, side="right")
        firsts = drawn - np.concatenate([[0], starts])[episodes]
        clips = self._blank(batch, length)
        run: Callable[..., Iterable[None]] = self._pool.map if self._pool else map
        for number in np.unique(self._shard_of[episodes]):
            self._shard(int(number))  # opened here, so that no two threads open the same file
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        list(run(lambda row: self._fill(clips, row, int(episodes[row]), int(firsts[row])), range(batch)))
        return clips

    def close(self) -> None:
        """Close the files; may be called twice."""
        while self._open:
            self._open.popitem()[1].close()
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> "EpisodeStore":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _blank(self, batch: int, length: int) -> Clips:
        action_dtype = np.int64 if self.layout.num_actions else np.float32
        return Clips(
            observations=np.empty((batch, length + 1, *self.layout.frame_shape), np.uint8),
            actions=np.zeros((batch, length, *self.layout.action_shape), action_dtype),
            rewards=np.zeros((batch, length, len(self.layout.players)), np.float32),
            terminations=np.zeros((batch, length), bool),
            valid=np.zeros((batch, length), bool),
        )

    def _fill(self, clips: Clips, row: int, episode: int, first: int) -> None:
        shard, within = self._place(episode)
        count = min(clips.valid.shape[1], int(self.lengths[episode]) - first)
        frames = shard.frames(within, first, first + count + 1)
        clips.observations[row, : count + 1] = frames
        clips.observations[row, count + 1 :] = frames[-1]
        steps = shard.episode_steps(within, first, first + count)
        clips.actions[row, :count], clips.rewards[row, :count] = steps["actions"], steps["rewards"]
        clips.terminations[row, :count] = steps["terminations"]
        clips.valid[row, :count] = True

    def _place(self, episode: int) -> tuple[Shard, int]:
        if not 0 <= episode < len(self):
            raise InvalidInput(f"{self.folder} has episodes 0 to {len(self) - 1}, got {episode}.")
        return self._shard(int(self._shard_of[episode])), int(self._within[episode])

    def _shard(self, number: int) -> Shard:
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = Shard(self.folder / self._records[number].file, self.layout)
        return shard


def _joined(indices: Sequence[dict[str, np.ndarray]], name: str, dtype: Any) -> np.ndarray:
    return np.concatenate([index[name] for index in indices] or [np.zeros(0, dtype)]).astype(dtype)


def _recover(folder: Path) -> None:
    """Seal what a killed writer left; while one is alive, or on a read-only disk, its journal is left alone."""
    if not (folder / journal.NAME).exists() or not (folder / manifest.NAME).exists():
        return
    found = read_manifest(folder)
    try:
        with contextlib.closing(EpisodeWriter(folder, found.layout, found.facts)):
            pass
    except StorageError as error:
        _LOG.warning("the newest episodes of %s are not read: %s", folder, error)


def verify(folder: Path | str) -> list[str]:
    """Everything that is wrong with a data set, one line each; empty if every byte is what was written."""
    folder = Path(folder)
    try:
        found = read_manifest(folder)
    except CorruptFile as error:
        return [str(error)]
    problems = []
    for record in found.shards:
        path = folder / record.file
        try:
            data = path.read_bytes()
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror or error}")
            continue
        if len(data) != record.size or sha256_of(data) != record.sha256:
            problems.append(f"{path} is damaged: {record.episodes} episodes, {record.frames} frames")
    try:
        journal.read_journal(folder, found.layout, len(found.shards))
    except CorruptFile as error:
        problems.append(str(error))
    named = {record.file for record in found.shards}
    if not (folder / journal.NAME).exists():  # else a writer may be about to name it
        present = {f"shards/{path.name}" for path in (folder / "shards").glob("*.h5")}
        problems += [f"{folder / file} is not named in {manifest.NAME}" for file in sorted(present - named)]
    return problems
