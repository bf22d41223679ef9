"""One recorded episode, compressed as it is played, and its form as bytes with a checksum."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lwm_env.errors import CorruptFile, InvalidInput
from lwm_training.source import Step

CHUNK_FRAMES = 16  # frames that are compressed together
_LEVEL = 1  # of gzip: a quarter smaller at level 4, for a third of the speed
_MAGIC = b"LWMe"
_HEAD = struct.Struct("<4sIIQ32s")  # magic, crc32 of what follows it here, size of the JSON, of the rest, sha256
Compressor = Callable[[Callable[[bytes], bytes], Iterable[bytes]], Iterable[bytes]]  # `map`, or a thread pool's


@dataclass(frozen=True)
class Layout:
    """The shapes that all episodes of a data set share; plain JSON."""

    frame_size: tuple[int, int]
    players: tuple[str, ...]
    num_actions: int = 0  # 0: continuous
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Layout":
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        return (*self.frame_size, 3)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (len(self.players),) if self.num_actions else (len(self.players), len(self.low))

    @property
    def step_arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """dtype and shape of one step, of what is stored beside the frames."""
        return {
            "actions": (np.dtype("<i4" if self.num_actions else "<f4"), self.action_shape),
            "rewards": (np.dtype("<f4"), (len(self.players),)),
            "terminations": (np.dtype("?"), ()),
            "truncations": (np.dtype("?"), ()),
        }


@dataclass(frozen=True)
class Episode:
    """T steps: `steps` as `Layout.step_arrays` says, and T + 1 frames in zlib chunks of 16, the last one padded."""

    steps: dict[str, np.ndarray]
    chunks: list[bytes]
    seed: int  # the level, or the seed, that it began from
    complete: bool = True  # False: the recording stopped before the episode ended

    def __len__(self) -> int:
        return len(self.steps["rewards"])

    @property
    def size(self) -> int:
        """Bytes of the compressed frames."""
        return sum(map(len, self.chunks))

    @property
    def digest(self) -> bytes:
        """sha256 over all of it."""
        return hashlib.sha256(b"".join(self._parts())).digest()

    def _parts(self) -> list[bytes]:
        facts = {
            "length": len(self),
            "seed": self.seed,
            "complete": self.complete,
            "chunks": [len(chunk) for chunk in self.chunks],
        }
        head = json.dumps(facts, sort_keys=True).encode()
        return [head, *(self.steps[name].tobytes() for name in sorted(self.steps)), *self.chunks]

    def to_bytes(self) -> bytes:
        """A record that `from_bytes` reads, and of which every bit is checked."""
        parts = self._parts()
        tail = struct.pack("<IQ32s", len(parts[0]), sum(map(len, parts[1:])), self.digest)
        return b"".join([_MAGIC, struct.pack("<I", zlib.crc32(tail)), tail, *parts])

    def frames(self, shape: tuple[int, int, int], start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 (stop - start, H, W, 3), by default all T + 1."""
        stop = len(self) + 1 if stop is None else stop
        return decode_frames(self.chunks.__getitem__, shape, start, stop)


def pack_episode(
    layout: Layout, frames: np.ndarray, steps: dict[str, np.ndarray], seed: int, complete: bool = True
) -> Episode:
    """An episode from whole arrays: frames uint8 (T + 1, H, W, 3), and steps by the names of `Layout.step_arrays`.

    Raises:
        InvalidInput: an array of another length or shape.
    """
    count = len(frames) - 1
    if count < 1 or frames.shape[1:] != layout.frame_shape or frames.dtype != np.uint8:
        raise InvalidInput(f"Frames must be uint8 (T + 1, {layout.frame_shape}), got {frames.dtype} {frames.shape}.")
    packed = {}
    for name, (dtype, shape) in layout.step_arrays.items():
        array = np.asarray(steps[name], dtype)
        if array.size != count * int(np.prod(shape)):
            raise InvalidInput(f"{name} must have the shape {(count, *shape)}, got {array.shape}.")
        packed[name] = array.reshape(count, *shape)
    padding = -len(frames) % CHUNK_FRAMES
    padded = np.concatenate([frames, np.repeat(frames[-1:], padding, axis=0)])
    chunks = [_compress(chunk.tobytes()) for chunk in padded.reshape(-1, CHUNK_FRAMES, *layout.frame_shape)]
    return Episode(packed, chunks, seed, complete)


def read_record(data: bytes, offset: int, layout: Layout) -> tuple[Episode, int] | None:
    """The episode whose record begins at `offset` and where the next one begins; None if it was cut off there.

    Raises:
        CorruptFile: the bytes are there but are not what was written.
    """
    if len(data) - offset < _HEAD.size:
        return None
    magic, crc, facts_size, rest_size, digest = _HEAD.unpack_from(data, offset)
    if magic != _MAGIC or crc != zlib.crc32(data[offset + 8 : offset + _HEAD.size]):
        raise CorruptFile(f"the head of the record at byte {offset} is damaged")
    begin = offset + _HEAD.size
    end = begin + facts_size + rest_size
    if end > len(data):
        return None
    body = memoryview(data)[begin:end]
    if hashlib.sha256(body).digest() != digest:
        raise CorruptFile(f"the record at byte {offset} is damaged")
    facts = json.loads(bytes(body[:facts_size]))
    return _unpack(facts, body[facts_size:], layout), end


def _unpack(facts: dict[str, Any], body: memoryview, layout: Layout) -> Episode:
    steps, at = {}, 0
    for name, (dtype, shape) in sorted(layout.step_arrays.items()):
        count = facts["length"] * int(np.prod(shape))
        steps[name] = np.frombuffer(body, dtype, count, at).reshape(facts["length"], *shape)
        at += count * dtype.itemsize
    chunks = []
    for size in facts["chunks"]:
        chunks.append(bytes(body[at : at + size]))
        at += size
    return Episode(steps, chunks, facts["seed"], facts["complete"])


def decode_frames(chunk: Callable[[int], bytes], shape: tuple[int, int, int], start: int, stop: int) -> np.ndarray:
    """Frames start to stop, uint8 (stop - start, H, W, 3), of an episode whose k-th chunk is `chunk(k)`.

    Raises:
        CorruptFile: a chunk is damaged.
    """
    frames = np.empty((stop - start, *shape), np.uint8)
    frame_bytes = int(np.prod(shape))
    for index in range(start // CHUNK_FRAMES, (stop - 1) // CHUNK_FRAMES + 1):
        first = index * CHUNK_FRAMES
        low, high = max(start, first), min(stop, first + CHUNK_FRAMES)
        wanted = (high - first) * frame_bytes  # what lies behind it need not be decompressed
        try:
            data = zlib.decompressobj().decompress(chunk(index), wanted)
        except zlib.error as error:
            raise CorruptFile(f"frames {first} to {high} are damaged: {error}") from error
        if len(data) != wanted:
            raise CorruptFile(f"frames {first} to {high} are cut off")
        decoded = np.frombuffer(data, np.uint8).reshape(-1, *shape)
        frames[low - start : high - start] = decoded[low - first :]
    return frames


@dataclass
class _Running:
    """An episode while it is played."""

    seed: int
    steps: dict[str, list[Any]]
    chunks: list[bytes] = field(default_factory=list)
    filled: int = 0  # frames in the buffer


class Recorder:
    """Turns the batched play of N copies into episodes; frames are compressed sixteen at a time as they come."""

    def __init__(self, layout: Layout, num_envs: int, compressor: Compressor = map) -> None:
        self._layout, self._map = layout, compressor
        self._buffer = np.empty((num_envs, CHUNK_FRAMES, *layout.frame_shape), np.uint8)
        self._running: list[_Running | None] = [None] * num_envs

    def begin(self, observations: np.ndarray, seeds: np.ndarray, rows: Sequence[int]) -> None:
        """Start episodes with these first frames; `observations` and `seeds` are of all copies."""
        for row in rows:
            self._running[row] = _Running(int(seeds[row]), {name: [] for name in self._layout.step_arrays})
        self._push(rows, observations)

    def record(self, actions: np.ndarray, step: Step, seeds: np.ndarray) -> list[Episode]:
        """Take one step of all copies; returns the episodes that it ended. `seeds` are those after the step."""
        over = step.terminations | step.truncations
        going = [row for row, running in enumerate(self._running) if running is not None]
        values = {**step._asdict(), "actions": actions}
        for name in self._layout.step_arrays:
            column = values[name]
            for row in going:
                self._running[row].steps[name].append(column[row])
        self._push(going, step.observations)
        waiting = [row for row, running in enumerate(self._running) if running is None]
        if waiting:  # they restarted in this step
            self.begin(step.observations, seeds, waiting)
        return self._finish([row for row in going if over[row]], complete=True)

    def stop(self) -> list[Episode]:
        """The episodes that have begun and not ended, marked incomplete and truncated."""
        return self._finish([row for row, running in enumerate(self._running) if running is not None], complete=False)

    def _push(self, rows: Sequence[int], observations: np.ndarray) -> None:
        full = []
        for row in rows:
            running = self._running[row]
            self._buffer[row, running.filled] = observations[row]
            running.filled += 1
            if running.filled == CHUNK_FRAMES:
                full.append(row)
        self._compress(full)

    def _compress(self, rows: Sequence[int]) -> None:
        raw = [self._buffer[row].tobytes() for row in rows]
        for row, chunk in zip(rows, self._map(_compress, raw), strict=True):
            self._running[row].chunks.append(chunk)
            self._running[row].filled = 0

    def _finish(self, rows: Sequence[int], complete: bool) -> list[Episode]:
        rows = [row for row in rows if self._running[row].steps["rewards"]]
        partial = [row for row in rows if self._running[row].filled]
        for row in partial:
            filled = self._running[row].filled
            self._buffer[row, filled:] = self._buffer[row, filled - 1]
        self._compress(partial)
        episodes = []
        for row in rows:
            running = self._running[row]
            steps = {
                name: np.asarray(running.steps[name], dtype) for name, (dtype, _) in self._layout.step_arrays.items()
            }
            if not complete:
                steps["truncations"][-1] = True
            episodes.append(Episode(steps, running.chunks, running.seed, complete))
        for row in rows:
            self._running[row] = None
        return episodes


def _compress(raw: bytes) -> bytes:
    return zlib.compress(raw, _LEVEL)
